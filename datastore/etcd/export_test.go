package etcd

// DialReason is dialReason, for a test that cannot make grpc dial as another user.
var DialReason = dialReason
