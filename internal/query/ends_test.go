package query

import (
	"net/netip"
	"testing"
)

func TestParseEnd(t *testing.T) {
	for in, want := range map[string]struct{ end, device string }{
		"192.0.2.1:443":             {"192.0.2.1:443", ""},
		"[2001:db8::1]:443":         {"[2001:db8::1]:443", ""},
		"[::ffff:192.0.2.1]:443":    {"192.0.2.1:443", ""},
		"[fe80::1%eth0]:443":        {"[fe80::1]:443", "eth0"},
		"[fe80::1]%eth0:443":        {"[fe80::1]:443", "eth0"}, // ss(8)
		"127.0.0.53%lo:53":          {"127.0.0.53:53", "lo"},   // ss(8)
		"127.0.0.53:53%lo":          {"127.0.0.53:53", "lo"},
		"[fe80::1]:443%eth0":        {"[fe80::1]:443", "eth0"},
		"[fe80::1%7]:443":           {"[fe80::1]:443", "7"},
		"[::ffff:127.0.0.1%lo]:443": {"127.0.0.1:443", "lo"},
		"[fe80::1%br-0a_b.1]:443":   {"[fe80::1]:443", "br-0a_b.1"},
	} {
		end, device, err := parseEnd(in)
		if err != nil || end != netip.MustParseAddrPort(want.end) || device != want.device {
			t.Errorf("%q: %v, device %q, error %v; want %s, %q", in, end, device, err, want.end, want.device)
		}
	}
	for _, in := range []string{
		"", "%", "192.0.2.1", "[fe80::1%]:443", "[fe80::1%a/b]:443", "[fe80::1%a b]:443", "[fe80::1%0123456789abcdef]:443",
		"[fe80::1%a%b]:443", "fe80::1%eth0", "[fe80::1%eth0:443", "fe80::1%eth0]:443", "192.0.2.1:443%", "host%eth0:443",
	} {
		if end, device, err := parseEnd(in); err == nil {
			t.Errorf("%q: %v, device %q; want an error", in, end, device)
		}
	}
}

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]struct{ addr, device string }{
		"192.0.2.1":        {"192.0.2.1", ""},
		"2001:db8::1":      {"2001:db8::1", ""},
		"fe80::1%eth0":     {"fe80::1", "eth0"},
		"[fe80::1%eth0]":   {"fe80::1", "eth0"},
		"[fe80::1]%eth0":   {"fe80::1", "eth0"},
		"192.0.2.1%eth0":   {"192.0.2.1", "eth0"},
		"::ffff:192.0.2.1": {"192.0.2.1", ""},
	} {
		addr, device, err := parseAddr(in)
		if err != nil || addr != netip.MustParseAddr(want.addr) || device != want.device {
			t.Errorf("%q: %v, device %q, error %v; want %s, %q", in, addr, device, err, want.addr, want.device)
		}
	}
	for _, in := range []string{"", "%lo", "fe80::1%", "[fe80::1", "fe80::1]", "192.0.2.1:443", "[fe80::1%eth0]:443", "name"} {
		if addr, device, err := parseAddr(in); err == nil {
			t.Errorf("%q: %v, device %q; want an error", in, addr, device)
		}
	}
}
