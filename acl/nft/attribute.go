package nft

import (
	"bytes"
	"encoding/binary"
	"errors"

	"netctl/acl"
	"netctl/netdev"
)

var errMalformed = errors.New("netfilter message: malformed")

// attribute is one of a message's, which the kernel made, or whoever sent it.
type attribute struct {
	kind uint16
	data []byte
	err  *error // of the walk
}

// walk calls visit for each attribute of a list, in order. It fails where the list
// or a value that visit asked for is malformed.
func walk(list []byte, visit func(attribute)) (err error) {
	walkInto(&err, list, visit)
	return err
}

func walkInto(err *error, list []byte, visit func(attribute)) {
	for len(list) > 0 && *err == nil {
		kind, data, rest, ok := netdev.Attribute(list)
		if !ok {
			*err = errMalformed
			return
		}
		visit(attribute{kind, data, err})
		list = rest
	}
}

// walk is that of a nested list.
func (a attribute) walk(visit func(attribute)) { walkInto(a.err, a.data, visit) }

// text ends at its first zero byte.
func (a attribute) text() string {
	text, _, _ := bytes.Cut(a.data, []byte{0})
	return string(text)
}

// number is 32 bits, in network byte order as all of nf_tables.
func (a attribute) number() uint32 {
	if len(a.data) != 4 {
		*a.err = errMalformed
		return 0
	}
	return binary.BigEndian.Uint32(a.data)
}

// handle is 64 bits.
func (a attribute) handle() uint64 {
	if len(a.data) != 8 {
		*a.err = errMalformed
		return 0
	}
	return binary.BigEndian.Uint64(a.data)
}

// body is the attributes of a message, behind its nfgenmsg
// (linux/netfilter/nfnetlink.h).
func body(message []byte) []byte {
	const head = 4
	return message[min(head, len(message)):]
}

// ofOurTable says whether attributes are those of our table or of something in it:
// the table's name is attribute 1 in every message about either.
func ofOurTable(list []byte) bool {
	ours := false
	err := walk(list, func(a attribute) { ours = ours || a.kind == 1 && a.text() == acl.TableName })
	return ours && err == nil
}
