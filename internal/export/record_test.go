package export

import (
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	logspb "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	docBegin = "<!-- Written by go test ./internal/export -run Docs -update -->\n"
	docEnd   = "<!-- The end of that -->\n"
)

// The table of attributes in docs/otlp.md is that of the code.
func TestDocs(t *testing.T) {
	const path = "../../docs/otlp.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), docBegin)
	_, after, ended := strings.Cut(rest, docEnd)
	if !ok || !ended {
		t.Fatalf("%s has no place for the table", path)
	}
	var b strings.Builder
	b.WriteString(before + docBegin + "| attribute | type | what it is |\n|---|---|---|\n")
	for _, f := range fields {
		b.WriteString("| `" + f.name + "` | " + f.kind + " | " + f.what + " |\n")
	}
	testutil.Golden(t, path, b.String()+docEnd+after)
}

// wholeFact has something of everything.
func wholeFact() *fact {
	user := uint32(1000)
	return &fact{
		ev: tracer.Event{
			Time: time.Unix(1_764_302_400, 5), Type: tracer.EventBind, Proto: tracer.UDP, Local: netip.MustParseAddrPort("[2001:db8::1]:53"), Remote: netip.MustParseAddrPort("[2001:db8::2]:9"),
			RequestedPort: 53, Implicit: true, Errno: syscall.EADDRINUSE,
			HeldBy:  []tracer.Socket{{State: tracer.StateUnconn, Holders: []tracer.Holder{{Process: tracer.Process{PID: 7, Comm: "named"}}}}},
			Process: tracer.Process{PID: 812, UID: 33, Comm: "dns\xff"}, NetNS: 4026531840, NetNSCookie: 1, Device: 3, MPTCP: true, V6Only: true,
			Duration: 1500 * time.Millisecond, TimeWait: true, About: true, Search: time.Microsecond,
		},
		boot: 5, taken: 4, role: tracer.RoleBound, asked: true, space: "host", device: "eth0", index: 3, stored: true, folded: 2, exe: "/usr/bin/dns",
		where: identity.Cgroup{
			Path: "/system.slice/dns.service", Unit: "dns.service", UnitUser: &user,
			Container: &identity.Container{ID: "c1", Name: "dns", Image: "registry:5000/dns:1.2@sha256:00", Runtime: "containerd"},
			Pod:       &identity.Pod{Namespace: "kube-system", Name: "dns-0", UID: "u", Container: "dns", Labels: map[string]string{"app": "dns"}},
		},
		lost: &loss{reason: LostQueue, count: 3, since: time.Unix(0, 0)},
	}
}

// decoded is a record as whoever gets it reads it.
func decoded(t *testing.T, f *fact) (*logspb.LogRecord, map[string]string) {
	t.Helper()
	var e encoder
	raw, err := proto.Marshal(e.record(f, time.Unix(1_764_302_401, 0)))
	if err != nil {
		t.Fatal(err)
	}
	rec := &logspb.LogRecord{}
	if err := proto.Unmarshal(raw, rec); err != nil {
		t.Fatal(err)
	}
	attrs := make(map[string]string)
	for _, kv := range rec.Attributes {
		if _, twice := attrs[kv.Key]; twice {
			t.Errorf("%s is there twice", kv.Key)
		}
		attrs[kv.Key] = kv.Value.String()
	}
	return rec, attrs
}

// Every attribute of the table can be there, and no other; none is a part of the name of another, for stores make
// objects of them.
func TestRecordFields(t *testing.T) {
	f := wholeFact()
	_, attrs := decoded(t, f)
	f.lost = nil
	_, more := decoded(t, f)
	f.ev.Implicit, f.stored = false, false
	_, most := decoded(t, f)
	for _, m := range []map[string]string{more, most} {
		for k, v := range m {
			attrs[k] = v
		}
	}
	names := make(map[string]bool)
	for _, f := range fields {
		name := strings.Replace(f.name, "label.NAME", "label.app", 1)
		if names[name] = true; attrs[name] == "" {
			t.Errorf("no record has %s", f.name)
		}
	}
	for name := range attrs {
		if !names[name] {
			t.Errorf("%s is in no row of the table", name)
		}
		for other := range attrs {
			if strings.HasPrefix(other, name+".") {
				t.Errorf("%s is an object in %s", name, other)
			}
		}
	}
	for name, want := range map[string]string{
		"porthole.comm": "dns\uFFFD", "container.image.name": "registry:5000/dns", "container.image.tags": `"1.2"`, "process.linux.cgroup": "0::/system.slice/dns.service",
		"network.type": "ipv6", "porthole.held_by": "named (pid 7)", "error.type": "EADDRINUSE",
	} {
		if !strings.Contains(attrs[name], want) {
			t.Errorf("%s is %s, want %s", name, attrs[name], want)
		}
	}
}

func TestRecordLines(t *testing.T) {
	nginx := tracer.Process{PID: 812, Comm: "nginx"}
	local, peer := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:40000")
	for _, c := range []struct {
		f    fact
		want string
	}{
		{fact{ev: tracer.Event{Type: tracer.EventBind, Process: nginx, Local: local}, where: identity.Cgroup{Unit: "web.service"}}, "nginx (pid 812, web.service) bound 10.0.0.1:80/tcp"},
		{fact{ev: tracer.Event{Type: tracer.EventBind, Process: nginx, Local: local, Errno: syscall.EADDRINUSE, HeldBy: []tracer.Socket{{Holders: []tracer.Holder{{Process: tracer.Process{PID: 7, Comm: "apache2"}}}}}}},
			"nginx (pid 812) could not bind 10.0.0.1:80/tcp: EADDRINUSE, held by apache2 (pid 7)"},
		{fact{ev: tracer.Event{Type: tracer.EventListen, Process: nginx, Local: local}}, "nginx (pid 812) listens on 10.0.0.1:80/tcp"},
		{fact{ev: tracer.Event{Type: tracer.EventConnect, Process: nginx, Local: local, Remote: peer}}, "nginx (pid 812) connects to 10.0.0.2:40000/tcp from 10.0.0.1:80"},
		{fact{ev: tracer.Event{Type: tracer.EventConnect, Process: nginx, Remote: peer, Errno: syscall.EADDRNOTAVAIL}}, "nginx (pid 812) could not connect to 10.0.0.2:40000/tcp: EADDRNOTAVAIL"},
		{fact{ev: tracer.Event{Type: tracer.EventAccept, Process: nginx, Local: local, Remote: peer}}, "nginx (pid 812) accepted 10.0.0.2:40000 on 10.0.0.1:80/tcp"},
		{fact{ev: tracer.Event{Type: tracer.EventClose, Local: local, Duration: 90 * time.Second, Errno: syscall.ECONNRESET, Remote: peer}},
			"a process that is not known closed 10.0.0.1:80/tcp with 10.0.0.2:40000 after 1m30s: ECONNRESET"},
		{fact{ev: tracer.Event{Type: tracer.EventBind, Process: tracer.Process{PID: 1, Comm: "a\nb"}, Local: local}}, `"a\nb" (pid 1) bound 10.0.0.1:80/tcp`},
		{fact{lost: &loss{reason: LostQueue, count: 1}}, "1 event lost: the queue was full"},
		{fact{lost: &loss{reason: LostNotRunning}}, "events lost: no agent ran"},
	} {
		if got := c.f.line(); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}

// The id of an event is the same wherever it was read from, and no other's.
func TestRecordID(t *testing.T) {
	base := fact{ev: tracer.Event{Type: tracer.EventBind, Proto: tracer.TCP, Local: netip.MustParseAddrPort("127.0.0.1:80"), NetNS: 1}, boot: 7}
	seen := make(map[string]int)
	again := base
	again.stored, again.ev.Time = true, time.Now()
	if idOf([16]byte{1}, &base) != idOf([16]byte{1}, &again) {
		t.Error("an event of the history has another id")
	}
	for i, change := range []func(*fact){
		func(*fact) {}, func(f *fact) { f.boot++ }, func(f *fact) { f.ev.Type = tracer.EventListen }, func(f *fact) { f.ev.Proto = tracer.UDP },
		func(f *fact) { f.ev.Local = netip.MustParseAddrPort("127.0.0.1:81") }, func(f *fact) { f.ev.NetNS++ }, func(f *fact) { f.folded = 1 }, func(f *fact) { f.lost = &loss{} },
	} {
		f := base
		change(&f)
		id := idOf([16]byte{1}, &f)
		if other, ok := seen[id]; ok || len(id) != 32 {
			t.Errorf("id %s of %d is that of %d", id, i, other)
		}
		seen[id] = i
	}
	if id := idOf([16]byte{2}, &base); seen[id] != 0 || id == idOf([16]byte{1}, &base) {
		t.Error("an event of another boot has the same id")
	}
}

// What a batch is made from is what protobuf would.
func TestBatchIsARequest(t *testing.T) {
	x := sender(t, Settings{Endpoint: "http://127.0.0.1:1"}, new(log))
	b := batchOf(t, x, 5)
	if _, err := x.again.split(b); err != nil { // which reads it
		t.Fatal(err)
	}
	if b.records != 5 || b.from != 1 || b.to != 5 {
		t.Errorf("batch of %d from %v to %v", b.records, b.from, b.to)
	}
}

// BenchmarkRecord is what an exported event costs, besides the network: encoding and compressing.
func BenchmarkRecord(b *testing.B) {
	cfg, err := NewConfig(Settings{Endpoint: "http://127.0.0.1:1"}, func(string) string { return "" }, "v1")
	if err != nil {
		b.Fatal(err)
	}
	build, err := newBuilder(cfg, [16]byte{1})
	if err != nil {
		b.Fatal(err)
	}
	f := fact{
		ev: tracer.Event{
			Type: tracer.EventListen, Proto: tracer.TCP, Process: tracer.Process{PID: 812, UID: 33, Comm: "nginx"}, NetNS: 4026531840, NetNSCookie: 1,
		},
		role: tracer.RoleListener, asked: true, space: "host", where: identity.Cgroup{Path: "/system.slice/web.service", Unit: "web.service"},
	}
	b.ReportAllocs()
	var raw, packed int
	i := 0
	for b.Loop() {
		i++
		f.boot = time.Duration(i) * 1_234_567
		f.ev.Time = time.Unix(1_764_302_400, int64(f.boot))
		f.ev.Type = tracer.EventTypes()[i%2]
		f.ev.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), uint16(i*7))
		if err := build.add(&f); err != nil {
			b.Fatal(err)
		}
		if build.full() {
			raw += len(build.records)
			packed += len(build.build().body)
		}
	}
	if i >= maxRecords {
		n := float64(i / maxRecords * maxRecords)
		b.ReportMetric(float64(raw)/n, "B/event")
		b.ReportMetric(float64(packed)/n, "B/event-gzip")
	}
}
