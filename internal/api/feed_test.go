package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// feedTest is a feed that the test puts events into itself.
type feedTest struct {
	*testing.T
	*feed
	n int
}

func newFeedTest(t *testing.T) *feedTest {
	f := &feedTest{T: t, feed: &feed{tracer: new(tracer.Tracer), names: new(identity.Names)}}
	return f
}

// reads adds a reader of events of these protocols, of all if none is given.
func (f *feedTest) reads(protos ...tracer.Proto) *reader {
	f.Helper()
	r := f.join(func(ev *tracer.Event) bool {
		return len(protos) == 0 || protos[0] == ev.Proto
	})
	if r == nil {
		f.Fatal("no room for a reader")
	}
	return r
}

// happen puts n events into the feed: every third is of UDP. Their ports count them.
func (f *feedTest) happen(n int) {
	f.Helper()
	var events []tracer.Event
	for range n {
		f.n++
		ev := tracer.Event{
			Time: time.Unix(1, 0), Type: tracer.EventConnect, Proto: tracer.TCP,
			Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(f.n%65535+1)),
		}
		if f.n%3 == 0 {
			ev.Proto = tracer.UDP
		}
		events = append(events, ev)
	}
	for scratch := new(page); len(events) > 0; {
		events = f.add(f.feed.sub, new(render.Encoder), scratch, events)
	}
}

// got reads what there is: how many lines, and how many were lost.
func (f *feedTest) got(r *reader) (lines, lost int) {
	f.Helper()
	ctx, cancel := context.WithCancel(f.Context())
	cancel() // nothing is waited for
	for {
		late, b, err := f.next(ctx, nil, r, nil)
		lines += bytes.Count(b, []byte("\n"))
		lost += int(late)
		if err == io.EOF || err == context.Canceled {
			return lines, lost
		} else if err != nil {
			f.Fatal(err)
		}
	}
}

func (f *feedTest) want(what string, r *reader, lines, lost int) {
	f.Helper()
	if l, n := f.got(r); l != lines || n != lost {
		f.Errorf("%s has %d lines and lost %d, want %d and %d", what, l, n, lines, lost)
	}
}

// Each reader gets what it wants, once, from when it came.
func TestFeedReaders(t *testing.T) {
	f := newFeedTest(t)
	all, udp := f.reads(), f.reads(tracer.UDP)
	f.happen(300)
	f.want("who reads all", all, 300, 0)
	late := f.reads()
	f.happen(30)
	f.want("who came later", late, 30, 0)
	f.want("who wants UDP", udp, 110, 0)
	f.want("who reads all", all, 30, 0)
	if len(f.pages) != 0 || f.bytes != 0 {
		t.Errorf("%d pages of %d bytes are kept that everybody has read", len(f.pages), f.bytes)
	}
	f.happen(3)
	f.leave(udp)
	other := f.reads(tracer.TCP) // in the place of udp
	f.happen(3)
	f.want("who took a place", other, 2, 0)
	f.leave(other)
	f.leave(late)
	f.leave(all)
	if f.len() != 0 || len(f.pages) != 0 {
		t.Errorf("%d readers and %d pages are left", f.len(), len(f.pages))
	}
}

// A reader that comes while a page is made has none of it.
func TestFeedJoinDuringPage(t *testing.T) {
	f := newFeedTest(t)
	var late *reader
	first := f.join(func(*tracer.Event) bool {
		if late == nil {
			late = f.reads()
		}
		return true
	})
	f.happen(10)
	f.want("who was there", first, 10, 0)
	f.want("who came meanwhile", late, 0, 0)
}

// Who does not read loses the oldest, exactly as many as it wanted of them, and costs
// the others nothing.
func TestFeedBounded(t *testing.T) {
	f := newFeedTest(t)
	reads, stuck, udp := f.reads(), f.reads(), f.reads(tracer.UDP)
	const events, burst = 600_000, 3000
	for range events / burst {
		f.happen(burst)
		f.want("who reads", reads, burst, 0)
		if f.bytes > keptBytes {
			t.Fatalf("%d bytes are kept, want %d at most", f.bytes, keptBytes)
		}
	}
	for _, c := range []struct {
		what   string
		r      *reader
		wanted int
	}{{"who did not read", stuck, events}, {"who did not read UDP", udp, events / 3}} {
		lines, lost := f.got(c.r)
		if lines+lost != c.wanted || lost == 0 || lines == 0 {
			t.Errorf("%s has %d lines and lost %d, want some of each, %d together", c.what, lines, lost, c.wanted)
		}
	}
}

// The last lines are those of the last events, in their order.
func TestFeedOrder(t *testing.T) {
	f := newFeedTest(t)
	r := f.reads()
	f.happen(1000)
	var all []byte
	for bytes.Count(all, []byte("\n")) < 1000 {
		_, b, err := f.next(t.Context(), nil, r, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	i := 0
	for line := range bytes.Lines(all) {
		if i++; !bytes.Contains(line, []byte(`"local_port":`+strconv.Itoa(i+1)+",")) && !bytes.Contains(line, fmt.Appendf(nil, `"local_port":%d}`, i+1)) {
			t.Fatalf("line %d is %s", i, line)
		}
	}
}

// There are places for so many.
func TestFeedFull(t *testing.T) {
	f := newFeedTest(t)
	for range maxStreams {
		f.reads()
	}
	if f.join(func(*tracer.Event) bool { return true }) != nil {
		t.Errorf("%d readers, want %d at most", maxStreams+1, maxStreams)
	}
}
