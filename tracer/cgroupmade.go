package tracer

import (
	"bytes"
	"unsafe"
)

// Cgroup is a cgroup of the v2 hierarchy that was made. Those cannot be renamed.
type Cgroup struct {
	ID     uint64 // which no other ever has
	Parent uint64 // id of the one it is in
	UID    uint32 // who made it, and so has its directory, in the initial user namespace
	Name   string // of its directory, any bytes
}

const cgroupRecord = int(unsafe.Sizeof(bpfCgroupMade{}))

// OnCgroup has f called by Run for each cgroup that is made, before the events of the processes in
// it. f must not block, nor call the Tracer. Where events are lost, calls may be. Call it before
// Run.
func (t *Tracer) OnCgroup(f func(Cgroup)) { t.onCgroup = f }

// takeCgroup takes a record that is of a cgroup; false: it is of an event.
func (t *Tracer) takeCgroup(record []byte) bool {
	if len(record) != cgroupRecord {
		return false
	}
	if t.onCgroup == nil {
		return true
	}
	var raw bpfCgroupMade // the record need not be aligned like one
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), cgroupRecord), record)
	name := unsafe.Slice((*byte)(unsafe.Pointer(&raw.Name[0])), len(raw.Name))
	name, _, _ = bytes.Cut(name, []byte{0})
	t.onCgroup(Cgroup{ID: raw.Id, Parent: raw.Parent, UID: raw.Uid, Name: string(name)})
	return true
}

// Cgroups calls f for the cgroup of each process that the table or the history has, more than
// once for some.
func (t *Tracer) Cgroups(f func(id uint64)) {
	t.table.cgroups(f)
	t.history.cgroups(f)
}

func (t *Table) cgroups(f func(id uint64)) {
	ids := make([]uint64, 0, readAtOnce)
	for from, more := 0, true; more; from += readAtOnce {
		t.mu.Lock()
		to := min(from+readAtOnce, len(t.procs.list))
		more, ids = to < len(t.procs.list), ids[:0]
		for i := from; i < to; i++ {
			if p := &t.procs.list[i]; p.uses > 0 {
				ids = append(ids, p.Cgroup)
			}
		}
		t.mu.Unlock()
		for _, id := range ids {
			f(id)
		}
	}
}

func (h *History) cgroups(f func(id uint64)) {
	const batch = 1 << 12 // before others get the history
	var last uint64
	for from, more := 0, true; more; from += batch {
		h.mu.Lock()
		for i := from; i < min(from+batch, h.ring.len); i++ {
			if id := h.ring.at(uint32(i)).owner.Cgroup; id != last {
				f(id)
				last = id
			}
		}
		more = from+batch < h.ring.len
		h.mu.Unlock()
	}
}
