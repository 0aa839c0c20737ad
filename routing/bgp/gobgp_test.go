package bgp

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/server"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// quiet is a logger for GoBGP.
type quiet struct{}

func (quiet) Panic(string, log.Fields) {}
func (quiet) Fatal(string, log.Fields) {}
func (quiet) Error(string, log.Fields) {}
func (quiet) Warn(string, log.Fields)  {}
func (quiet) Info(string, log.Fields)  {}
func (quiet) Debug(string, log.Fields) {}
func (quiet) SetLevel(log.LogLevel)    {}
func (quiet) GetLevel() log.LogLevel   { return 0 }

// TestGoBGP talks to GoBGP's server in this process: routes both ways in both
// families, several paths from there, and the session comes back after a restart of our side.
func TestGoBGP(t *testing.T) {
	ctx := context.Background()
	g := server.NewBgpServer(server.LoggerOption(quiet{}))
	go g.Serve()
	t.Cleanup(g.Stop)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(g.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: 64511, RouterId: "127.0.2.2", ListenPort: 1791, ListenAddresses: []string{"127.0.2.2"},
	}}))
	family := func(afi api.Family_Afi) *api.AfiSafi {
		return &api.AfiSafi{Config: &api.AfiSafiConfig{Family: &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
			AddPaths: &api.AddPaths{Config: &api.AddPathsConfig{Receive: true, SendMax: 4}}}
	}
	check(g.AddPeer(ctx, &api.AddPeerRequest{Peer: &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: "127.0.2.1", PeerAsn: 64511},
		Transport: &api.Transport{LocalAddress: "127.0.2.2", PassiveMode: true},
		AfiSafis:  []*api.AfiSafi{family(api.Family_AFI_IP), family(api.Family_AFI_IP6)},
	}}))
	pack := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		check(err)
		return a
	}
	origin := pack(&api.OriginAttribute{Origin: 0})
	for i, hop := range []string{"127.0.2.2", "127.0.2.3"} {
		_, err := g.AddPath(ctx, &api.AddPathRequest{Path: &api.Path{
			Family: &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}, Identifier: uint32(i + 1),
			Nlri:   pack(&api.IPAddressPrefix{Prefix: "10.1.0.0", PrefixLen: 26}),
			Pattrs: []*anypb.Any{origin, pack(&api.NextHopAttribute{NextHop: hop})},
		}})
		check(err)
	}
	v6 := &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
	nlri := pack(&api.IPAddressPrefix{Prefix: "fd80:1::", PrefixLen: 122})
	_, err := g.AddPath(ctx, &api.AddPathRequest{Path: &api.Path{
		Family: v6, Nlri: nlri,
		Pattrs: []*anypb.Any{origin, pack(&api.MpReachNLRIAttribute{Family: v6, NextHops: []string{"fd00::2"}, Nlris: []*anypb.Any{nlri}})},
	}})
	check(err)
	config := Config{RouterID: addr("127.0.2.1"), AS: 64511}
	peers := []PeerConfig{{
		Address: addr("127.0.2.2"), Port: 1791, AS: 64511, LocalAddress: addr("127.0.2.1"), Families: []Family{IPv4, IPv6},
		NextHopSelf: []netip.Addr{addr("fd00::1")}, HoldTime: 9 * time.Second, ConnectRetry: time.Second,
		SendPaths: -1, ReceivePaths: true,
	}}
	both := func(k *kernel) {
		t.Helper()
		want := []string{"10.0.0.0/26 via 127.0.2.1", "fd80::/122 via fd00::1"}
		eventually(t, "routes at GoBGP", func() bool { return slices.Equal(learnt(t, g), want) })
		mine := []string{"10.1.0.0/26 via 127.0.2.2 127.0.2.3", "fd80:1::/122 via fd00::2"}
		eventually(t, "routes from GoBGP", func() bool { return slices.Equal(k.text(), mine) })
	}
	config.Installer = &kernel{}
	_, stop := start(t, config, peers, "10.0.0.0/26", "fd80::/122")
	both(config.Installer.(*kernel))
	stop()
	config.Installer = &kernel{}
	start(t, config, peers, "10.0.0.0/26", "fd80::/122")
	both(config.Installer.(*kernel))
}

// learnt lists the routes that GoBGP has from us as "prefix via hop".
func learnt(t *testing.T, g *server.BgpServer) []string {
	t.Helper()
	list := []string{}
	for _, afi := range []api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
		err := g.ListPath(context.Background(), &api.ListPathRequest{
			TableType: api.TableType_GLOBAL, Family: &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST},
		}, func(d *api.Destination) {
			for _, p := range d.Paths {
				if p.NeighborIp != "127.0.2.1" {
					continue
				}
				for _, a := range p.Pattrs {
					m, _ := a.UnmarshalNew()
					switch m := m.(type) {
					case *api.NextHopAttribute:
						list = append(list, d.Prefix+" via "+m.NextHop)
					case *api.MpReachNLRIAttribute:
						list = append(list, d.Prefix+" via "+m.NextHops[0])
					}
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(list)
	return list
}
