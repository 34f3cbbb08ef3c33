package query

import (
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/tracer"
)

func TestFilterComm(t *testing.T) {
	for _, test := range []struct {
		values []string
		comm   string
		want   bool
	}{
		{[]string{"nginx"}, "nginx", true},
		{[]string{"nginx"}, "nginx-x", false},
		{[]string{"sshd", "ngin*"}, "nginx", true},
		{[]string{"kworker*"}, "kworker/0:1", true},
		{[]string{"ngin?"}, "ngin", false},
	} {
		f, err := ParseFilter(OfEvents, Values{"comm": test.values})
		if err != nil {
			t.Fatal(err)
		}
		ev := tracer.Event{Type: tracer.EventBind, Process: tracer.Process{PID: 1, Comm: test.comm}}
		if got := f.Event(nil, &ev); got != test.want {
			t.Errorf("--comm %v lets %q pass: %v, want %v", test.values, test.comm, got, test.want)
		}
	}
	if _, err := ParseFilter(OfEvents, Values{"comm": {"[a"}}); err == nil {
		t.Error("a pattern that is none is taken")
	}
}

// A name that no process can have is said.
func TestFilterCommNote(t *testing.T) {
	f, err := ParseFilter(OfSockets, Values{"comm": {"systemd-resolved", "sshd", "systemd-*"}})
	if err != nil {
		t.Fatal(err)
	}
	if note := f.Note(nil); !strings.Contains(note, "systemd-resolve") || strings.Contains(note, "sshd") {
		t.Errorf("note %q", note)
	}
}

// root is 0 on every machine.
func TestFilterUser(t *testing.T) {
	f, err := ParseFilter(OfSockets, Values{"uid": {"root"}})
	if err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]bool{0: true, 7: false} {
		if got := f.Socket(nil, &tracer.Socket{UID: uid}); got != want {
			t.Errorf("--uid root lets %d pass: %v", uid, got)
		}
	}
	if _, err := ParseFilter(OfSockets, Values{"uid": {"no such user"}}); err == nil || !strings.Contains(err.Error(), "no such user") {
		t.Errorf("a user that is none: %v", err)
	}
}

func TestEventsEstablished(t *testing.T) {
	q, err := ParseEvents(Values{"event": {"established"}})
	if err != nil || !q.Verbose {
		t.Errorf("verbose %v, %v: who asks for handshakes alone does not get them", q.Verbose, err)
	}
	if q, err := ParseEvents(Values{"event": {"connect", "established"}}); err != nil || q.Verbose {
		t.Errorf("verbose %v, %v: handshakes among others take --verbose", q.Verbose, err)
	}
}
