package api

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

const (
	// answerBytes is the memory of all answers that clients have still to read; one that
	// takes more than largest of it has as much.
	answerBytes = 8 << 20
	// turnWithin is how long others wait.
	turnWithin = 10 * time.Second
	// stalledFor is how long a client may take for a part of its answer while others wait.
	stalledFor = 2 * time.Second
	// leastAnswer is what any answer takes: buffers.
	leastAnswer = 64 << 10
)

// answers lets one answer be made at a time, and as many be read as fit. Small ones get
// their room whoever waits for more.
type answers struct {
	bytes  int
	making chan struct{} // holds a token while one is made

	mu    sync.Mutex
	used  int
	turns map[*turn]struct{} // that have room
	freed chan struct{}      // closed when there is more room
}

func newAnswers(bytes int) *answers {
	return &answers{bytes: bytes, making: make(chan struct{}, 1), turns: make(map[*turn]struct{}), freed: make(chan struct{})}
}

// turn is an answer that is made, then read.
type turn struct {
	http.ResponseWriter
	of     *answers
	ctx    context.Context // until when it waits
	bytes  int             // of.mu
	making bool
	since  time.Time // when the write began that goes on; of.mu
}

// inTurn gives each answer its turn. The handler calls begin with what memory the answer
// will take, before it makes it, and writes it to the turn.
func (a *answers) inTurn(h func(t *turn, r *http.Request) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), turnWithin)
		defer cancel()
		t := &turn{ResponseWriter: w, of: a, ctx: ctx}
		defer t.end()
		return h(t, r)
	}
}

var errBusy = &httpError{http.StatusServiceUnavailable, errors.New("other clients are still reading their answers")}

// begin waits until there is room for so much, then until no other answer is made.
func (t *turn) begin(bytes int) error {
	a := t.of
	bytes = min(max(bytes, leastAnswer), a.bytes*3/4)
	look := time.NewTicker(stalledFor / 3)
	defer look.Stop()
	for {
		freed, ok := a.take(t, bytes)
		if ok {
			break
		}
		select {
		case <-freed:
		case <-look.C:
		case <-t.ctx.Done():
			return errBusy
		}
	}
	select {
	case a.making <- struct{}{}:
		t.making = true
		return nil
	case <-t.ctx.Done():
		return errBusy
	}
}

// take gives a turn its room, or cuts off who hardly reads.
func (a *answers) take(t *turn, bytes int) (freed <-chan struct{}, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used+bytes <= a.bytes {
		a.used += bytes
		t.bytes = bytes
		a.turns[t] = struct{}{}
		return nil, true
	}
	for other := range a.turns {
		if !other.since.IsZero() && time.Since(other.since) > stalledFor {
			_ = http.NewResponseController(other.ResponseWriter).SetWriteDeadline(time.Now()) // it has one already, if it can
		}
	}
	return a.freed, false
}

// made lets others be made, once it is known what memory the answer takes.
func (t *turn) made(bytes int) {
	t.resize(max(bytes, leastAnswer))
	if t.making {
		<-t.of.making
		t.making = false
	}
}

func (t *turn) resize(bytes int) {
	a := t.of
	a.mu.Lock()
	defer a.mu.Unlock()
	bytes = min(bytes, a.bytes*3/4)
	a.used += bytes - t.bytes
	if bytes < t.bytes {
		close(a.freed)
		a.freed = make(chan struct{})
	}
	t.bytes = bytes
}

func (t *turn) end() {
	if t.making {
		<-t.of.making
	}
	t.resize(0)
	t.of.mu.Lock()
	delete(t.of.turns, t)
	t.of.mu.Unlock()
}

// Write writes some of the answer.
func (t *turn) Write(b []byte) (int, error) {
	t.writes(time.Now())
	defer t.writes(time.Time{})
	return t.ResponseWriter.Write(b)
}

func (t *turn) writes(since time.Time) {
	t.of.mu.Lock()
	t.since = since
	t.of.mu.Unlock()
}

// Unwrap is for http.ResponseController.
func (t *turn) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// rowsBytes is what so many sockets take: as the kernel's rows, and some of those that are
// asked for encoded.
func rowsBytes(rows, wanted int) int { return 256*rows + 512*min(rows, wanted, 4096) }
