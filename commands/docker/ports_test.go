package docker

import (
	"fmt"
	"strings"
	"testing"
)

// TestRange: of a range the first port is taken that no other container has, however
// many do, whatever else is published; if all are taken nothing stays published. It is
// SCTP, of which no process is looked for.
func TestRange(t *testing.T) {
	r := newRig(t)
	if err := r.plugin.state.putEndpoint(endpoint{ID: "e1", Network: "6a2b7979b2de"}); err != nil {
		t.Fatal(err)
	}
	for port := uint16(8000); port < 8030; port++ {
		r.taken[port] = true
	}
	r.taken[9000] = true
	for _, c := range []struct {
		end    int // of the range from 8000
		answer string
		last   string // that the agent was asked
	}{
		{8040, "{}", `,"ports":[{"protocol":"sctp","hostPort":7000,"port":79},{"protocol":"sctp","hostPort":8030,"port":80},{"protocol":"sctp","hostPort":9001,"port":90}]}`},
		{8029, "in use", `"interface":"eth"}`},
	} {
		got := r.call("/NetworkDriver.ProgramExternalConnectivity", fmt.Sprintf(`{"NetworkID":"6a2b7979b2de","EndpointID":"e1","Options":{"com.docker.network.portmap":[
			{"Proto":132,"Port":79,"HostPort":7000,"HostPortEnd":7000},{"Proto":132,"Port":80,"HostPort":8000,"HostPortEnd":%d},{"Proto":132,"Port":90,"HostPort":9000,"HostPortEnd":9002}]}}`, c.end))
		r.mu.Lock()
		last := r.asked[len(r.asked)-1]
		r.mu.Unlock()
		if !strings.Contains(got, c.answer) || !strings.HasSuffix(last, c.last) {
			t.Errorf("to %d: %s; the agent was asked at last: %s", c.end, got, last)
		}
	}
}
