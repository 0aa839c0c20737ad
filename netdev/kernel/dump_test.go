package kernel

import (
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

// A list that changed while it was read is read again.
func TestDumpInterrupted(t *testing.T) {
	asked := 0
	nl := nltest.Dial(func(req []netlink.Message) ([]netlink.Message, error) {
		asked++
		m := netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWLINK, Sequence: req[0].Header.Sequence}}
		if asked < 3 {
			m.Header.Flags = netlink.DumpInterrupted
		}
		return []netlink.Message{m}, nil
	})
	c := &conn{nl: nl}
	defer c.close()
	res, err := c.dump(message(unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg), nil))
	if err != nil || len(res) != 1 || asked != 3 {
		t.Errorf("asked %d times: %v, %v", asked, res, err)
	}
}
