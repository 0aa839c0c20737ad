package bgp

import (
	"fmt"
	"strings"
	"unicode/utf8"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// fault is what ends a session by NOTIFICATION (RFC 4271, section 6): the
// message and how it reads to a person.
type fault struct {
	code, subcode uint8
	payload       []byte
	words         string
}

func (f *fault) Error() string { return f.words }

// Error codes (RFC 4271, section 4.5) and the subcodes that are told apart here.
const (
	codeHeader     = codec.BGP_ERROR_MESSAGE_HEADER_ERROR
	codeOpen       = codec.BGP_ERROR_OPEN_MESSAGE_ERROR
	codeUpdate     = codec.BGP_ERROR_UPDATE_MESSAGE_ERROR
	codeHold       = codec.BGP_ERROR_HOLD_TIMER_EXPIRED
	codeFSM        = codec.BGP_ERROR_FSM_ERROR
	codeCease      = codec.BGP_ERROR_CEASE
	codeRefresh    = 7 // RFC 7313
	codeSendHold   = 8 // RFC 9687
	ceaseLimit     = codec.BGP_ERROR_SUB_MAXIMUM_NUMBER_OF_PREFIXES_REACHED
	ceaseShutdown  = codec.BGP_ERROR_SUB_ADMINISTRATIVE_SHUTDOWN
	ceaseRemoved   = codec.BGP_ERROR_SUB_PEER_DECONFIGURED
	ceaseReset     = codec.BGP_ERROR_SUB_ADMINISTRATIVE_RESET
	ceaseChange    = codec.BGP_ERROR_SUB_OTHER_CONFIGURATION_CHANGE
	ceaseCollision = codec.BGP_ERROR_SUB_CONNECTION_COLLISION_RESOLUTION
	ceaseHard      = codec.BGP_ERROR_SUB_HARD_RESET
	ceaseBFD       = 10 // RFC 9384
)

// cease is a Cease with the text of RFC 9003.
func cease(subcode uint8, text string) *fault {
	var payload []byte
	if subcode == ceaseShutdown || subcode == ceaseReset {
		for len(text) > 255 || !utf8.ValidString(text) {
			text = text[:len(text)-1]
		}
		payload = append([]byte{byte(len(text))}, text...)
	}
	return &fault{codeCease, subcode, payload, spell(codeCease, subcode, payload)}
}

// hard wraps f in Cease/Hard Reset (RFC 8538, section 3): with N agreed
// a plain Cease would keep the routes.
func (f *fault) hard() *fault {
	payload := append([]byte{f.code, f.subcode}, f.payload...)
	return &fault{codeCease, ceaseHard, payload, f.words}
}

// message is the NOTIFICATION on the wire.
func (f *fault) message() []byte {
	payload := f.payload
	if most := maxMessage - headerLen - 2; len(payload) > most {
		payload = payload[:most]
	}
	b := appendHeader(nil, codec.BGP_MSG_NOTIFICATION)
	b = append(b, f.code, f.subcode)
	return finish(append(b, payload...), 0)
}

// isLimit says whether the prefix limit ended the session.
func (f *fault) isLimit() bool {
	if f.code == codeCease && f.subcode == ceaseHard && len(f.payload) >= 2 {
		return (&fault{code: f.payload[0], subcode: f.payload[1]}).isLimit()
	}
	return f.code == codeCease && f.subcode == ceaseLimit
}

// holds reports whether the idle state is kept for a while: errors that will
// come back, not lost connections.
func (f *fault) holds() bool {
	if f.code == codeCease && f.subcode == ceaseHard && len(f.payload) >= 2 {
		return (&fault{code: f.payload[0], subcode: f.payload[1]}).holds()
	}
	return f.code == codeHeader || f.code == codeOpen || f.code == codeUpdate || f.code == codeRefresh || f.isLimit()
}

// notification reads a received NOTIFICATION; body has at least two bytes.
func notification(body []byte) *fault {
	f := &fault{code: body[0], subcode: body[1], payload: body[2:]}
	f.words = "peer says " + spell(f.code, f.subcode, f.payload)
	return f
}

// spell puts a NOTIFICATION into words.
func spell(code, subcode uint8, payload []byte) string {
	if code == codeCease && subcode == ceaseHard && len(payload) >= 2 {
		return spell(payload[0], payload[1], payload[2:])
	}
	text := codeNames(code)
	if sub := subcodeName(code, subcode); sub != "" {
		text = sub
	} else if subcode != 0 {
		text = fmt.Sprintf("%s (subcode %d)", text, subcode)
	}
	if code == codeCease && (subcode == ceaseShutdown || subcode == ceaseReset) && len(payload) > 1 {
		if n := int(payload[0]); n > 0 && n < len(payload) {
			text += ": " + printable(string(payload[1:1+n]))
		}
	}
	return text
}

// printable keeps a peer's text from moving a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func codeNames(code uint8) string {
	switch code {
	case codeHeader:
		return "message header error"
	case codeOpen:
		return "OPEN error"
	case codeUpdate:
		return "UPDATE error"
	case codeHold:
		return "hold timer expired"
	case codeFSM:
		return "state machine error"
	case codeCease:
		return "cease"
	case codeRefresh:
		return "ROUTE-REFRESH error"
	case codeSendHold:
		return "send hold timer expired"
	}
	return fmt.Sprintf("error %d", code)
}

// subcodeName follows RFC 4271 (sections 6.1–6.3), 4486, 5492, 6608, 7313, 8538 and 9384.
func subcodeName(code, subcode uint8) string {
	var names []string
	switch code {
	case codeHeader:
		names = []string{"connection not synchronized", "bad message length", "bad message type"}
	case codeOpen:
		names = []string{"unsupported version", "bad peer AS", "bad BGP identifier", "unsupported optional parameter",
			"", "unacceptable hold time", "unsupported capability"}
	case codeUpdate:
		names = []string{"malformed attribute list", "unrecognized well-known attribute", "missing well-known attribute",
			"attribute flags error", "attribute length error", "invalid ORIGIN", "", "invalid NEXT_HOP",
			"optional attribute error", "invalid network field", "malformed AS_PATH"}
	case codeRefresh:
		names = []string{"invalid message length"}
	case codeFSM:
		names = []string{"unexpected message in OpenSent", "unexpected message in OpenConfirm", "unexpected message in Established"}
	case codeCease:
		names = []string{"too many prefixes", "administrative shutdown", "peer de-configured", "administrative reset",
			"connection rejected", "configuration change", "connection collision", "out of resources", "hard reset", "BFD down"}
	}
	if subcode == 0 || int(subcode) > len(names) {
		return ""
	}
	return names[subcode-1]
}
