package bgp

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// endWords tells a fault to be sent from a connection that is simply gone.
func endWords(err error) (*fault, string) {
	var flt *fault
	switch {
	case errors.As(err, &flt):
		return flt, flt.words
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &fault{codeHold, 0, nil, "hold timer expired"}, "hold timer expired"
	case errors.Is(err, io.EOF):
		return nil, "connection closed by peer"
	}
	return nil, "connection lost: " + plain(err)
}

// plain is the innermost text of a network error.
func plain(err error) string {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys.Err.Error()
	}
	return err.Error()
}

// dialWords puts a failed dial into words.
func (p PeerConfig) dialWords(err error) string {
	var net interface{ Timeout() bool }
	var setup *setupError
	switch {
	case errors.As(err, &setup):
		return setup.Error()
	case errors.As(err, &net) && net.Timeout() && p.Password != "":
		return "no answer: it has another password or none, or cannot be reached"
	case errors.As(err, &net) && net.Timeout() && p.TTLSecurity > 0:
		return "no answer: it is more hops away, has no TTL security, or cannot be reached"
	case errors.As(err, &net) && net.Timeout():
		return "no answer"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "local address is not on this host"
	}
	return plain(err)
}
