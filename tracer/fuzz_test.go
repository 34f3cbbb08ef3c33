package tracer

import (
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"
)

// Any bytes are refused or an event that can be applied, in the length of its type.
// Two in a row must not mix: the second is decoded as if it had come alone.
func FuzzEvent(f *testing.F) {
	full := func(typ EventType, proto Proto) []byte {
		raw := bpfEvent{TimeNs: 5, Sock: 7, Type: uint8(typ), Proto: uint8(proto)}
		raw.Flow.LocalPort, raw.Flow.RemotePort, raw.Process.Pid = 80, 1000, 1
		copy(raw.Process.Comm[:], "name\xff\n")
		return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&raw)), fullEvent)...)
	}
	f.Add([]byte{}, []byte{})
	f.Add(full(EventBind, TCP), full(EventClose, TCP)[:shortEvent])
	f.Add(full(EventConnect, UDP), full(eventUnpeer, UDP)[:shortEvent])
	f.Add(full(EventAccept, TCP), full(eventDown, TCP)[:shortEvent])
	f.Add(full(EventEstablished, TCP), full(EventListen, TCP)[:fullEvent-1])
	f.Fuzz(func(t *testing.T, first, second []byte) {
		booted := time.Unix(1_000_000, 0)
		var one, two, alone Event
		d := newDecoder()
		table := newTable()
		if d.event(first, booted, &one) == nil {
			checkEvent(t, first, &one)
			table.apply(&one)
		}
		err, errAlone := d.event(second, booted, &two), newDecoder().event(second, booted, &alone)
		if (err == nil) != (errAlone == nil) {
			t.Fatalf("after another: %v, alone: %v", err, errAlone)
		}
		if err != nil {
			return
		}
		equal(t, "decoded after another", alone, two)
		checkEvent(t, second, &two)
		table.apply(&two)
		if n := table.Len(); n > 2 || n != len(table.All()) || n > 0 && len(table.Port(table.All()[0].Local.Port())) == 0 {
			t.Errorf("%d sockets in the table after two events", n)
		}
	})
}

func checkEvent(t *testing.T, record []byte, ev *Event) {
	t.Helper()
	if ev.Type.String() == "unknown" || ev.Proto != TCP && ev.Proto != UDP {
		t.Errorf("%+v", ev)
	}
	if len(ev.Process.Comm) > 16 || isShort(ev.Type) != (len(record) == shortEvent) || !utf8.ValidString(ev.ErrnoName()) {
		t.Errorf("%+v of %d bytes", ev, len(record))
	}
	if ev.Local.Addr().Is4In6() || ev.Remote.Addr().Is4In6() {
		t.Errorf("%s > %s: IPv4 has two forms", ev.Local, ev.Remote)
	}
}
