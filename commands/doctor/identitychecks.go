package doctor

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"netctl/datastore"
	"netctl/netdev/kernel"
)

func nodeName(_ context.Context, s *scene) ([]Finding, error) {
	name := s.cfg.Node
	rename := []string{"hostnamectl set-hostname NAME   # one that no other machine has", "# or `node: NAME` in /etc/netctl.yaml"}
	if err := datastore.CheckName(name); err != nil {
		return []Finding{{What: fmt.Sprintf("node name %q: %v", name, err), Fix: rename, Fatal: true}}, nil
	}
	if first, _, _ := strings.Cut(name, "."); first == "localhost" {
		return []Finding{{What: fmt.Sprintf("node name %q: every machine without a name of its own is called so", name), Fix: rename, Fatal: true}}, nil
	}
	c, err := s.cluster()
	if err != nil {
		if s.cfg.Cluster == nil && s.cfg.ClusterErr == nil {
			return nil, nil
		}
		return nil, err
	}
	host := s.hostID()
	for _, n := range c.Nodes {
		switch {
		case n.Metadata.Name == name && n.Status.Host != "" && n.Status.Host != host:
			var seen time.Time
			if r := c.report(name, datastore.ReportAgent); r != nil {
				seen = r.Status.Seen
			}
			return []Finding{{What: fmt.Sprintf("node %s: %s", name, n.RegisteredBy(cmp.Or(host, "without an ID yet"), seen)), Fix: append(rename, "netctl node remove "+name+"   # if the other machine is gone"), Fatal: true}}, nil
		case n.Metadata.Name != name && host != "" && n.Status.Host == host:
			return []Finding{{What: n.OtherName(name, s.cfg.StateDir+"/host"), Fix: []string{"rm " + s.cfg.StateDir + "/host   # if this machine is a copy of node " + n.Metadata.Name, "# or `node: " + n.Metadata.Name + "` in /etc/netctl.yaml, if it is that node"}, Fatal: true}}, nil
		}
	}
	return nil, nil
}

func nodeAddress(ctx context.Context, s *scene) (found []Finding, err error) {
	if s.cfg.Cluster == nil && s.cfg.ClusterErr != nil {
		err = s.cfg.ClusterErr
	}
	links, linkErr := s.uplinks()
	if linkErr != nil {
		return nil, linkErr
	}
	if len(links) == 0 {
		return []Finding{{What: "no interface that is up, and leads to other machines, has an address", Fix: []string{"ip -brief address", "ip link set INTERFACE up && ip address add ADDRESS/LENGTH dev INTERFACE"}}}, err
	}
	for _, l := range links {
		if s.cfg.Cluster != nil {
			for _, n := range s.cfg.Cluster.Nodes {
				for _, p := range n.Spec.Addresses {
					if n.Metadata.Name != s.cfg.Node && slices.ContainsFunc(l.Addresses, func(own netip.Prefix) bool { return own.Addr() == p.Addr() }) {
						found = append(found, Finding{What: fmt.Sprintf("%s, on %s here, is the address of node %s", p.Addr(), l.Name, n.Metadata.Name),
							Fix: []string{fmt.Sprintf("ip address del %s dev %s   # and give this host an address of its own", p.Addr(), l.Name), "netctl node remove " + n.Metadata.Name + "   # if that machine is gone"}})
					}
				}
			}
		}
		for _, a := range l.Duplicates {
			found = append(found, Finding{What: fmt.Sprintf("%s on %s: the kernel found another machine that has it", a, l.Name),
				Fix: []string{fmt.Sprintf("ip address del %s dev %s   # and give this host an address of its own", a, l.Name)}})
		}
	}
	for _, v6 := range []bool{false, true} {
		o, ok, addrErr := s.address(v6)
		if addrErr != nil {
			return found, addrErr
		}
		if !ok && len(s.cfg.Addresses) > 0 && slices.ContainsFunc(s.cfg.Addresses, func(a netip.Addr) bool { return a.Is6() == v6 }) {
			found = append(found, Finding{What: "an address of agent.addresses is on no interface of this host", Fix: []string{"ip -brief address", "# correct `agent: {addresses: […]}` in /etc/netctl.yaml"}})
		}
		if !ok || v6 || o.onLo { // the kernel looks for duplicates of IPv6 addresses itself
			continue
		}
		mac, claimErr := s.Claimed(ctx, o.link.Name, o.addr)
		switch {
		case claimErr != nil:
			err = fmt.Errorf("ask who has %s on %s: %w", o.addr, o.link.Name, claimErr)
		case mac != "":
			found = append(found, Finding{What: fmt.Sprintf("%s, this node's address on %s, is answered for by another machine, %s", o.addr, o.link.Name, mac),
				Fix: []string{fmt.Sprintf("ip address del %s dev %s   # and give this host an address of its own", o.addr, o.link.Name)}})
		}
	}
	return found, err
}

// mostSkew is by how much clocks may differ: certificates are made with the time that it
// is, and reports are judged by it.
const mostSkew = 2 * time.Second

func clock(ctx context.Context, s *scene) (found []Finding, err error) {
	fix := []string{"apt-get install chrony && systemctl enable --now chrony", "chronyc makestep"}
	now := s.Now()
	if now.Year() < 2020 {
		return []Finding{{What: "the clock says " + now.UTC().Format(time.RFC3339), Fix: fix, Fatal: true}}, nil
	}
	for _, file := range s.cfg.Certificates {
		if c, err := s.certificate(file); err == nil && now.Before(c.NotBefore) {
			return []Finding{{What: fmt.Sprintf("the clock says %s, and certificate %s is valid from %s: it is slow, or that of who made it is fast", now.UTC().Format(time.RFC3339), file, c.NotBefore.UTC().Format(time.RFC3339)), Fix: fix, Fatal: true}}, nil
		}
	}
	dated, off := s.dates(ctx)
	if off != "" {
		return []Finding{{What: off, Fix: fix}}, nil
	}
	others, err := s.others()
	if err != nil {
		if dated {
			err = nil
		}
		return nil, err
	}
	for _, n := range others {
		for _, role := range []string{datastore.ReportAgent, datastore.ReportSpeaker} {
			if n.node == nil {
				continue
			}
			if r := s.cfg.Cluster.report(n.name, role); r != nil && r.Status.Seen.Sub(now) > mostSkew {
				return []Finding{{What: fmt.Sprintf("node %s reported at %s, and the clock here says %s: one of them is wrong by %s", n.name, r.Status.Seen.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), r.Status.Seen.Sub(now).Round(time.Second)), Fix: fix, Fatal: false}}, nil
			}
		}
	}
	from, ok, err := s.address(false)
	if err != nil || !ok {
		return nil, cmpErr(err, skip("this host has no IPv4 address to ask others for their time from"))
	}
	type asked struct {
		of    other
		ahead time.Duration
		err   error
		reply Reply
	}
	answers := ask(others, func(o other) asked {
		if !o.v4.IsValid() {
			return asked{of: o}
		}
		ahead, a, err := s.Clock(ctx, from.addr, o.v4)
		return asked{o, ahead, err, a.Reply}
	})
	told := 0
	if dated {
		told++
	}
	for _, a := range answers {
		if a.err != nil {
			err = a.err
			continue
		}
		if a.reply != Answered {
			continue
		}
		told++
		if a.ahead.Abs() > mostSkew {
			ahead := "behind"
			if a.ahead > 0 {
				ahead = "ahead of"
			}
			found = append(found, Finding{What: fmt.Sprintf("the clock of %s (%s) is %s %s this one", a.of.name, a.of.v4, a.ahead.Abs().Round(10*time.Millisecond), ahead), Fix: fix})
		}
	}
	if told == 0 && err == nil {
		if !slices.ContainsFunc(others, func(o other) bool { return o.alive }) {
			return nil, skip("no other node is up")
		}
		err = fmt.Errorf("no other node tells its time (ICMP timestamp)")
	}
	if told > 0 {
		err = nil
	}
	return found, err
}

// joinPort is where members of the datastore let nodes in, unless a setting says otherwise.
const joinPort = 2378

// mostDateSkew is by how much a date may differ, which comes in whole seconds and by TCP.
const mostDateSkew = 10 * time.Second

// dates compares the date with that of members of the datastore, where nodes join: they
// tell it to whoever asks, also where no certificate is good any more, and ICMP knows the
// time of day alone. off says what is wrong; dated: somebody else told one.
func (s *scene) dates(ctx context.Context) (dated bool, off string) {
	ask := slices.Clone(s.cfg.Members)
	for _, to := range s.cfg.To {
		ask = append(ask, netip.AddrPortFrom(to, joinPort))
	}
	links, _ := s.interfaces()
	ask = slices.DeleteFunc(ask, func(at netip.AddrPort) bool { // itself
		return slices.ContainsFunc(links, func(l kernel.Interface) bool {
			return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr() == at.Addr() })
		})
	})
	type answer struct{ here, there time.Time }
	answers := make([]answer, len(ask))
	var all sync.WaitGroup
	for i, at := range ask {
		all.Go(func() {
			there := s.Date(ctx, at)
			answers[i] = answer{s.Now(), there}
		})
	}
	all.Wait()
	for i, a := range answers {
		if a.there.IsZero() {
			continue
		}
		dated = true
		if by := a.there.Sub(a.here); by.Abs() > mostDateSkew {
			return true, fmt.Sprintf("the clock here says %s, that of %s, where nodes join, %s: one of them is wrong by %s",
				a.here.UTC().Format(time.RFC3339), ask[i], a.there.UTC().Format(time.RFC3339), by.Abs().Round(time.Second))
		}
	}
	return dated, ""
}

func (s *scene) certificate(file string) (*x509.Certificate, error) {
	text, err := s.Read(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s: no certificate in PEM", file)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// certificateSoon is before which end a certificate should have been renewed.
const certificateSoon = 7 * 24 * time.Hour

// authoritySoon is before which end an authority should be replaced: while that goes on,
// nodes that are away for long are to come back.
const authoritySoon = 180 * 24 * time.Hour

func certificates(_ context.Context, s *scene) (found []Finding, err error) {
	if len(s.cfg.Certificates) == 0 {
		return nil, skip("no certificates are configured")
	}
	now := s.Now()
	for _, file := range s.cfg.Certificates {
		c, err := s.certificate(file)
		fix := []string{"openssl x509 -noout -subject -dates -in " + file, "# and put a new certificate of the same CA into its place: it is read for each connection"}
		switch {
		case err != nil:
			found = append(found, Finding{What: fmt.Sprintf("certificate: %v", err), Fix: []string{"ls -l " + file, "# and name the right file in /etc/netctl.yaml"}, Fatal: true})
		case now.After(c.NotAfter):
			found = append(found, Finding{What: fmt.Sprintf("certificate %s ended %s, and the clock here says %s", file, c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)), Fatal: true,
				Fix: append(fix, "date -u   # is it wrong? then set the clock, and nothing else: apt-get install chrony && systemctl enable --now chrony; chronyc makestep")})
		case c.IsCA && c.NotAfter.Sub(now) < authoritySoon:
			found = append(found, Finding{What: fmt.Sprintf("the authority %s ends %s, and every certificate of the cluster with it", file, c.NotAfter.UTC().Format(time.RFC3339)), Fix: []string{"netctl datastore ca rotate   # on a member of the datastore"}})
		case c.NotAfter.Sub(now) < certificateSoon:
			found = append(found, Finding{What: fmt.Sprintf("certificate %s ends %s", file, c.NotAfter.UTC().Format(time.RFC3339)), Fix: fix})
		}
	}
	return found, nil
}
