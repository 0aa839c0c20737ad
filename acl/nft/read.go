package nft

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// kernel is what the table holds now.
type kernel struct {
	awake, dormant map[nftables.TableFamily]bool // the tables that exist
	chains         map[string]*kernelChain
	sets           map[string]*kernelSet
	counts         counts // of the chains that are to be filled anew
}

type kernelChain struct {
	base           bool
	hook, priority uint32
	policy         uint32
	kind           string
	hashes         [][8]byte // of the rules in order; zero: not one of ours
	handles        []uint64  // of the rules in order
}

type kernelSet struct {
	flags, keyType, keyLen uint32
	elements               []kernelElement
}

// kernelElement is an element as encodeElement makes it.
type kernelElement struct {
	key, verdict string
	last         string // of a concatenation of ranges
	end          bool
}

// readAttempts is how often a dump is taken again that somebody's commit cut
// through.
const readAttempts = 5

// snapshot reads the table: every object once, no rule's expressions.
func (t *Table) snapshot() (*kernel, error) {
	for range readAttempts {
		before, err := generation(t.read)
		if err != nil {
			return nil, err
		}
		k, err := readTable(t.read)
		after, genErr := generation(t.read)
		if genErr != nil {
			return nil, genErr
		}
		if before == after {
			t.at = after
			return k, err
		}
	}
	return nil, fmt.Errorf("read table %s: %w", acl.TableName, errors.New("it keeps changing"))
}

func readTable(c *netlink.Conn) (*kernel, error) {
	k := &kernel{
		awake: map[nftables.TableFamily]bool{}, dormant: map[nftables.TableFamily]bool{},
		chains: map[string]*kernelChain{}, sets: map[string]*kernelSet{},
	}
	for _, t := range tables() {
		if err := k.readFlags(c, t); err != nil {
			return nil, err
		}
		if !k.awake[t.Family] && !k.dormant[t.Family] {
			continue
		}
		if err := cmp.Or(k.readChains(c, t), k.readRules(c, t), k.readSets(c, t)); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// objects asks for objects of one of our tables and returns the attributes of each; attrs
// follow the table's name in the question.
func objects(c *netlink.Conn, t *nftables.Table, msg, flags uint16, attrs ...netlink.Attribute) ([][]byte, error) {
	attrs = append([]netlink.Attribute{textAttribute(1, acl.TableName)}, attrs...)
	question, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	m := message(msg, flags, question)
	m.Data[0] = byte(t.Family)
	answer, err := c.Execute(m)
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", acl.TableName, err)
	}
	var out [][]byte
	for _, m := range answer {
		if list := body(m.Data); ofOurTable(list) { // a dump of chains has those of all tables
			out = append(out, list)
		}
	}
	return out, nil
}

func textAttribute(kind uint16, text string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: []byte(text + "\x00")}
}

// message has a nfgenmsg (linux/netfilter/nfnetlink.h) of family inet before
// the attributes.
func message(msg, flags uint16, list []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | msg),
			Flags: netlink.Request | netlink.HeaderFlags(flags),
		},
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, list...),
	}
}

func generation(c *netlink.Conn) (uint32, error) {
	answer, err := c.Execute(message(unix.NFT_MSG_GETGEN, 0, nil))
	if err != nil {
		return 0, fmt.Errorf("read nftables generation: %w", err)
	}
	var id uint32
	found := false
	for _, m := range answer {
		err := walk(body(m.Data), func(a attribute) {
			if a.kind == unix.NFTA_GEN_ID {
				id, found = a.number(), true
			}
		})
		if err != nil {
			return 0, err
		}
	}
	if !found {
		return 0, errors.New("read nftables generation: no answer")
	}
	return id, nil
}

// tableDormant is NFT_TABLE_F_DORMANT: the base chains are switched off.
const tableDormant = 1

func (k *kernel) readFlags(c *netlink.Conn, t *nftables.Table) error {
	answer, err := objects(c, t, unix.NFT_MSG_GETTABLE, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	for _, list := range answer {
		dormant := false
		err = errors.Join(err, walk(list, func(a attribute) {
			if a.kind == unix.NFTA_TABLE_FLAGS {
				dormant = a.number()&tableDormant != 0
			}
		}))
		k.dormant[t.Family], k.awake[t.Family] = dormant, !dormant
	}
	return err
}

func (k *kernel) readChains(c *netlink.Conn, t *nftables.Table) error {
	answer, err := objects(c, t, unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
	if err != nil {
		return err
	}
	for _, list := range answer {
		name, chain, err := readChain(list)
		if err != nil {
			return err
		}
		if tableOf(name).Family == t.Family {
			k.chains[name] = chain
		}
	}
	return nil
}

func readChain(list []byte) (name string, chain *kernelChain, err error) {
	chain = &kernelChain{}
	err = walk(list, func(a attribute) {
		switch a.kind {
		case unix.NFTA_CHAIN_NAME:
			name = a.text()
		case unix.NFTA_CHAIN_TYPE:
			chain.kind = a.text()
		case unix.NFTA_CHAIN_POLICY:
			chain.policy = a.number()
		case unix.NFTA_CHAIN_HOOK:
			chain.base = true
			a.walk(func(a attribute) {
				switch a.kind {
				case unix.NFTA_HOOK_HOOKNUM:
					chain.hook = a.number()
				case unix.NFTA_HOOK_PRIORITY:
					chain.priority = a.number()
				}
			})
		}
	})
	return name, chain, err
}

func (k *kernel) readRules(c *netlink.Conn, t *nftables.Table, attrs ...netlink.Attribute) error {
	answer, err := objects(c, t, unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, attrs...)
	if err != nil {
		return err
	}
	for _, list := range answer {
		chain, hash, handle, err := readRule(list)
		if err != nil {
			return err
		}
		if ch := k.chains[chain]; ch != nil && tableOf(chain).Family == t.Family {
			ch.hashes, ch.handles = append(ch.hashes, hash), append(ch.handles, handle)
		}
	}
	return nil
}

func readRule(list []byte) (chain string, hash [8]byte, handle uint64, err error) {
	err = walk(list, func(a attribute) {
		switch a.kind {
		case unix.NFTA_RULE_CHAIN:
			chain = a.text()
		case unix.NFTA_RULE_USERDATA:
			hash = hashOf(a.data)
		case unix.NFTA_RULE_HANDLE:
			handle = a.handle()
		}
	})
	return chain, hash, handle, err
}

// hashOf finds our entry in a rule's user data, which anybody may have written.
func hashOf(udata []byte) [8]byte {
	for len(udata) >= 2 && len(udata) >= 2+int(udata[1]) {
		value := udata[2 : 2+int(udata[1])]
		if userdata.Type(udata[0]) == udataHash && len(value) == 8 {
			return [8]byte(value)
		}
		udata = udata[2+len(value):]
	}
	return [8]byte{}
}

func (k *kernel) readSets(c *netlink.Conn, t *nftables.Table) error {
	answer, err := objects(c, t, unix.NFT_MSG_GETSET, unix.NLM_F_DUMP)
	if err != nil {
		return err
	}
	for _, list := range answer {
		name, set, err := readSet(list)
		if err != nil {
			return err
		}
		if set.flags&unix.NFT_SET_ANONYMOUS != 0 || tableOf(name).Family != t.Family {
			continue
		}
		k.sets[name] = set
		if set.flags&unix.NFT_SET_EVAL != 0 {
			continue // nobody asks for a meter's elements
		}
		if err := set.readElements(c, t, name); err != nil {
			return err
		}
	}
	return nil
}

func readSet(list []byte) (name string, set *kernelSet, err error) {
	set = &kernelSet{}
	err = walk(list, func(a attribute) {
		switch a.kind {
		case unix.NFTA_SET_NAME:
			name = a.text()
		case unix.NFTA_SET_FLAGS:
			set.flags = a.number()
		case unix.NFTA_SET_KEY_TYPE:
			set.keyType = a.number()
		case unix.NFTA_SET_KEY_LEN:
			set.keyLen = a.number()
		}
	})
	return name, set, err
}

func (s *kernelSet) readElements(c *netlink.Conn, t *nftables.Table, name string) error {
	answer, err := objects(c, t, unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, textAttribute(unix.NFTA_SET_ELEM_LIST_SET, name))
	if err != nil {
		return err
	}
	for _, list := range answer {
		err := walk(list, func(a attribute) {
			if a.kind == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				a.walk(func(a attribute) { s.elements = append(s.elements, readElement(a)) })
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func readElement(a attribute) (e kernelElement) {
	a.walk(func(a attribute) {
		switch a.kind {
		case unix.NFTA_SET_ELEM_FLAGS:
			e.end = a.number()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_KEY:
			a.walk(func(a attribute) {
				if a.kind == unix.NFTA_DATA_VALUE {
					e.key = string(a.data)
				}
			})
		case nftables.NFTA_SET_ELEM_KEY_END:
			a.walk(func(a attribute) {
				if a.kind == unix.NFTA_DATA_VALUE {
					e.last = string(a.data)
				}
			})
		case unix.NFTA_SET_ELEM_DATA:
			a.walk(func(a attribute) {
				if a.kind == unix.NFTA_DATA_VERDICT {
					e.verdict = readVerdict(a)
				}
			})
		}
	})
	return e
}

func readVerdict(a attribute) string {
	var code int32
	var chain string
	a.walk(func(a attribute) {
		switch a.kind {
		case unix.NFTA_VERDICT_CODE:
			code = int32(a.number())
		case unix.NFTA_VERDICT_CHAIN:
			chain = a.text()
		}
	})
	return verdictText(code, chain)
}

func verdictText(code int32, chain string) string { return strconv.Itoa(int(code)) + " " + chain }
