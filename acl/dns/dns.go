// Package dns reads what DNS servers answer about the addresses of names.
//
// It sends nothing, keeps nothing, and trusts nothing that is not in the answer: the
// question, which is part of it, and the records that lead from its name to addresses.
package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"netctl/datastore"
)

// maxAliases is how many aliases lead from a name to its addresses at most.
const maxAliases = 16

// ErrNone says that a message tells no address of a name.
var ErrNone = errors.New("no answer about addresses")

// Answer is what a server said of a name.
type Answer struct {
	// Name is what was asked for, as datastore.CanonicalDomain has it.
	Name      string
	Addresses []Address
}

// Address is one of a name, and for how long it is said to be: the least of all the records
// that lead to it.
type Address struct {
	netip.Addr
	TTL time.Duration
}

// Parse reads a DNS message (RFC 1035, section 4). The error says why it is of no use, and
// wraps ErrNone where it is a message all the same. Addresses that nobody is reached at by a
// route are left out: loopback, link-local, multicast and those that stand for none.
func Parse(message []byte) (Answer, error) {
	var p dnsmessage.Parser
	head, err := p.Start(message)
	if err != nil {
		return Answer{}, fmt.Errorf("DNS message: %w", err)
	}
	if !head.Response || head.OpCode != 0 || head.RCode != dnsmessage.RCodeSuccess {
		return Answer{}, ErrNone
	}
	questions, err := p.AllQuestions()
	if err != nil {
		return Answer{}, fmt.Errorf("DNS question: %w", err)
	}
	if len(questions) != 1 || questions[0].Class != dnsmessage.ClassINET || questions[0].Type != dnsmessage.TypeA && questions[0].Type != dnsmessage.TypeAAAA {
		return Answer{}, ErrNone
	}
	r, err := readRecords(&p)
	if err != nil {
		return Answer{}, err
	}
	answer := Answer{Name: datastore.CanonicalDomain(questions[0].Name.String())}
	if answer.Addresses = r.follow(answer.Name); len(answer.Addresses) == 0 {
		return Answer{}, ErrNone
	}
	return answer, nil
}

// records are those of an answer that have to do with addresses, by their names.
type records struct {
	aliases   map[string]alias
	addresses map[string][]Address
}

type alias struct {
	to  string
	ttl time.Duration
}

// readRecords reads the section of answers.
func readRecords(p *dnsmessage.Parser) (records, error) {
	r := records{map[string]alias{}, map[string][]Address{}}
	for {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return r, nil
		}
		if err == nil {
			err = r.add(p, h)
		}
		if err != nil {
			return r, fmt.Errorf("DNS answer: %w", err)
		}
	}
}

func (r records) add(p *dnsmessage.Parser, h dnsmessage.ResourceHeader) error {
	name, ttl := datastore.CanonicalDomain(h.Name.String()), timeToLive(h.TTL)
	if h.Class != dnsmessage.ClassINET {
		return p.SkipAnswer()
	}
	switch h.Type {
	case dnsmessage.TypeCNAME:
		c, err := p.CNAMEResource()
		if err != nil {
			return err
		}
		if _, has := r.aliases[name]; !has { // a name has one (RFC 1034, section 3.6.2)
			r.aliases[name] = alias{datastore.CanonicalDomain(c.CNAME.String()), ttl}
		}
	case dnsmessage.TypeA:
		a, err := p.AResource()
		if err != nil {
			return err
		}
		r.address(name, netip.AddrFrom4(a.A), ttl)
	case dnsmessage.TypeAAAA:
		a, err := p.AAAAResource()
		if err != nil {
			return err
		}
		r.address(name, netip.AddrFrom16(a.AAAA), ttl)
	default:
		return p.SkipAnswer()
	}
	return nil
}

func (r records) address(name string, a netip.Addr, ttl time.Duration) {
	if reachable(a) {
		r.addresses[name] = append(r.addresses[name], Address{a, ttl})
	}
}

// reachable says whether an address may be somebody's that a route leads to (RFC 6890).
func reachable(a netip.Addr) bool {
	if a.Is4() {
		if first := a.As4()[0]; first == 0 || first >= 240 {
			return false
		}
	}
	return !a.Is4In6() && a.IsGlobalUnicast()
}

// timeToLive is what a record says; with the first bit set it says 0 (RFC 2181, section 8).
func timeToLive(seconds uint32) time.Duration {
	if seconds > 1<<31-1 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// follow leads from a name over its aliases to the addresses, which last no longer than what
// leads there.
func (r records) follow(name string) []Address {
	least := time.Duration(-1)
	for range maxAliases + 1 {
		if list := r.addresses[name]; len(list) > 0 {
			for i := range list {
				if least >= 0 {
					list[i].TTL = min(list[i].TTL, least)
				}
			}
			return list
		}
		next, is := r.aliases[name]
		if !is {
			return nil
		}
		if name = next.to; least < 0 || next.ttl < least {
			least = next.ttl
		}
	}
	return nil
}
