package etcd

// DialReason is dialReason, for a test that cannot make grpc dial as another user.
var DialReason = dialReason

// Unrepeated is unrepeated, for what a member says that refuses a call.
var Unrepeated = unrepeated
