package tracer

// slabChunk is how many elements a slab grows by: some 100 kB of those kept here.
const slabChunk = 1024

// slab is an array that grows, and whose elements stay where they are. A slice would
// be copied as it grows, and for a while be there twice. It does not shrink: who has no
// use for an element keeps it for the next.
//
// What there may be 100,000 of is kept in slabs, without pointers: the garbage collector
// does not look into those, so it can run often and keep the heap small.
type slab[T any] struct {
	chunks []*[slabChunk]T
	len    int
}

// at returns element i, which is the slab's.
func (s *slab[T]) at(i uint32) *T { return &s.chunks[i/slabChunk][i%slabChunk] }

// grow adds an element, zero, and returns its index.
func (s *slab[T]) grow() uint32 {
	if s.len == len(s.chunks)*slabChunk {
		s.chunks = append(s.chunks, new([slabChunk]T))
	}
	s.len++
	return uint32(s.len - 1)
}
