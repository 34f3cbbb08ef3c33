// Package cache keeps what was looked up, a bounded number of values.
package cache

import (
	"sync"
	"sync/atomic"
)

const (
	ways = 8
	bits = 10
	// Max is how many values a Cache keeps at most.
	Max = ways << bits
)

// Cache keeps the values of at most Max keys: those that are read. It is safe for
// concurrent use; Get takes no lock and allocates nothing. The zero value is ready.
type Cache[V any] struct {
	mu   sync.Mutex // for Put
	sets [1 << bits]set[V]
}

// set is the places that a key can be in.
type set[V any] struct {
	places [ways]atomic.Pointer[entry[V]]
	hand   int // the place to be given away next, unless it was read since it was last offered
}

type entry[V any] struct {
	key   uint64
	value V
	used  atomic.Bool
}

func (c *Cache[V]) of(key uint64) *set[V] {
	const golden = 0x9e3779b97f4a7c15 // keys that follow each other are in different sets
	return &c.sets[key*golden>>(64-bits)]
}

// Get returns the value of a key.
func (c *Cache[V]) Get(key uint64) (value V, ok bool) {
	s := c.of(key)
	for i := range s.places {
		if e := s.places[i].Load(); e != nil && e.key == key {
			if !e.used.Load() { // not at each read: other processors read it too
				e.used.Store(true)
			}
			return e.value, true
		}
	}
	return value, false
}

// Put sets the value of a key. Where there is no room, a key that was not read for longer
// than others loses its own.
func (c *Cache[V]) Put(key uint64, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.of(key)
	s.places[s.place(key)].Store(&entry[V]{key: key, value: value})
}

// place is where the value of a key goes.
func (s *set[V]) place(key uint64) int {
	free := -1
	for i := range s.places {
		switch e := s.places[i].Load(); {
		case e == nil:
			free = i
		case e.key == key:
			return i
		}
	}
	for range 2 * ways { // twice round, for the first may find that all were read
		if free >= 0 {
			return free
		}
		i := s.hand
		s.hand = (s.hand + 1) % ways
		if !s.places[i].Load().used.Swap(false) {
			free = i
		}
	}
	return s.hand // all are read again and again
}
