package identity

import (
	"errors"
	"time"
)

const (
	// readWithin is how long is waited for files of a user.
	readWithin = 250 * time.Millisecond
	// slowFor is how long files of a user are not read after reading them took longer.
	slowFor = 10 * time.Second
	// maxReading is how many users' files are read at once.
	maxReading = 8
)

// errSlow: reading takes too long, or an earlier read has not ended.
var errSlow = errors.New("the files of a user's containers take too long to read")

// within runs what reads files of a user, whose home may be a file system that does not answer: then
// nobody else waits for it. errSlow when it has not ended in time.
func (f *runtimeFiles) within(uid uint32, read func() (*record, error)) (*record, error) {
	if !f.begin(uid) {
		return nil, errSlow
	}
	type result struct {
		*record
		error
	}
	done := make(chan result, 1)
	go func() {
		r, err := read()
		f.end(uid, false)
		done <- result{r, err}
	}()
	select {
	case got := <-done:
		return got.record, got.error
	case <-time.After(readWithin):
		f.end(uid, true)
		return nil, errSlow
	}
}

// reading is what reads files of a user.
type reading struct {
	count int       // of goroutines
	slow  time.Time // until when not to read
}

func (f *runtimeFiles) begin(uid uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reading == nil {
		f.reading = make(map[uint32]reading)
	}
	r := f.reading[uid]
	if time.Now().Before(r.slow) || r.count >= maxReading || r.count == 0 && len(f.reading) >= maxReading {
		return false
	}
	r.count++
	f.reading[uid] = r
	return true
}

// end ends a read, or with slow remembers that it has not ended.
func (f *runtimeFiles) end(uid uint32, slow bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.reading[uid]
	if slow {
		r.slow = time.Now().Add(slowFor)
	} else {
		r.count--
	}
	if r.count == 0 {
		delete(f.reading, uid)
		return
	}
	f.reading[uid] = r
}
