package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// kernel is what the table holds now.
type kernel struct {
	exists, dormant bool
	chains          map[string]*kernelChain
	sets            map[string]*kernelSet
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
			return k, err
		}
	}
	return nil, fmt.Errorf("read table %s: %w", acl.TableName, errors.New("it keeps changing"))
}

func readTable(c *netlink.Conn) (*kernel, error) {
	k := &kernel{chains: map[string]*kernelChain{}, sets: map[string]*kernelSet{}}
	if err := k.readFlags(c); err != nil || !k.exists {
		return k, err
	}
	if err := k.readChains(c); err != nil {
		return nil, err
	}
	if err := k.readRules(c); err != nil {
		return nil, err
	}
	return k, k.readSets(c)
}

// request asks for objects of our table; attrs follow the table's name, which
// has attribute number 1 in every message.
func request(c *netlink.Conn, msg, flags uint16, attrs ...netlink.Attribute) ([]netlink.Message, error) {
	attrs = append([]netlink.Attribute{{Type: 1, Data: []byte(acl.TableName + "\x00")}}, attrs...)
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	m, err := c.Execute(message(msg, flags, body))
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", acl.TableName, err)
	}
	return m, nil
}

// message has a nfgenmsg (linux/netfilter/nfnetlink.h) of family inet before
// the attributes.
func message(msg, flags uint16, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | msg),
			Flags: netlink.Request | netlink.HeaderFlags(flags),
		},
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, body...),
	}
}

func decoder(m netlink.Message) (*netlink.AttributeDecoder, error) {
	if len(m.Data) < 4 {
		return nil, fmt.Errorf("netfilter message of %d bytes", len(m.Data))
	}
	return nested(m.Data[4:])
}

func nested(b []byte) (*netlink.AttributeDecoder, error) {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = binary.BigEndian
	return ad, nil
}

func generation(c *netlink.Conn) (uint32, error) {
	m, err := c.Execute(message(unix.NFT_MSG_GETGEN, 0, nil))
	if err != nil {
		return 0, fmt.Errorf("read nftables generation: %w", err)
	}
	for _, m := range m {
		ad, err := decoder(m)
		if err != nil {
			return 0, err
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("read nftables generation: no answer")
}

// tableDormant is NFT_TABLE_F_DORMANT: the base chains are switched off.
const tableDormant = 1

func (k *kernel) readFlags(c *netlink.Conn) error {
	answer, err := request(c, unix.NFT_MSG_GETTABLE, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	for _, m := range answer {
		ad, err := decoder(m)
		if err != nil {
			return err
		}
		k.exists = true
		for ad.Next() {
			if ad.Type() == unix.NFTA_TABLE_FLAGS {
				k.dormant = ad.Uint32()&tableDormant != 0
			}
		}
	}
	return err
}

func (k *kernel) readChains(c *netlink.Conn) error {
	answer, err := request(c, unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
	if err != nil {
		return err
	}
	for _, m := range answer {
		ad, err := decoder(m)
		if err != nil {
			return err
		}
		var table, name string
		chain := &kernelChain{}
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_CHAIN_TABLE:
				table = ad.String()
			case unix.NFTA_CHAIN_NAME:
				name = ad.String()
			case unix.NFTA_CHAIN_TYPE:
				chain.kind = ad.String()
			case unix.NFTA_CHAIN_POLICY:
				chain.policy = ad.Uint32()
			case unix.NFTA_CHAIN_HOOK:
				chain.base = true
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					ad.ByteOrder = binary.BigEndian
					for ad.Next() {
						switch ad.Type() {
						case unix.NFTA_HOOK_HOOKNUM:
							chain.hook = ad.Uint32()
						case unix.NFTA_HOOK_PRIORITY:
							chain.priority = ad.Uint32()
						}
					}
					return nil
				})
			}
		}
		if err := ad.Err(); err != nil {
			return err
		}
		if table == acl.TableName {
			k.chains[name] = chain
		}
	}
	return nil
}

func (k *kernel) readRules(c *netlink.Conn, attrs ...netlink.Attribute) error {
	answer, err := request(c, unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, attrs...)
	if err != nil {
		return err
	}
	for _, m := range answer {
		ad, err := decoder(m)
		if err != nil {
			return err
		}
		var table, chain string
		var hash [8]byte
		var handle uint64
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_RULE_TABLE:
				table = ad.String()
			case unix.NFTA_RULE_CHAIN:
				chain = ad.String()
			case unix.NFTA_RULE_USERDATA:
				hash = hashOf(ad.Bytes())
			case unix.NFTA_RULE_HANDLE:
				handle = ad.Uint64()
			}
		}
		if ch := k.chains[chain]; ch != nil && table == acl.TableName {
			ch.hashes, ch.handles = append(ch.hashes, hash), append(ch.handles, handle)
		}
	}
	return nil
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

func (k *kernel) readSets(c *netlink.Conn) error {
	answer, err := request(c, unix.NFT_MSG_GETSET, unix.NLM_F_DUMP)
	if err != nil {
		return err
	}
	for _, m := range answer {
		ad, err := decoder(m)
		if err != nil {
			return err
		}
		var table, name string
		set := &kernelSet{}
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_SET_TABLE:
				table = ad.String()
			case unix.NFTA_SET_NAME:
				name = ad.String()
			case unix.NFTA_SET_FLAGS:
				set.flags = ad.Uint32()
			case unix.NFTA_SET_KEY_TYPE:
				set.keyType = ad.Uint32()
			case unix.NFTA_SET_KEY_LEN:
				set.keyLen = ad.Uint32()
			}
		}
		if table == acl.TableName && set.flags&unix.NFT_SET_ANONYMOUS == 0 {
			k.sets[name] = set
		}
	}
	for name, s := range k.sets {
		if err := s.readElements(c, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *kernelSet) readElements(c *netlink.Conn, name string) error {
	answer, err := request(c, unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP,
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(name + "\x00")})
	if err != nil {
		return err
	}
	for _, m := range answer {
		ad, err := decoder(m)
		if err != nil {
			return err
		}
		for ad.Next() {
			if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					e, err := readElement(list.Bytes())
					if err != nil {
						return err
					}
					s.elements = append(s.elements, e)
				}
				return nil
			})
		}
		if err := ad.Err(); err != nil {
			return err
		}
	}
	return nil
}

func readElement(b []byte) (kernelElement, error) {
	var e kernelElement
	ad, err := nested(b)
	if err != nil {
		return e, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_FLAGS:
			e.end = ad.Uint32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_KEY:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.NFTA_DATA_VALUE {
						e.key = string(ad.Bytes())
					}
				}
				return nil
			})
		case unix.NFTA_SET_ELEM_DATA:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.NFTA_DATA_VERDICT {
						ad.Nested(e.readVerdict)
					}
				}
				return nil
			})
		}
	}
	return e, ad.Err()
}

func (e *kernelElement) readVerdict(ad *netlink.AttributeDecoder) error {
	ad.ByteOrder = binary.BigEndian
	var code int32
	var chain []byte
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			code = int32(ad.Uint32())
		case unix.NFTA_VERDICT_CHAIN:
			chain = bytes.TrimRight(ad.Bytes(), "\x00")
		}
	}
	e.verdict = verdictText(code, string(chain))
	return nil
}

func verdictText(code int32, chain string) string { return fmt.Sprintf("%d %s", code, chain) }
