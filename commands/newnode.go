package commands

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"netctl/commands/install"
	"netctl/commands/join"
	"netctl/datastore"
	"netctl/datastore/pki"
)

// Where a node that init or join made has its certificates, in the state folder, and the
// ports of a member of the datastore.
const (
	tlsFolder  = "tls"
	clientPort = 2379
	peerPort   = 2380
)

// roomFor is how much of the disk must be free, in MiB: etcd makes files of 64 MiB
// before it writes anything.
const (
	roomForMember = 256
	roomForNode   = 8
)

// newNode is a machine that becomes a node: what is checked before anything is written,
// and everything that is written, so that it can be taken away again.
type newNode struct {
	a       *app
	command string // init or join
	config  string // the configuration file to make
	root    string // of the machine; "" but in tests
	laid    bool   // config is what `netctl install` laid down
	s       *settings
	address netip.Addr
	pinned  []string // addresses that were asked for
	link    string   // the interface of address
	member  bool
	user    string // of an external etcd, by which this node reaches it; "" of netctl's own
	made    []string
}

// newNodeOptions are what init and join are told alike.
type newNodeOptions struct {
	addresses    []string
	ignoreChecks bool
}

func (o *newNodeOptions) flags(cmd *cobra.Command) {
	ignoreChecks(cmd, &o.ignoreChecks)
	cmd.Flags().StringSliceVar(&o.addresses, "address", nil, "this node's `address`, one a family (default: that of the way to the others)")
	for _, st := range settingTable() {
		if st.key == "roles" {
			st.addTo(cmd.Flags())
		}
	}
}

// prepare refuses a machine that is a node, and one that cannot be.
func (a *app) prepare(cmd *cobra.Command, command string, o newNodeOptions, towards netip.Addr, member bool, roles ...string) (*newNode, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%s: must run as root", command)
	}
	n := &newNode{a: a, command: command, config: configName(cmd), member: member, pinned: o.addresses}
	if err := n.unconfigured(); err != nil {
		return nil, err
	}
	// Everything else that settings come from counts, the file that is not there does not.
	if !n.laid {
		if err := cmd.Flags().Set("config", os.DevNull); err != nil {
			return nil, err
		}
	}
	var err error
	if n.s, err = a.settings(); err != nil {
		return nil, err
	}
	if command == "init" {
		if n.user, err = n.s.foundedIn(); err != nil {
			return nil, err
		}
	}
	if err := n.chooseRoles(roles); err != nil {
		return nil, err
	}
	if err := n.unused(); err != nil {
		return nil, err
	}
	if err := n.place(towards); err != nil {
		return nil, err
	}
	if err := n.room(); err != nil || o.ignoreChecks {
		return n, err
	}
	if err := a.preflight(cmd.Context(), n.s); err != nil {
		return nil, fmt.Errorf("%s: nothing was written: %w", command, err)
	}
	return n, nil
}

// chooseRoles finds the node's roles: those that were said, or those given.
func (n *newNode) chooseRoles(roles []string) error {
	// What an install was asked for stays. It could not know who is to have the datastore.
	if n.laid && !n.member && strings.HasPrefix(n.s.origin["roles"], n.s.File+":") {
		n.s.Roles = slices.DeleteFunc(n.s.Roles, func(r string) bool { return r == "datastore" })
	}
	if len(n.s.Roles) == 0 {
		n.s.Roles = roles
	}
	if n.member != slices.Contains(n.s.Roles, "datastore") {
		if !n.member {
			return usage("--roles with datastore: say --datastore too")
		}
		n.s.Roles = append([]string{"datastore"}, n.s.Roles...)
	}
	return nil
}

// configName is the configuration file that commands of this machine read.
func configName(cmd *cobra.Command) string {
	if f := cmd.Flags().Lookup("config"); f != nil && f.Value.String() != "" {
		return f.Value.String()
	}
	if name := os.Getenv("NETCTL_CONFIG"); name != "" {
		return name
	}
	return defaultConfigFile
}

// madeBy is the first line of a configuration that init or join wrote.
const madeBy = "# made by netctl "

// unconfigured refuses a machine that has a configuration; an empty file is none, and
// what an install laid down is nobody's.
func (n *newNode) unconfigured() error {
	n.laid = false
	st, err := os.Stat(n.config)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", n.command, err)
	case st.IsDir():
		return fmt.Errorf("%s: %s is a folder, and is to be the configuration file", n.command, n.config)
	}
	text, err := os.ReadFile(n.config)
	if err != nil {
		return fmt.Errorf("%s: %w", n.command, err)
	}
	if len(text) == 0 {
		return nil
	}
	if strings.HasPrefix(string(text), madeBy) {
		return fmt.Errorf("%s: this node is in a cluster already (%s): for another node run `netctl token create` on a machine that has the datastore, and what it prints there; to begin anew here end the roles, run `netctl cleanup`, and move that file and its state folder (/var/lib/netctl-node if it names no other) away", n.command, n.config)
	}
	if n.laid, err = install.Untouched(n.root, n.config); err != nil {
		return fmt.Errorf("%s: %w", n.command, err)
	}
	if n.laid {
		return nil
	}
	return fmt.Errorf("%s: %s is somebody's configuration and stays as it is: move it away, or set the node up in it (docs/datastore.md)", n.command, n.config)
}

// canBeFolder is nil where a folder is, or can be made.
func canBeFolder(dir string) error {
	st, err := os.Stat(dir)
	if err == nil && !st.IsDir() {
		return fmt.Errorf("%s is a file", dir)
	}
	if _, there := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) && there == nil {
		return fmt.Errorf("%s is a link to what is not there", dir)
	}
	return nil
}

// unused refuses a state folder that is a node's.
func (n *newNode) unused() error {
	for _, x := range []struct{ dir, what, flag string }{{n.s.StateDir, "state folder", "--state-dir"}, {n.s.RunDir, "folder of sockets", "--run-dir"}} {
		if err := canBeFolder(x.dir); err != nil {
			return fmt.Errorf("%s: %w, and is to be the %s: move it away, or name another folder with %s", n.command, err, x.what, x.flag)
		}
	}
	for _, name := range []string{"cluster.json", "etcd", tlsFolder, "etcd-tls"} {
		path := filepath.Join(n.s.StateDir, name)
		if name == tlsFolder && n.unfinished() {
			continue
		}
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s: %s is there: this machine is, or was, a node; when its cluster is done with it (`netctl node remove`), run `netctl cleanup` and move %s away", n.command, path, n.s.StateDir)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", n.command, err)
		}
	}
	return nil
}

// unfinished tells whether all there is of certificates is the key of a join that was killed
// before the cluster had answered.
func (n *newNode) unfinished() bool {
	f := n.files("node")
	list, err := os.ReadDir(filepath.Dir(f.Key))
	return err == nil && len(list) == 1 && list[0].Name() == filepath.Base(f.Key)
}

// place finds the node's address: the one that was given, that of the way to the
// cluster, that of the way out, or the first there is.
func (n *newNode) place(towards netip.Addr) error {
	if err := checkAddresses(n.pinned); err != nil {
		return usage("--address %w", err)
	}
	if len(n.pinned) > 0 {
		n.address = netip.MustParseAddr(n.pinned[0]) // checked
	}
	for _, to := range []netip.Addr{towards, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} {
		if n.address.IsValid() || !to.IsValid() {
			continue
		}
		// Connecting a UDP socket sends nothing.
		if c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9))); err == nil {
			n.address = c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
			_ = c.Close()
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("%s: interfaces: %w", n.command, err)
	}
	for _, l := range links {
		addrs, err := l.Addrs()
		if err != nil {
			continue // it went
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || !p.Addr().IsGlobalUnicast() {
				continue
			}
			if addr := p.Addr().Unmap(); n.link == "" && (addr == n.address || !n.address.IsValid()) {
				n.address, n.link = addr, l.Name
			}
		}
	}
	switch {
	case !n.address.IsValid():
		return fmt.Errorf("%s: this machine has no address that others reach: give it one", n.command)
	case n.link == "" && n.address.IsLoopback():
		return fmt.Errorf("%s: others do not reach %s: give it an address of this machine that they do", n.command, n.address)
	case n.link == "":
		return fmt.Errorf("%s: address %s is on no interface of this machine", n.command, n.address)
	}
	return nil
}

// room refuses a disk that is full and ports that are taken, before anything is written.
func (n *newNode) room() error {
	need, ports := uint64(roomForNode), []int(nil)
	switch {
	case n.member && n.user == "":
		need, ports = roomForMember, []int{clientPort, peerPort, join.DefaultPort}
	case n.member:
		ports = []int{join.DefaultPort}
	}
	dir := n.s.StateDir
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return fmt.Errorf("%s: %s is a file, and is to be a folder", n.command, dir)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %s: %w", n.command, dir, err)
	}
	if free := st.Bavail * uint64(st.Bsize) >> 20; free < need {
		return fmt.Errorf("%s: the disk of %s is full: %d MiB are free, and %d are needed", n.command, n.s.StateDir, free, need)
	}
	for _, port := range ports {
		l, err := net.Listen("tcp", netip.AddrPortFrom(n.address, uint16(port)).String())
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return fmt.Errorf("%s: port %d of %s is taken: another etcd? end it first (`ss -ltnp sport = :%d` says who it is)", n.command, port, n.address, port)
		case err != nil:
			return fmt.Errorf("%s: %w", n.command, err)
		}
		_ = l.Close()
	}
	return nil
}

// write makes a file of the new node's; the folder is made if need be.
func (n *newNode) write(path string, text []byte, mode fs.FileMode) error {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil || dir == "/" {
			break
		}
		n.made = append(n.made, dir)
	}
	// Folders that are made come last when all is taken back.
	if err := datastore.WriteFile(path, text, datastore.FileOptions{Mode: mode, New: true}); err != nil {
		return fmt.Errorf("%s: %w", n.command, err)
	}
	n.made = append(n.made, path)
	return nil
}

// undo takes back what was written: nothing is half-done.
func (n *newNode) undo() {
	slices.SortFunc(n.made, func(a, b string) int { return len(b) - len(a) })
	for _, path := range n.made {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			n.a.warn("%v", err)
		}
	}
}

// files are the certificates that the node shows as client, or a member as server.
func (n *newNode) files(name string) pki.Files {
	return pki.In(filepath.Join(n.s.StateDir, tlsFolder), name)
}

func (n *newNode) url(port int) string {
	return "https://" + netip.AddrPortFrom(n.address, uint16(port)).String()
}

// configure writes the configuration, last of all: with it the node is one.
func (n *newNode) configure(endpoints []string, joinPort int) error {
	if n.laid {
		// A person may have written it while the cluster was asked.
		if err := n.unconfigured(); err != nil {
			return err
		}
	}
	if n.laid {
		// It is no longer what was laid down then: an install or uninstall leaves it.
		if err := datastore.WriteFile(n.config, []byte(n.configText(endpoints, joinPort)), datastore.FileOptions{Mode: 0o644}); err != nil {
			return fmt.Errorf("%s: %w", n.command, err)
		}
		return nil
	}
	// An empty file is nobody's, and may be one that is mounted there.
	if st, err := os.Stat(n.config); err == nil && st.Size() == 0 {
		text := n.configText(endpoints, joinPort)
		if err := os.WriteFile(n.config, []byte(text), 0o644); err != nil {
			_ = os.Truncate(n.config, 0)
			return fmt.Errorf("%s: %w", n.command, err)
		}
		return nil
	}
	return n.write(n.config, []byte(n.configText(endpoints, joinPort)), 0o644)
}

func (n *newNode) configText(endpoints []string, joinPort int) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	tls := func(f pki.Files, indent string) {
		line("%sca: %q\n%scert: %q\n%skey: %q", indent, f.CA, indent, f.Cert, indent, f.Key)
	}
	line(madeBy+"%s; yours to change (docs/configuration.md)", n.command)
	line("node: %q", n.s.Node)
	line("roles: [%s]", strings.Join(n.s.Roles, ", "))
	for _, st := range settingTable() {
		// What else was said on the command line or in the environment holds later too.
		if !slices.Contains([]string{"stateDir", "runDir", "labels"}, st.key) || n.s.origin[st.key] == "default" {
			continue
		}
		switch st.key {
		case "stateDir":
			line("stateDir: %q", n.s.StateDir)
		case "runDir":
			line("runDir: %q", n.s.RunDir)
		case "labels":
			line("labels: %s", quotedList(n.s.Labels))
		}
	}
	line("datastore:\n  endpoints: %s", quotedList(endpoints))
	if n.user == "" {
		tls(n.files("node"), "  ")
	} else {
		line("  ca: %q\n  user: %q\n  passwordFile: %q", n.etcdCA(), n.user, n.etcdPassword())
	}
	if n.member {
		if n.user == "" {
			line("etcd:\n  listen: [%q]\n  peerURL: %q\n  joinPort: %d\n  tls:", n.url(clientPort), n.url(peerPort), joinPort)
		} else { // nothing is served but the port where nodes join
			line("etcd:\n  listen: [%q]\n  joinPort: %d\n  tls:", n.url(joinPort), joinPort)
		}
		tls(n.files("server"), "    ")
		if life := n.s.Etcd.CertificateLife; life != defaultCertificateLife {
			line("  certificateLife: %s", life)
		}
	}
	switch {
	case len(n.pinned) > 0:
		line("agent:\n  addresses: %s", quotedList(n.pinned))
	case n.command == "init":
		line("agent:\n  interface: %q", n.link)
	}
	return b.String()
}

func quotedList(list []string) string {
	var quoted []string
	for _, s := range list {
		quoted = append(quoted, fmt.Sprintf("%q", s))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// start has the roles run now and at each boot where systemd does that, and says what is
// to be run elsewhere. A machine that has the file alone has it installed. Roles that an
// install started read their new configuration.
func (n *newNode) start(ctx context.Context) error {
	m := servicesHere()
	switch {
	case m == nil:
	case n.config != install.ConfigFile:
		fmt.Fprintf(n.a.err, "netctl's units read %s, and not %s\n", install.ConfigFile, n.config)
	default:
		if err := n.startUnit(ctx, m); err != nil {
			return fmt.Errorf("%s: all is written, but the node does not run: %w", n.command, err)
		}
		fmt.Fprintf(n.a.err, "node %s runs, and will at each boot\n", n.s.Node)
		return nil
	}
	fmt.Fprintf(n.a.err, "node %s is ready; its roles start with: netctl node --config %s\n", n.s.Node, n.config)
	return nil
}

// startUnit starts the node's units: those that start with the machine already, or the one
// of all roles. A machine that has none gets what an install of this very file lays down.
func (n *newNode) startUnit(ctx context.Context, m *services) error {
	if _, err := m.run(ctx, "cat", install.UnitName("node")); err != nil {
		out := n.a.out
		n.a.out = n.a.err // of init the output is the line for the next machine alone
		defer func() { n.a.out = out }()
		o := installOptions{Options: install.Options{Prefix: install.DefaultPrefix}, enable: true, ignoreChecks: true, brief: true}
		if err := n.a.install(ctx, o); err != nil {
			return err
		}
	}
	roles, err := install.Enabled("")
	if err != nil {
		return err
	}
	if len(roles) == 0 {
		roles = []string{"node"}
	}
	for _, role := range roles {
		for _, verb := range []string{"enable", "restart"} {
			if _, err := m.run(ctx, verb, install.UnitName(role)); err != nil {
				return fmt.Errorf("%w (journalctl -u %s)", err, install.UnitName(role))
			}
		}
	}
	return nil
}
