package ui

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"netctl/datastore"
)

// NewToken is 130 random bits as text.
func NewToken() string { return rand.Text() }

// CheckListen refuses an address that is not loopback's: what is served is not encrypted.
func CheckListen(address string) error {
	host, port, err := net.SplitHostPort(address)
	if _, wrong := strconv.ParseUint(port, 10, 16); err != nil || wrong != nil {
		return fmt.Errorf("%q: %w: want an address and a port, like 127.0.0.1:7444", address, datastore.ErrInvalid)
	}
	if a, err := netip.ParseAddr(host); err != nil || !a.IsLoopback() {
		return fmt.Errorf("%q: %w: the page is for a browser on this machine (127.0.0.1, ::1); from another one use ssh -L", address, datastore.ErrInvalid)
	}
	return nil
}

// secure says what the page may do: nothing but talk to where it came from.
func secure(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// foreign refuses what another site could have a browser ask: by a name of its own that it
// makes lead here (DNS rebinding), or across origins.
func foreign(r *http.Request) (status int, why string) {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if host != "localhost" && (err != nil || !a.IsLoopback()) {
		return http.StatusMisdirectedRequest, fmt.Sprintf("host %q is not this machine: use 127.0.0.1 or localhost", r.Host)
	}
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
		return http.StatusForbidden, fmt.Sprintf("a page of %s has no place here", origin)
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site":
		if r.URL.Path != "/" || r.Header.Get("Sec-Fetch-Mode") != "navigate" { // a link to the page is no harm
			return http.StatusForbidden, "another site has no place here"
		}
	}
	return 0, ""
}

// knows says whether who asks has the token. It is in a header, which no other site can have
// a browser send.
func (s *server) knows(r *http.Request) bool {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return ok && s.Token != "" && subtle.ConstantTimeCompare([]byte(token), []byte(s.Token)) == 1
}
