package nft

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"netctl/netdev/qemulab"
)

// inGuest is set in the guests of TestKernels.
const inGuest = "NETCTL_IN_GUEST"

// TestKernels sends the packets of this package's tests through the kernels of Debian 11, 12
// and 13, in QEMU: this very binary does, in the guest. What floods or counts lost packets
// is too slow there.
func TestKernels(t *testing.T) {
	switch {
	case os.Getenv(inGuest) != "":
		t.Skip("this is the guest")
	case os.Getenv("NETCTL_GUEST") == "":
		t.Skip("takes some ten minutes for each: `make test-all` has it, or set NETCTL_GUEST")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		version, kernel string
		modules         []string
	}{
		{"5.10", qemulab.KernelDir + "-bullseye", []string{"nf_log_ipv4", "nf_log_ipv6", "nft_counter"}},
		{"6.1", qemulab.KernelDir, []string{"nf_log_syslog"}},
		{"6.12", qemulab.KernelDir + "-trixie", []string{"nf_log_syslog"}},
	} {
		t.Run(k.version, func(t *testing.T) {
			g := qemulab.Guest{
				Kernel: k.kernel,
				Modules: append([]string{
					"veth", "nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_chain_nat", "nft_limit", "nft_log", "nft_connlimit", "nft_fib_inet", "nft_reject_inet",
					"nfnetlink_log", "nf_conntrack", "nf_conntrack_netlink", "nf_defrag_ipv6", "sctp", "vxlan",
				}, k.modules...),
				Tools:     []string{"ip", "nft", "conntrack", "nsenter", "sysctl"},
				Files:     map[string]string{"/bin/tests": self},
				Script:    "uname -r; cd /tmp && /bin/tests -test.count=1 -test.v -test.timeout=25m -test.run='" + inKernels + "' -test.skip='/iptables'",
				Env:       []string{inGuest + "=1"},
				MemoryMiB: 1536,
			}
			ctx, cancel := context.WithTimeout(t.Context(), 27*time.Minute)
			defer cancel()
			var out strings.Builder
			err := g.Run(ctx, &out)
			t.Log(out.String())
			if err != nil {
				t.Fatal(err)
			}
			if said := strings.TrimSpace(out.String()); !strings.HasPrefix(said, k.version+".") || !strings.Contains(said, "--- PASS: TestTags ") {
				t.Error("that is another kernel, or nothing ran")
			}
		})
	}
}

// inKernels are the tests that run there.
const inKernels = `^Test(Tags|RulesActAtOnce|EstablishedPasses|AntiSpoofing|Guards|GatewayAddress|UnknownIsClosed|Host|KernelAgreesWithEval.*|CountersSurvive|PreDNAT|` +
	`FailsafesHoldInEveryStage|HostEndpointInKernel|Tenants|ClosedUntilCut|Limits|MACGuard|MSS|NATOutgoing|SyncRepairs|PublishedPorts|AllowedPrefixes|` +
	`ReversePath|StagedPoliciesOnlyTell|VXLANTunnels|WireGuardPort|RejectTells)$`
