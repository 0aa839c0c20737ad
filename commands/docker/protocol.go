package docker

import "net/netip"

// The bodies of libnetwork's plugin protocol (docs/remote.md and docs/ipam.md of
// libnetwork, as of Docker 20.10 to 29), as far as they are used here. What a request
// has beyond them is not looked at: later versions of Docker say more.

// activation answers /Plugin.Activate.
type activation struct {
	Implements []string
}

// driverCapabilities answers /NetworkDriver.GetCapabilities.
type driverCapabilities struct {
	Scope             string // whose store a network is in: a node's own
	ConnectivityScope string // how far it reaches
	GwAllocChecker    bool   // GwAllocCheck is answered (Docker 28)
}

// gatewayCheck answers /NetworkDriver.GwAllocCheck.
type gatewayCheck struct {
	SkipIPv4, SkipIPv6 bool
}

// poolData is one pool of a network.
type poolData struct {
	AddressSpace string
	Pool         string
	Gateway      string
}

// createNetwork is the body of /NetworkDriver.CreateNetwork.
type createNetwork struct {
	NetworkID string
	Options   map[string]any
	IPv4Data  []poolData
	IPv6Data  []poolData
}

// The keys of options.
const (
	optGeneric  = "com.docker.network.generic"
	optInternal = "com.docker.network.internal"
	optIPv6     = "com.docker.network.enable_ipv6"
	optPortMap  = "com.docker.network.portmap"
	optGateway  = "com.docker.network.gateway"
	optType     = "RequestAddressType"
	optName     = "com.docker.network.endpoint.name"
)

// endpointCall is the body of the calls that are about an endpoint.
type endpointCall struct {
	NetworkID  string
	EndpointID string
	Interface  *endpointInterface
	SandboxKey string
	Options    map[string]any
}

// endpointInterface is what Docker knows of an interface, or is told of it: what it
// knows must not be told.
type endpointInterface struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

// createdEndpoint answers /NetworkDriver.CreateEndpoint.
type createdEndpoint struct {
	Interface endpointInterface
}

// operInfo answers /NetworkDriver.EndpointOperInfo.
type operInfo struct {
	Value map[string]any
}

// routeConnected is the type of a staticRoute without a next hop.
const routeConnected = 1

type staticRoute struct {
	Destination string
	RouteType   int
}

type interfaceName struct {
	SrcName   string
	DstPrefix string
}

// joined answers /NetworkDriver.Join.
type joined struct {
	InterfaceName         interfaceName
	Gateway               string        `json:",omitempty"`
	GatewayIPv6           string        `json:",omitempty"`
	StaticRoutes          []staticRoute `json:",omitempty"`
	DisableGatewayService bool
}

// ipamCapabilities answers /IpamDriver.GetCapabilities.
type ipamCapabilities struct {
	RequiresMACAddress    bool
	RequiresRequestReplay bool
}

// addressSpaces answers /IpamDriver.GetDefaultAddressSpaces.
type addressSpaces struct {
	LocalDefaultAddressSpace  string
	GlobalDefaultAddressSpace string
}

// requestPool is the body of /IpamDriver.RequestPool.
type requestPool struct {
	AddressSpace string
	Pool         string
	SubPool      string
	Options      map[string]string
	V6           bool
}

type requestedPool struct {
	PoolID string
	Pool   string
	Data   map[string]string
}

// addressCall is the body of /IpamDriver.RequestAddress, ReleaseAddress and
// ReleasePool.
type addressCall struct {
	PoolID  string
	Address string
	Options map[string]string
}

type requestedAddress struct {
	Address string
	Data    map[string]string
}

// nothing is the answer of calls that have none.
type nothing struct{}

// host is an address with its host prefix, as Docker takes it.
func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }
