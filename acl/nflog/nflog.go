// Package nflog reads the packets that rules of the packet filter log, over
// nfnetlink_log.
//
// It changes nothing but who reads the group, and decides nothing. The kernel gives a
// group to one reader of a network namespace.
package nflog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// Messages and attributes of nfnetlink_log (linux/netfilter/nfnetlink_log.h).
const (
	subsystem = 4 // NFNL_SUBSYS_ULOG
	msgPacket = 0 // NFULNL_MSG_PACKET
	msgConfig = 1 // NFULNL_MSG_CONFIG

	attrTimestamp = 3
	attrInDevice  = 4
	attrOutDevice = 5
	attrPayload   = 9
	attrPrefix    = 10

	configCommand   = 1
	configMode      = 2
	configTimeout   = 4
	configThreshold = 5

	commandBind = 1 // NFULNL_CFG_CMD_BIND
	copyPacket  = 2 // NFULNL_COPY_PACKET
)

// copied is how much of each packet is looked at, in bytes: the headers.
const copied = 128

// copiedDatagram is the longest datagram that is looked at, with its headers, in bytes: more
// than DNS servers answer by UDP (RFC 9715).
const copiedDatagram = 4096 + copied

// readBuffer in bytes, forced: a burst must not overrun.
const readBuffer = 4 << 20

// ErrTaken says that another program reads the group.
var ErrTaken = errors.New("another program reads it")

// Entry is a packet that was logged.
type Entry struct {
	Time time.Time
	// Prefix is that of the rule: what, direction and whose, as the package acl has it.
	Prefix string
	// Packet is what its headers say, without groups and state. A link is "" where the
	// packet has none.
	acl.Packet
}

// Datagram is a UDP datagram that was logged.
type Datagram struct {
	// OutIndex is the link that it leaves by.
	OutIndex int
	acl.Packet
	// Payload is fn's until it returns.
	Payload []byte
}

// Listen calls fn for each packet that is logged to the group in the current network
// namespace, until ctx ends (nil) or fn fails. It is root's.
func Listen(ctx context.Context, group uint16, fn func(Entry) error) error {
	names := links{}
	return listen(ctx, group, reading{copied: copied}, func(data []byte) error {
		if e, ok := parse(data, names); ok {
			return fn(e)
		}
		return nil
	})
}

// Datagrams calls fn for each UDP datagram that is logged to the group, as Listen does, and as
// soon as it is; bound, if set, once it is the group's reader.
func Datagrams(ctx context.Context, group uint16, bound func(), fn func(Datagram) error) error {
	return listen(ctx, group, reading{copied: copiedDatagram, atOnce: true, bound: bound}, func(data []byte) error {
		if d, ok := parseDatagram(data); ok {
			return fn(d)
		}
		return nil
	})
}

// reading is how a group is read.
type reading struct {
	copied uint32 // of each packet, in bytes
	atOnce bool   // each by itself, not several together
	bound  func()
}

// listen calls fn for each message of the group.
func listen(ctx context.Context, group uint16, how reading, fn func(data []byte) error) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open NFLOG socket: %w", err)
	}
	defer c.Close()
	_ = c.SetReadBuffer(readBuffer)
	if err := bind(c, group, how); err != nil {
		return err
	}
	if how.bound != nil {
		how.bound()
	}
	// The deadline of a context that ended lies in the past: reads end.
	defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		messages, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // some were lost
			continue
		case err != nil:
			return fmt.Errorf("read NFLOG group %d: %w", group, err)
		}
		for _, m := range messages {
			if m.Header.Type != subsystem<<8|msgPacket {
				continue
			}
			if err := fn(m.Data); err != nil {
				return err
			}
		}
	}
}

// bind makes the socket the reader of the group.
func bind(c *netlink.Conn, group uint16, how reading) error {
	mode := append(binary.BigEndian.AppendUint32(nil, how.copied), copyPacket, 0)
	configs := []netlink.Attribute{
		{Type: configCommand, Data: []byte{commandBind}},
		{Type: configMode, Data: mode},
		{Type: configTimeout, Data: binary.BigEndian.AppendUint32(nil, 1)}, // hundredths of a second
	}
	if how.atOnce {
		configs = append(configs, netlink.Attribute{Type: configThreshold, Data: binary.BigEndian.AppendUint32(nil, 1)})
	}
	for _, config := range configs {
		attr, err := netlink.MarshalAttributes([]netlink.Attribute{config})
		if err != nil {
			return err
		}
		head := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, group)
		_, err = c.Execute(netlink.Message{
			Header: netlink.Header{Type: subsystem<<8 | msgConfig, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(head, attr...),
		})
		switch {
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EPERM) && os.Geteuid() == 0:
			return fmt.Errorf("NFLOG group %d: %w", group, ErrTaken)
		case err != nil:
			return fmt.Errorf("NFLOG group %d: %w", group, err)
		}
	}
	return nil
}

// links are the names of interfaces by their index.
type links map[uint32]string

func (l links) name(index uint32) string {
	if name, ok := l[index]; ok {
		return name
	}
	found, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return ""
	}
	l[index] = found.Name
	return found.Name
}

// parse reads a message; false: it is of no use.
func parse(data []byte, names links) (e Entry, ok bool) {
	const head = 4 // struct nfgenmsg
	if len(data) < head {
		return e, false
	}
	attrs, err := netlink.UnmarshalAttributes(data[head:])
	if err != nil {
		return e, false
	}
	e.Time = time.Now()
	for _, a := range attrs {
		switch a.Type {
		case attrTimestamp:
			if len(a.Data) == 16 {
				e.Time = time.Unix(int64(binary.BigEndian.Uint64(a.Data)), int64(binary.BigEndian.Uint64(a.Data[8:]))*1000)
			}
		case attrInDevice:
			if len(a.Data) == 4 {
				e.InLink = names.name(binary.BigEndian.Uint32(a.Data))
			}
		case attrOutDevice:
			if len(a.Data) == 4 {
				e.OutLink = names.name(binary.BigEndian.Uint32(a.Data))
			}
		case attrPrefix:
			e.Prefix = strings.TrimRight(string(a.Data), "\x00")
		case attrPayload:
			ok = headers(a.Data, &e.Packet)
		}
	}
	return e, ok
}

// parseDatagram reads a message about a UDP datagram; false: it is none.
func parseDatagram(data []byte) (d Datagram, ok bool) {
	const head = 4 // struct nfgenmsg
	if len(data) < head {
		return d, false
	}
	attrs, err := netlink.UnmarshalAttributes(data[head:])
	if err != nil {
		return d, false
	}
	for _, a := range attrs {
		switch a.Type {
		case attrOutDevice:
			if len(a.Data) == 4 {
				d.OutIndex = int(binary.BigEndian.Uint32(a.Data))
			}
		case attrPayload:
			d.Payload, ok = datagram(a.Data, &d.Packet)
		}
	}
	return d, ok
}
