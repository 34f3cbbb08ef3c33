package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/porthole-dev/porthole/internal/filter"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	// maxStreams bounds how many clients read events at once, and queueOf how many
	// events wait for each: some 4 MB, and the same again
	// on its way to it.
	maxStreams = 32
	queueOf    = 1 << 14
	// unreadFor is how long a client may not read before its stream is ended.
	unreadFor = 5 * time.Minute
	// chunk is how many bytes are written at once.
	chunk = 64 << 10
	// lookLost is how often a stream looks for events lost in the kernel.
	lookLost = time.Second
)

// Lost tells within a stream of events how many were lost since the last such line:
// by the kernel, or by the client, which read too slowly.
type Lost struct {
	Lost uint64 `json:"lost"`
	By   LostBy `json:"by"`
}

// LostBy is who lost events.
type LostBy string

// Who can lose events.
const (
	ByKernel LostBy = "kernel"
	ByClient LostBy = "client"
)

// events streams events as tail prints them, until the client goes or the agent
// ends.
func (a *agent) events(w http.ResponseWriter, r *http.Request) error {
	v, err := values(r)
	if err != nil {
		return err
	}
	s := stream{a: a, w: w, out: http.NewResponseController(w)}
	for _, given := range v["verbose"] {
		if s.verbose, err = filter.ParseBool(given); err != nil {
			return badRequest(fmt.Errorf("verbose: %w", err))
		}
	}
	delete(v, "verbose")
	if s.filter, err = filter.Parse(filter.Events, v); err != nil {
		return badRequest(err)
	}
	defer a.clients.Add(-1)
	if a.clients.Add(1) > maxStreams {
		return &httpError{http.StatusServiceUnavailable, fmt.Errorf("%d clients read events already", maxStreams)}
	}
	if s.kernel, err = a.lost(); err != nil {
		return err
	}
	if s.verbose {
		if err := a.wantEstablished(1); err != nil {
			return err
		}
		defer func() { _ = a.wantEstablished(-1) }() // one event more or less of each connection
	}
	s.sub = a.tracer.Subscribe(queueOf)
	defer s.sub.Close()
	w.Header().Set("Content-Type", lines)
	w.WriteHeader(http.StatusOK)
	if err = s.out.Flush(); err == nil { // the client knows that it misses nothing from now on
		err = s.follow(r.Context())
	}
	if err != nil {
		return sentError{err}
	}
	return nil
}

// wantEstablished counts who wants handshakes: while nobody does, the kernel does
// not report them.
func (a *agent) wantEstablished(more int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.verbose += more
	return a.tracer.SetEstablished(a.verbose > 0)
}

// stream writes events to one client.
type stream struct {
	a       *agent
	filter  *filter.Filter
	verbose bool
	sub     *tracer.Subscription
	w       io.Writer
	out     *http.ResponseController
	buf     []byte

	looked       time.Time
	kernel, late uint64 // told of: lost by the kernel, by the client
}

func (s *stream) follow(ctx context.Context) error {
	var events []tracer.Event
	for {
		var err error
		events, err = s.sub.Next(ctx, events)
		ended := errors.Is(err, io.EOF)
		if err != nil && !ended {
			return err
		}
		late := s.sub.Lost() // later than everything in events
		for i := range events {
			if err := s.event(&events[i]); err != nil {
				return err
			}
		}
		if err := s.lost(late, ended); err != nil {
			return err
		}
		if err := s.write(); err != nil || ended {
			return err
		}
	}
}

func (s *stream) event(ev *tracer.Event) error {
	if ev.Type == tracer.EventEstablished && !s.verbose || !s.filter.Event(s.a.names.Cgroups, ev) {
		return nil
	}
	row := s.a.names.Event(ev)
	s.buf = append(row.AppendJSON(s.buf), '\n')
	if len(s.buf) < chunk {
		return nil
	}
	return s.write()
}

// lost tells what was lost since it last did.
func (s *stream) lost(late uint64, ended bool) error {
	if late > s.late {
		s.appendLost(late-s.late, ByClient)
		s.late = late
	}
	if now := time.Now(); ended || now.Sub(s.looked) >= lookLost {
		s.looked = now
		kernel, err := s.a.lost()
		if err != nil {
			return err
		}
		if kernel > s.kernel {
			s.appendLost(kernel-s.kernel, ByKernel)
			s.kernel = kernel
		}
	}
	return nil
}

func (s *stream) appendLost(n uint64, by LostBy) {
	s.buf = strconv.AppendUint(append(s.buf, `{"lost":`...), n, 10)
	s.buf = append(append(append(s.buf, `,"by":"`...), by...), "\"}\n"...)
}

// write sends what is collected. It waits for a client that does not read, while
// the subscription loses what there is no room for.
func (s *stream) write() error {
	if len(s.buf) == 0 {
		return nil
	}
	if err := s.out.SetWriteDeadline(time.Now().Add(unreadFor)); err != nil {
		return err
	}
	_, err := s.w.Write(s.buf)
	s.buf = s.buf[:0]
	return errors.Join(err, s.out.Flush())
}
