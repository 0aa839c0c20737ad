package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/encoding/protowire"

	"netctl/netdev/netlab"
)

// message is one of the CRI's as it is on the wire; k8s.io/cri-api would bring a few
// hundred packages for the handful of fields that are set here. The numbers are those of
// its pkg/apis/runtime/v1/api.proto.
type message []byte

func (m message) text(field protowire.Number, values ...string) message {
	for _, v := range values {
		m = protowire.AppendString(protowire.AppendTag(m, field, protowire.BytesType), v)
	}
	return m
}

func (m message) in(field protowire.Number, inner message) message {
	return m.text(field, string(inner))
}

func (m message) number(field protowire.Number, n uint64) message {
	return protowire.AppendVarint(protowire.AppendTag(m, field, protowire.VarintType), n)
}

// get is the last value of a field, by its path from the outside, as text.
func (m message) get(path ...protowire.Number) (value string) {
	for len(m) > 0 {
		field, kind, n := protowire.ConsumeTag(m)
		if n < 0 {
			return ""
		}
		m = m[n:]
		if n = protowire.ConsumeFieldValue(field, kind, m); n < 0 {
			return ""
		}
		if field == path[0] && kind == protowire.BytesType {
			inner, _ := protowire.ConsumeBytes(m)
			if value = string(inner); len(path) > 1 {
				value = message(inner).get(path[1:]...)
			}
		} else if field == path[0] && kind == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(m)
			value = fmt.Sprint(v)
		}
		m = m[n:]
	}
	return value
}

// asItIs hands grpc messages that are encoded already.
type asItIs struct{}

func (asItIs) Name() string                  { return "proto" }
func (asItIs) Marshal(v any) ([]byte, error) { return *v.(*message), nil }
func (asItIs) Unmarshal(b []byte, v any) error {
	*v.(*message) = bytes.Clone(b)
	return nil
}

var _ encoding.Codec = asItIs{}

// cri is the real containerd with its plugin for the CRI, on one host.
type cri struct {
	*machine
	daemon *netlab.Process
	conn   *grpc.ClientConn
}

// newCRI starts one that knows one network and one image.
func newCRI(t *testing.T, h *netlab.Host, network string) *cri {
	t.Helper()
	const loopback = "/usr/lib/cni/loopback" // it wants that beside ours
	needs(t, "containerd", "ctr", "runc", loopback)
	if err := os.Symlink(loopback, h.Path("/opt/cni/bin/loopback")); err != nil {
		t.Fatal(err)
	}
	c := &cri{machine: newMachine(t, h)}
	root := newRootfs(t, c.dir)
	mustWrite(t, c.dir+"/config.toml", fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[2]s"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "%[1]s/net.d"
`, c.dir, image))
	if err := os.Mkdir(c.dir+"/net.d", 0o755); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, c.dir+"/net.d/10.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"netctl","capabilities":{"portMappings":true}}]}`, network))
	c.start()
	conn, err := grpc.NewClient("unix://"+c.dir+"/c.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	c.conn = conn
	t.Cleanup(func() {
		_ = conn.Close()
		_ = c.daemon.Stop()
	})
	netlab.Until(t, patience, "containerd", func() string {
		_, err := c.call("Version", nil)
		return text(err)
	})
	c.must("ctr -a " + c.dir + "/c.sock -n k8s.io images import " + archive(t, c.dir, root))
	return c
}

func text(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

func (c *cri) start() {
	c.t.Helper()
	p, err := c.host.Start("containerd", netlab.Cmd{Args: []string{"containerd", "-c", c.dir + "/config.toml"}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.daemon = p
}

func (c *cri) call(method string, request message) (answer message, err error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	err = c.conn.Invoke(ctx, "/runtime.v1.RuntimeService/"+method, &request, &answer, grpc.ForceCodec(asItIs{}), grpc.WaitForReady(true))
	return answer, err
}

func (c *cri) do(method string, request message) message {
	c.t.Helper()
	answer, err := c.call(method, request)
	if err != nil {
		c.t.Fatalf("%s: %v", method, err)
	}
	return answer
}

// sandbox is what a kubelet says of a pod.
func sandbox(name, namespace string) message {
	return message{}.in(1, message{}.text(1, name).text(2, "uid-"+name).text(3, namespace)).text(2, name)
}

// run makes a sandbox; its address is as the CRI tells it.
func (c *cri) run(pod message) (id, address string) {
	c.t.Helper()
	id = c.do("RunPodSandbox", message{}.in(1, pod)).get(1)
	return id, c.do("PodSandboxStatus", message{}.text(1, id)).get(1, 5, 1)
}

// container starts one in a sandbox.
func (c *cri) container(sandbox, name string, pod message, args ...string) (id string) {
	c.t.Helper()
	config := message{}.in(1, message{}.text(1, name)).in(2, message{}.text(1, image)).text(3, args...).
		in(15, message{}.in(2, message{}.in(1, message{}.text(1, "NET_RAW"))))
	id = c.do("CreateContainer", message{}.text(1, sandbox).in(2, config).in(3, pod)).get(1)
	c.do("StartContainer", message{}.text(1, id))
	return id
}

// exec runs a command in a container.
func (c *cri) exec(container string, args ...string) (string, error) {
	answer, err := c.call("ExecSync", message{}.text(1, container).text(2, args...).number(3, uint64(patience.Seconds())))
	if code := answer.get(3); err == nil && code != "" && code != "0" {
		err = errors.New(strings.Join(args, " ") + ": exit " + code + " " + answer.get(2))
	}
	return answer.get(1), err
}

const image = "docker.io/library/bb:1"

// archive is an image of a container's file system, as `docker save` writes one.
func archive(t *testing.T, dir, root string) string {
	t.Helper()
	pack := func(folder, name string, files ...string) string {
		file := filepath.Join(dir, name)
		if out, err := exec.Command("tar", append([]string{"-C", folder, "-cf", file}, files...)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %s%v", name, out, err)
		}
		return file
	}
	layer, err := os.ReadFile(pack(root, "layer.tar", "."))
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, dir+"/image.json", fmt.Sprintf(`{"architecture":%q,"os":"linux","config":{"Cmd":["/bin/sleep","100000"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`,
		goruntime.GOARCH, sha256.Sum256(layer)))
	mustWrite(t, dir+"/manifest.json", fmt.Sprintf(`[{"Config":"image.json","RepoTags":[%q],"Layers":["layer.tar"]}]`, image))
	return pack(dir, "image.tar", "manifest.json", "image.json", "layer.tar")
}

// TestCRI: pods as a kubelet has them made by the real containerd. Containers of one share
// its address, which the network's profile and its Kubernetes namespace rule, from another
// node too; an address is free when the pod has stopped, whenever containerd died.
func TestCRI(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	h, there := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, h, "netctl", "pool", "add", "10.0.0.0/24")
	netlab.Must(t, h, "netctl", "network", "create", "pods", "--runtime", "none")
	netlab.Must(t, h, "netctl", "profile", "pods", "rule", "add", "inbound", "allow", "tcp", "from", "192.168.99.0/24", "to", "ports", "80")
	c := newCRI(t, h, "pods")
	member, stranger := netlab.Attached(t, there, "member", "pods", ""), netlab.Attached(t, there, "stranger", "others", "")

	web := sandbox("web", "prod").in(5, message{}.number(2, 80).number(3, 8088))
	id, webAddress := c.run(web)
	address := netip.MustParseAddr(webAddress)
	other := sandbox("batch", "dev")
	batch, batchAddress := c.run(other)
	first := c.container(id, "first", web, "/bin/busybox", "nc", "-ll", "-p", "80", "-e", "/bin/echo", "-n", "web")
	second := c.container(id, "second", web, "/bin/sleep", "1000")
	for _, container := range []string{first, second} {
		if out, err := c.exec(container, "/bin/ip", "-4", "-o", "addr", "show", "dev", "eth0"); err != nil || !strings.Contains(out, " "+address.String()+"/32 ") {
			t.Errorf("addresses of %s: %s%v", container, out, err)
		}
	}
	// One serves, the other reaches it at their loopback, the world at the node's port.
	netlab.Until(t, patience, "the first container serves", func() string {
		out, err := c.exec(second, "/bin/busybox", "nc", "127.0.0.1", "80")
		if out != "web" {
			return out + text(err)
		}
		return ""
	})
	hearsAtLast(t, there, portOf(h, 8088), "web")
	if labels := c.must("netctl get endpoints -o yaml"); !strings.Contains(labels, "k8s.namespace: prod") || !strings.Contains(labels, "k8s.pod: web") || !strings.Contains(labels, "k8s.uid: uid-web") {
		t.Errorf("labels: %s", labels)
	}
	pings(t, member, address)
	if out, err := netlab.Try(t, stranger, "ping", "-n", "-c1", "-W1", address.String()); err == nil {
		t.Errorf("of another network: %s", out)
	}
	mustWrite(t, c.dir+"/prod.yaml", "apiVersion: netctl/v1\nkind: Policy\nmetadata: {name: prod}\nspec: {selector: \"k8s.namespace == 'prod'\", ingress: [\"allow tcp to ports 80\"]}\n")
	netlab.Must(t, h, "netctl", "apply", "-f", c.dir+"/prod.yaml")
	netlab.Until(t, patience, "the policy of the namespace", func() string {
		if out, err := netlab.Try(t, member, "ping", "-n", "-c1", "-W1", address.String()); err == nil {
			return out
		}
		return ""
	})
	hearsAtLast(t, stranger, netip.AddrPortFrom(address, 80), "web")
	pings(t, member, netip.MustParseAddr(batchAddress))

	// It dies while the pods live, and while it stops one of them.
	restart := func() {
		t.Helper()
		c.daemon.Kill()
		c.start()
	}
	restart()
	if got := c.do("PodSandboxStatus", message{}.text(1, id)).get(1, 5, 1); got != address.String() {
		t.Errorf("the pod has %q after a restart, had %s", got, address)
	}
	if got := hears(t, stranger, netip.AddrPortFrom(address, 80), time.Second); got != "web" {
		t.Errorf("after a restart: %s", got)
	}
	c.do("StopPodSandbox", message{}.text(1, id))
	if out := c.must("netctl get endpoints"); strings.Contains(out, id) || !strings.Contains(out, batch) {
		t.Errorf("after the one has stopped:\n%s", out)
	}
	noPorts(t, h)
	c.do("StopPodSandbox", message{}.text(1, id))
	c.do("RemovePodSandbox", message{}.text(1, id))
	c.do("RemovePodSandbox", message{}.text(1, id))
	stopping := make(chan error, 1)
	go func() {
		_, err := c.call("StopPodSandbox", message{}.text(1, batch))
		stopping <- err
	}()
	restart()
	<-stopping
	c.do("StopPodSandbox", message{}.text(1, batch))
	c.do("RemovePodSandbox", message{}.text(1, batch))
	if out := c.must("netctl get endpoints"); strings.Contains(out, batch) {
		t.Errorf("after both have stopped:\n%s", out)
	}
}
