package acl

// ChainMSS keeps the TCP connections of workloads to segments that fit the way to the
// other nodes, where their own interfaces promise more. It is there while some do, since
// each forwarded packet passes it.
const ChainMSS = "mss"

// tcpSYN is the bit of the flags (RFC 9293, section 3.1).
const tcpSYN = 2

// SetMSS bounds the segments of a link's connections, both directions, by the MTU of the
// way in bytes; 0: not any more. It says whether that is news.
func (x *Index) SetMSS(link string, mtu int) bool {
	if x.mss[link] == mtu {
		return false
	}
	if x.mss[link] = mtu; mtu == 0 {
		delete(x.mss, link)
	}
	c := x.chains[ChainMSS]
	if len(x.mss) == 0 {
		x.release(ChainMSS)
		return true
	}
	if c == nil {
		c = x.newChain(ChainMSS)
		c.hook = &Hook{"forward", -150}
	}
	c.refs = 1
	x.recompile(c, compileMSS(x.mss))
	return true
}

// compileMSS writes both families, and what each link sends and receives.
func compileMSS(mtus map[string]int) (p program) {
	p.rules = []Rule{
		match(accept(), Term{Field: L4Proto, Number: protoTCP, Not: true}),
		match(accept(), num(L4Proto, protoTCP), Term{Field: TCPFlags, Number: tcpSYN, Not: true}),
	}
	for _, link := range sortedKeys(mtus) {
		for _, side := range []Field{InLink, OutLink} {
			for _, f := range []struct{ proto, headers uint32 }{{nfIPv4, 20 + 20}, {nfIPv6, 40 + 20}} {
				p.rules = append(p.rules, Rule{
					Match: []Term{num(NFProto, f.proto), {Field: side, Text: link}},
					MSS:   uint16(uint32(mtus[link]) - f.headers),
				})
			}
		}
	}
	return p
}
