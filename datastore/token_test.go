package datastore

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func someToken() Token {
	return NewToken([32]byte{1, 2, 3}, true, time.Date(2027, 1, 2, 3, 4, 5, 6, time.UTC),
		[]netip.AddrPort{netip.MustParseAddrPort("192.168.99.102:2378"), netip.MustParseAddrPort("[fd00:99::1]:2378")})
}

func TestToken(t *testing.T) {
	token := someToken()
	text := token.String()
	back, err := ParseToken(text)
	if err != nil || !reflect.DeepEqual(token, back) {
		t.Fatalf("%+v, %v; want %+v", back, err, token)
	}
	if strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		t.Errorf("%s is not one word for a shell", text)
	}
	for cut := range text {
		if _, err := ParseToken(text[:cut]); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d of %d letters: %v", cut, len(text), err)
		} else if strings.Contains(err.Error(), text[3:3+min(8, max(cut-3, 1))]) && cut > 11 {
			t.Errorf("the error tells of the token: %v", err)
		}
	}
	if _, err := ParseToken(text[:len(text)/2]); !strings.Contains(err.Error(), "is cut off: these are") {
		t.Error(err)
	}
	for i := range text {
		for _, other := range []string{"A", "z", " ", "é"} {
			if changed := text[:i] + other + text[i+1:]; changed != text {
				if _, err := ParseToken(changed); !errors.Is(err, ErrInvalid) {
					t.Errorf("letter %d is %q: %v", i, other, err)
				}
			}
		}
	}
	if _, err := ParseToken(text + text); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if one, two := someToken(), someToken(); one.Hash() == two.Hash() || one.Name() == two.Name() {
		t.Error("two tokens are one")
	}
}

func FuzzToken(f *testing.F) {
	text := someToken().String()
	f.Add(text)
	f.Add(text[:20])
	f.Add("nctAQAA")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err == nil && token.String() != text {
			t.Errorf("%q is %q", text, token)
		}
	})
}
