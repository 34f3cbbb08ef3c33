package query

import (
	"net/url"
	"testing"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// Any question is refused or has an answer; a destination that was understood is one
// that can be connected to.
func FuzzParseHeadroom(f *testing.F) {
	for _, seed := range []string{
		"to=192.0.2.1:443", "to=[2001:db8::1]:443&from=2001:db8::2", "to=1.1.1.1:0", "from=127.0.0.1", "to=[::ffff:1.2.3.4]:1&from=1.2.3.4",
		"to=[fe80::1%25eth0]:1", "op=connect&netns=host", "to=0.0.0.0:1", "to=1.1.1.1:1&netns=1,2",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		query, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		values, err := Decode(query)
		if err != nil {
			return
		}
		q, err := ParseHeadroom(values)
		if err != nil {
			return
		}
		if q.to.IsValid() && (q.to.Port() == 0 || q.to.Addr().IsUnspecified() || q.to.Addr().Is4In6() || q.to.Addr().Zone() != "") {
			t.Errorf("%q: to %s", text, q.to)
		}
		if q.from.IsValid() && (!q.to.IsValid() || q.from.Is4() != q.to.Addr().Is4()) {
			t.Errorf("%q: from %s to %s", text, q.from, q.to)
		}
		if !q.to.IsValid() {
			if _, err := q.Answer(new(tracer.Ports), &identity.Names{NetNS: identity.FixedNetNSNames(0, nil)}); err != nil && len(values["netns"]) == 0 {
				t.Errorf("%q: %v", text, err)
			}
		}
	})
}
