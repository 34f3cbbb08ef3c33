package tracer

import (
	"slices"
	"testing"
)

// The row of a socket that several descriptors and processes hold, and one nobody holds.
func TestRowsHolders(t *testing.T) {
	c := newCollection(newDecoder())
	row := func(sock, socket uint64, port uint16) bpfRow {
		r := bpfRow{Sock: sock, Socket: socket, Inode: socket, Proto: uint8(TCP), State: uint8(StateListen)}
		r.Flow.LocalPort = port
		return r
	}
	c.add([]bpfRow{row(1, 100, 3), row(2, 200, 1), row(3, 0, 2)})
	c.add([]bpfRow{row(1, 100, 3)}) // its slot was read twice
	for _, row := range c.want() {
		*row = bpfRow{}
	}
	c.held.add([]bpfFds{tableOf(10, 10, 0, 0, 100, 999, 200), tableOf(10, 10, 64, 100), tableOf(11, 11, 0, 100)})
	rows := &Rows{from: c, keys: c.unique(c.sorted()), most: c.most()}
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
