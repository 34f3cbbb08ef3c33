package tracer

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// rawEvent is a record with every field set.
func rawEvent() bpfEvent {
	return bpfEvent{
		TimeNs: bootAt(1500), Sock: sockA, Detail: 1,
		Flow: bpfFlow{
			LocalIp:   netip.MustParseAddr("::ffff:10.0.0.1").As16(),
			RemoteIp:  netip.MustParseAddr("2001:db8::2").As16(),
			LocalPort: 40000, RemotePort: 443, Netns: testNS,
		},
		Process:       bpfProcess{StartNs: uint64(ms(1)), Cgroup: 77, Pid: 10, Uid: 1000, Comm: [16]byte{'c', 'u', 'r', 'l'}},
		RequestedPort: 8080, Error: uint16(syscall.EADDRINUSE), Type: uint8(EventBind), Proto: uint8(TCP),
		Flags: uint8(bpfEventFlagEVENT_IMPLICIT | bpfEventFlagEVENT_MPTCP),
	}
}

func TestDecodeEvent(t *testing.T) {
	raw := rawEvent()
	// Whatever is left of the event before must not show.
	got := Event{Duration: 1, HeldBy: []Socket{{}}}
	if err := newDecoder().event(rawRecord(&raw), wallAt(0), &got); err != nil {
		t.Fatal(err)
	}
	equal(t, "event", Event{
		Time: wallAt(1500), Type: EventBind, Proto: TCP,
		Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("[2001:db8::2]:443"),
		RequestedPort: 8080, Implicit: true, Errno: syscall.EADDRINUSE, NetNS: testNS, MPTCP: true, TimeWait: true,
		Process: Process{PID: 10, UID: 1000, Start: ms(1), Comm: "curl", Cgroup: 77},
		boot:    bootAt(1500), sock: sockA, tw: 1, flags: raw.Flags,
	}, got)
}

// The same field is the timewait sock of a close and the search of a connect.
func TestDecodeDetail(t *testing.T) {
	raw := rawEvent()
	raw.Type, raw.Detail = uint8(EventConnect), 1500
	var got Event
	if err := newDecoder().event(rawRecord(&raw), wallAt(0), &got); err != nil {
		t.Fatal(err)
	}
	if got.Search != 1500*time.Nanosecond || got.TimeWait || got.tw != 0 {
		t.Errorf("connect with search %v, time_wait %v, want 1.5us, false", got.Search, got.TimeWait)
	}
}

func TestDecodeEventRefuses(t *testing.T) {
	with := func(change func(*bpfEvent)) []byte {
		raw := rawEvent()
		change(&raw)
		return rawRecord(&raw)
	}
	for _, test := range []struct {
		name   string
		record []byte
		want   string
	}{
		{"nothing", nil, "0 bytes"},
		{"a byte too few", make([]byte, fullEvent-1), "127 bytes, want 32 or 128"},
		{"a byte too many", make([]byte, fullEvent+1), "129 bytes, want 32 or 128"},
		{"a bind without a process", with(func(*bpfEvent) {})[:shortEvent], "32 bytes for bind"},
		{"a close with one", append(with(func(e *bpfEvent) { e.Type = uint8(EventClose) }), make([]byte, fullEvent-shortEvent)...), "128 bytes for close"},
		{"type 0", with(func(e *bpfEvent) { e.Type = 0 }), "unknown type 0"},
		{"type of a newer kernel program", with(func(e *bpfEvent) { e.Type = uint8(eventUnpeer) + 1 }), "unknown type 9"},
		{"SCTP", with(func(e *bpfEvent) { e.Proto = syscall.IPPROTO_SCTP }), "unknown protocol 132"},
		{"no protocol", with(func(e *bpfEvent) { e.Proto = 0 }), "unknown protocol 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var ev Event
			if err := newDecoder().event(test.record, wallAt(0), &ev); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestDecodeAddresses(t *testing.T) {
	for _, test := range []struct {
		ip         string
		port       uint16
		addr, peer string // peer "": none
	}{
		{"::ffff:127.0.0.1", 80, "127.0.0.1:80", "127.0.0.1:80"},
		{"::ffff:0.0.0.0", 80, "0.0.0.0:80", "0.0.0.0:80"},
		{"::", 80, "[::]:80", "[::]:80"},
		{"::1", 80, "[::1]:80", "[::1]:80"},
		{"::ffff:127.0.0.1", 0, "127.0.0.1:0", "127.0.0.1:0"}, // as getaddrinfo() connects
		{"::", 0, "[::]:0", ""},
	} {
		ip := netip.MustParseAddr(test.ip).As16()
		if got := addrPort(ip, test.port); got != netip.MustParseAddrPort(test.addr) {
			t.Errorf("address %s port %d: %v, want %s", test.ip, test.port, got, test.addr)
		}
		if got := peer(ip, test.port); got != endpoint(test.peer) {
			t.Errorf("peer %s port %d: %v, want %q", test.ip, test.port, got, test.peer)
		}
	}
}

func TestDecodeComm(t *testing.T) {
	dec := newDecoder()
	for want, raw := range map[string][16]byte{
		"":                 {},
		"nginx":            {'n', 'g', 'i', 'n', 'x', 0, 'o', 'l', 'd'}, // what follows the NUL is older
		"\xff\x1b[31m":     {0xff, 0x1b, '[', '3', '1', 'm'},
		"0123456789abcdef": [16]byte([]byte("0123456789abcdef")), // the kernel ends names with a NUL, but who knows
	} {
		for range 2 { // the second time from memory
			if got := dec.comm(&raw); got != want {
				t.Errorf("comm of %q is %q, want %q", raw, got, want)
			}
		}
	}
}

// A machine that makes up process names must not fill porthole's memory.
func TestDecodeCommBounded(t *testing.T) {
	dec := newDecoder()
	for i := range 3*maxComms + 1 {
		var raw [16]byte
		want := fmt.Sprintf("proc-%d", i)
		copy(raw[:], want)
		if got := dec.comm(&raw); got != want {
			t.Fatalf("comm %q, want %q", got, want)
		}
		if len(dec.comms) > maxComms {
			t.Fatalf("%d names kept, want at most %d", len(dec.comms), maxComms)
		}
	}
}

func TestDecodeSocketRole(t *testing.T) {
	const peerPort = 443
	const file, active = bpfRowFlagROW_SOCKET, bpfRowFlagROW_ACTIVE
	for _, test := range []struct {
		name   string
		proto  Proto
		state  uint8
		flags  bpfRowFlag
		state2 State
		role   Role
		remote bool
	}{
		{"listener", TCP, uint8(StateListen), 0, StateListen, RoleListener, false},
		{"listener that failed", TCP, uint8(StateUnconn), active, StateUnconn, RoleBound, false},
		{"TCP that called connect", TCP, uint8(StateEstablished), file | active, StateEstablished, RoleClient, true},
		{"TCP from a listener", TCP, uint8(StateEstablished), file, StateEstablished, RoleServer, true},
		{"TCP from a listener, not accepted", TCP, uint8(StateEstablished), 0, StateEstablished, RoleOrphan, true},
		{"half open", TCP, uint8(bpfTcpStateTCP_NEW_SYN_RECV), 0, StateSynRecv, RoleOrphan, true},
		{"FIN_WAIT1 without a socket", TCP, uint8(StateFinWait1), active, StateFinWait1, RoleOrphan, true},
		{"TIME_WAIT", TCP, uint8(StateTimeWait), bpfRowFlagROW_TIMEWAIT, StateTimeWait, RoleTimeWait, true},
		{"FIN_WAIT2 without a socket", TCP, uint8(StateFinWait2), bpfRowFlagROW_TIMEWAIT, StateFinWait2, RoleTimeWait, true},
		{"FIN_WAIT2 with one", TCP, uint8(StateFinWait2), file, StateFinWait2, RoleServer, true},
		{"UDP without a peer", UDP, uint8(StateUnconn), 0, StateUnconn, RoleBound, false},
		{"UDP with a peer", UDP, uint8(StateEstablished), file, StateEstablished, RoleClient, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			raw := bpfRow{Proto: uint8(test.proto), State: test.state, Flags: uint16(test.flags), Flow: bpfFlow{LocalPort: 80, RemotePort: peerPort}}
			s := socketOf(&raw)
			if s.State != test.state2 || s.Role != test.role || s.Remote.IsValid() != test.remote {
				t.Errorf("%s %s, remote %v; want %s %s, remote %t", s.State, s.Role, s.Remote, test.state2, test.role, test.remote)
			}
		})
	}
}

func TestDecodeSocket(t *testing.T) {
	raw := bpfRow{
		TimeNs: bootAt(5), Sock: sockB, Uid: 33, Proto: uint8(TCP), State: uint8(StateListen),
		Flow: bpfFlow{LocalIp: netip.IPv6Unspecified().As16(), LocalPort: 80, Netns: testNS},
	}
	copy(raw.Flow.RemoteIp[:], binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, 4), 3)) // struct backlog
	want := Socket{
		Proto: TCP, State: StateListen, Role: RoleListener, Backlog: Backlog{Waiting: 4, Max: 3, Known: true}, Local: netip.MustParseAddrPort("[::]:80"),
		NetNS: testNS, UID: 33, Origin: OriginSnapshot, id: sockB, stamp: bootAt(5),
	}
	equal(t, "plain", want, socketOf(&raw))
	// Each flag must set its own field and no other.
	for flag, field := range map[bpfRowFlag]func(*Socket) *bool{
		bpfRowFlagROW_MPTCP:     func(s *Socket) *bool { return &s.MPTCP },
		bpfRowFlagROW_V6ONLY:    func(s *Socket) *bool { return &s.V6Only },
		bpfRowFlagROW_REUSEADDR: func(s *Socket) *bool { return &s.ReuseAddr },
		bpfRowFlagROW_REUSEPORT: func(s *Socket) *bool { return &s.ReusePort },
		bpfRowFlagROW_FIXED:     func(s *Socket) *bool { return &s.FixedPort },
		bpfRowFlagROW_SOCKET:    func(s *Socket) *bool { return &s.attached },
	} {
		raw, want := raw, want
		raw.Flags = uint16(flag)
		*field(&want) = true
		equal(t, fmt.Sprintf("flag %d", flag), want, socketOf(&raw))
	}
}

func FuzzDecodeEvent(f *testing.F) {
	raw := rawEvent()
	f.Add(rawRecord(&raw))
	f.Add([]byte{})
	f.Add(make([]byte, unsafe.Sizeof(bpfEvent{})))
	dec, table := newDecoder(), newTable()
	f.Fuzz(func(t *testing.T, record []byte) {
		var ev, again Event
		before := slices.Clone(record)
		if err := dec.event(record, wallAt(0), &ev); err != nil {
			return
		}
		if err := dec.event(record, wallAt(0), &again); err != nil {
			t.Fatalf("decoded once, then: %v", err)
		}
		equal(t, "decoded twice", ev, again)
		if !slices.Equal(before, record) {
			t.Error("the record, which the kernel owns, was changed")
		}
		if ev.Type.String() == "unknown" || ev.Local.Addr().Is4In6() || ev.Remote.Addr().Is4In6() || ev.Remote.IsValid() && ev.Remote.Port() == 0 {
			t.Errorf("decoded %+v", ev)
		}
		if strings.Contains(ev.Process.Comm, "\x00") {
			t.Errorf("comm %q has a NUL", ev.Process.Comm)
		}
		table.apply(&ev) // must not panic whatever a decoded event says
	})
}

// What happened to a socket is no error of the program that follows it: fmt and log print
// an error by its Error method, and nothing else of it.
func TestEventIsNoError(t *testing.T) {
	for _, v := range []any{Event{}, &Event{}, Failure{}, &Failure{}, Tenancy{}, &Tenancy{}} {
		if _, is := v.(error); is {
			t.Errorf("%T is an error", v)
		}
	}
	ev := Event{Errno: syscall.EADDRINUSE}
	if got := ev.ErrnoName(); got != "EADDRINUSE" {
		t.Errorf("ErrnoName is %q, want EADDRINUSE", got)
	}
	if got := new(Event).ErrnoName(); got != "" {
		t.Errorf("ErrnoName of success is %q, want none", got)
	}
}
