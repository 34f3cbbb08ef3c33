package tracer

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// A fileIndex knows what a map knows, while it grows and where addresses share a slot.
func TestFileIndex(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var index fileIndex
	want := make(map[uint64]uint32)
	if at, ok := index.find(1); ok {
		t.Errorf("an empty index has row %d", at)
	}
	for i := range uint32(10_000) {
		file := 0xffff888000000000 | rng.Uint64N(20_000)<<8 // as addresses of one slab
		index.put(file, i)
		want[file] = i
	}
	if index.used != len(want) {
		t.Errorf("%d files, want %d", index.used, len(want))
	}
	for n := range uint64(20_000) {
		file := 0xffff888000000000 | n<<8
		at, ok := index.find(file)
		if wantAt, wantOK := want[file]; ok != wantOK || ok && at != wantAt {
			t.Fatalf("file %#x: row %d, %v; want %d, %v", file, at, ok, wantAt, wantOK)
		}
	}
}

// The row of a socket that several descriptors and processes hold, and one nobody holds.
func TestRowsHolders(t *testing.T) {
	c := newCollection()
	row := func(sock, file uint64, port uint16) bpfRow {
		r := bpfRow{Sock: sock, File: file, Proto: uint8(TCP), State: uint8(StateListen)}
		r.Flow.LocalPort = port
		return r
	}
	c.add([]bpfRow{row(1, 100, 3), row(2, 200, 1), row(3, 0, 2)})
	c.add([]bpfRow{row(1, 100, 3)}) // its slot was read twice
	dec := newDecoder()
	table := func(pid, first uint32, files ...uint64) bpfFds {
		fds := bpfFds{First: first, Process: bpfProcess{Pid: pid}}
		copy(fds.Files[:], files)
		return fds
	}
	c.join(dec, []bpfFds{table(10, 0, 0, 100, 999, 200), table(10, 64, 100), table(11, 0, 100)})
	rows := &Rows{from: c, keys: c.unique(c.sorted())}
	type holder struct{ pid, fd uint32 }
	want := []struct {
		id      uint64
		holders []holder
	}{{2, []holder{{10, 3}}}, {3, nil}, {1, []holder{{10, 1}, {10, 64}, {11, 0}}}}
	if rows.Len() != len(want) {
		t.Fatalf("%d sockets, want %d", rows.Len(), len(want))
	}
	snap := rows.Snapshot()
	var so Socket // its memory is used again
	for i, want := range want {
		rows.Read(i, &so)
		for _, got := range []*Socket{&so, &snap.Sockets[i]} {
			var holders []holder
			for _, h := range got.Holders {
				holders = append(holders, holder{h.PID, h.FD})
			}
			if got.id != want.id || !slices.Equal(holders, want.holders) {
				t.Errorf("socket %d is %d, held by %v; want %d, %v", i, got.id, holders, want.id, want.holders)
			}
		}
		if role, proto := rows.Kind(i); role != so.Role || proto != so.Proto {
			t.Errorf("socket %d is of kind %v, %v", i, role, proto)
		}
	}
}
