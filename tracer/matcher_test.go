package tracer

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// A addressIndex knows what a map knows, while it grows and where addresses share a slot.
func TestAddressIndex(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var index addressIndex
	want := make(map[uint64]uint32)
	if at, ok := index.find(1); ok {
		t.Errorf("an empty index has row %d", at)
	}
	for i := range uint32(10_000) {
		address := 0xffff888000000000 | rng.Uint64N(20_000)<<8 // as addresses of one slab
		index.put(address, i)
		want[address] = i
	}
	if index.used != len(want) {
		t.Errorf("%d addresses, want %d", index.used, len(want))
	}
	for n := range uint64(20_000) {
		address := 0xffff888000000000 | n<<8
		at, ok := index.find(address)
		if wantAt, wantOK := want[address]; ok != wantOK || ok && at != wantAt {
			t.Fatalf("address %#x: row %d, %v; want %d, %v", address, at, ok, wantAt, wantOK)
		}
	}
}

// tableOf is a part of the table of a thread: from a descriptor on, the sockets whose
// address and inode number is each of these; 0: none.
func tableOf(pid, tid, first uint32, sockets ...uint64) bpfFds {
	fds := bpfFds{First: first, Tid: tid, Process: bpfProcess{Pid: pid}}
	for i, socket := range sockets {
		fds.Sockets[i], fds.Inodes[i] = socket, uint32(socket)
	}
	return fds
}

// A socket is its struct socket and the inode number of that: the address alone is soon
// that of another.
func TestMatcherIdentity(t *testing.T) {
	m := newMatcher(newDecoder())
	old, _ := m.want(&bpfRow{Sock: 1, Socket: 100, Inode: 7})
	now, _ := m.want(&bpfRow{Sock: 2, Socket: 100, Inode: 8})
	subflow, _ := m.want(&bpfRow{Sock: 3, Socket: 100, Inode: 8})
	if n, known := m.want(&bpfRow{Sock: 2, Socket: 100, Inode: 8}); !known || n != now {
		t.Errorf("the second row of a socket is number %d, known %v; want %d", n, known, now)
	}
	table := tableOf(10, 10, 0, 100)
	table.Inodes[0] = 8
	m.add([]bpfFds{table})
	for n, want := range map[uint32]int{old: 0, now: 1, subflow: 1} {
		if got := m.count(n); got != want {
			t.Errorf("socket %d has %d holders, want %d", n, got, want)
		}
	}
}

// Each descriptor of a process is told once, however many of its threads have a table of
// their own, and whether those are equal.
func TestMatcherThreads(t *testing.T) {
	m := newMatcher(newDecoder())
	n, _ := m.want(&bpfRow{Sock: 1, Socket: 100, Inode: 100})
	other, _ := m.want(&bpfRow{Sock: 2, Socket: 200, Inode: 200})
	m.add([]bpfFds{
		tableOf(10, 11, 0, 100), tableOf(10, 12, 0, 100), // equal
		tableOf(10, 13, 0, 100, 200), // another besides
		tableOf(10, 14, 0, 200, 100), // the same by another descriptor
		tableOf(20, 20, 0, 100), tableOf(20, 21, 0, 100),
	})
	type holder struct{ pid, fd uint32 }
	for number, want := range map[uint32][]holder{
		n: {{10, 0}, {20, 0}, {10, 1}}, other: {{10, 1}, {10, 0}},
	} {
		holders, more := m.holders(number, nil)
		var got []holder
		for _, h := range holders {
			got = append(got, holder{h.PID, h.FD})
		}
		if !slices.Equal(got, want) || more != 0 || m.count(number) != len(want) {
			t.Errorf("socket %d is held by %v and %d more of %d, want %v", number, got, more, m.count(number), want)
		}
	}
}

// A ring has a socket once, however often it is registered.
func TestMatcherRing(t *testing.T) {
	m := newMatcher(newDecoder())
	n, _ := m.want(&bpfRow{Sock: 1, Socket: 100, Inode: 100})
	ring := tableOf(10, 10, 5, 0, 100, 100)
	ring.Ring = 1
	m.add([]bpfFds{ring, ring})
	if holders, _ := m.holders(n, nil); len(holders) != 1 || holders[0].FD != 5 || !holders[0].Ring {
		t.Errorf("held by %+v, want ring 5 of process 10", holders)
	}
}

// What a server's children inherit is kept once, and what is not equal in a bounded
// number: of the others it is known how many they are.
func TestMatcherBounded(t *testing.T) {
	for _, test := range []struct {
		what  string
		equal bool
	}{{"equal tables", true}, {"tables that differ", false}} {
		m := newMatcher(newDecoder())
		row := func(i uint64) bpfRow { return bpfRow{Sock: i, Socket: i, Inode: i} }
		const children = 3000
		sockets := make([]uint64, len(bpfFds{}.Sockets)-1)
		for i := range sockets {
			sockets[i] = uint64(i + 1)
			r := row(sockets[i])
			m.want(&r)
		}
		for child := range uint32(children) {
			table := tableOf(100+child, 100+child, 0, append(slices.Clone(sockets), 0)...)
			if !test.equal {
				table.Sockets[len(bpfFds{}.Sockets)-1], table.Inodes[len(bpfFds{}.Sockets)-1] = 1<<40, child
			}
			m.add([]bpfFds{table})
		}
		refs := 0
		for n := range uint32(len(sockets)) {
			holders, more := m.holders(n, nil)
			if len(holders)+more != children || m.count(n) != children {
				t.Fatalf("%s: %d holders and %d more, want %d together", test.what, len(holders), more, children)
			}
			refs += 1 + len(m.more[n])
		}
		if most := len(sockets)*fewRefs + moreRefs; refs > most || test.equal && refs != len(sockets) {
			t.Errorf("%s: %d places are kept", test.what, refs)
		}
		if len(m.known) > maxKnown || test.equal && len(m.parts) != 1 {
			t.Errorf("%s: %d parts with their contents, %d in all", test.what, len(m.known), len(m.parts))
		}
	}
}

// A second look at all tables is for those alone that the first found nobody of.
func TestMatcherAgain(t *testing.T) {
	m := newMatcher(newDecoder())
	found, _ := m.want(&bpfRow{Sock: 1, Socket: 100, Inode: 100})
	moved, _ := m.want(&bpfRow{Sock: 2, Socket: 200, Inode: 200})
	m.add([]bpfFds{tableOf(10, 10, 0, 100)})
	m.again()
	m.add([]bpfFds{tableOf(10, 10, 0, 100), tableOf(11, 11, 0, 100, 200), tableOf(12, 12, 0, 0, 200)})
	if m.count(found) != 1 || m.count(moved) != 2 {
		t.Errorf("%d and %d holders, want 1 and 2", m.count(found), m.count(moved))
	}
}
