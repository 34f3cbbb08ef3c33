package query

import (
	"net/netip"
	"net/url"
	"reflect"
	"testing"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// Any query string is refused or understood; what was understood is the same after it
// was written as a query and read again, and can be asked about anything.
func FuzzValues(f *testing.F) {
	for _, seed := range []string{
		"port=80,443&proto=tcp", "comm=%22a%2Cb%22&pid=1", "netns=host&role=listener&state=time-wait", "tcp=true&tcp=false&ipv4=true",
		"comm=a%0Ab", "event=bind,close&uid=0", "op=implicit_bind&rport=53", "container=%22&%zz", "lport=0", "comm=%22%22", "port=%2C",
	} {
		f.Add(seed)
	}
	cgroups := identity.NewCgroups("")
	socket := tracer.Socket{Proto: tracer.TCP, State: tracer.StateListen, Role: tracer.RoleListener, Holders: make([]tracer.Holder, 1),
		Local: netip.MustParseAddrPort("127.0.0.1:80")}
	f.Fuzz(func(t *testing.T, text string) {
		query, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		values, err := Decode(query)
		if err != nil {
			return
		}
		again, err := Decode(Encode(values))
		if err != nil || !reflect.DeepEqual(values, again) {
			t.Fatalf("%q: %q, written and read again %q, %v", text, values, again, err)
		}
		for _, kind := range []Kind{OfSockets, OfEvents, OfHeadroom} {
			got, err := ParseFilter(kind, values)
			if err != nil {
				continue
			}
			if err := got.Locate(identity.FixedNetNSNames(1, nil)); err != nil && len(values["netns"]) == 0 {
				t.Errorf("%q: %v", text, err)
			}
			got.Socket(cgroups, &socket)
			got.Event(cgroups, &tracer.Event{Type: tracer.EventBind, Proto: tracer.UDP})
			got.Headroom(cgroups, &tracer.Headroom{})
			if port := got.LocalPort(); port != 0 && kind == OfHeadroom {
				t.Errorf("%q: headroom of local port %d", text, port)
			}
		}
	})
}
