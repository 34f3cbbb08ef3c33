package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	// unreadFor is how long a client may not read before its stream is ended.
	unreadFor = 5 * time.Minute
	// lookEach is how often a stream looks whether events were lost in the kernel, and
	// whether anybody is there: also while it has nothing to send.
	lookEach = time.Second
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
func (a *Server) events(w http.ResponseWriter, r *http.Request) error {
	v, err := values(r)
	if err != nil {
		return err
	}
	s := stream{a: a, w: w, out: http.NewResponseController(w)}
	if s.query, err = query.ParseEvents(v); err != nil {
		return err
	}
	if err := s.query.Locate(a.cfg.Names.NetNS); err != nil {
		return err
	}
	s.query.NameDevices(a.cfg.Names.Device)
	if s.kernel, err = a.lost(); err != nil {
		return err
	}
	if s.query.Verbose {
		if err := a.wantEstablished(1); err != nil {
			return err
		}
		defer func() { _ = a.wantEstablished(-1) }() // one event more or less of each connection
	}
	s.begun = tracer.Boottime()
	s.reader = a.feed.join(s.wants)
	if s.reader == nil {
		return &httpError{http.StatusServiceUnavailable, fmt.Errorf("%d clients read events already", maxStreams)}
	}
	defer a.feed.leave(s.reader)
	w.Header().Set("Content-Type", lines)
	a.note(w.Header(), s.query)
	w.WriteHeader(http.StatusOK)
	if err = s.out.Flush(); err == nil { // the client knows that it misses nothing from now on
		err = s.follow(r)
	}
	if err != nil {
		return sentError{err}
	}
	return nil
}

// wantEstablished counts who wants handshakes: while nobody does, the kernel does
// not report them.
func (a *Server) wantEstablished(more int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.verbose += more
	return a.cfg.Tracer.SetEstablished(a.verbose > 0)
}

// stream writes events to one client.
type stream struct {
	a      *Server
	query  *query.Events
	begun  time.Duration // CLOCK_BOOTTIME: what happened before may still be on its way to the reader
	reader *reader
	w      io.Writer
	out    *http.ResponseController
	buf    []byte

	looked time.Time
	kernel uint64 // lost there, told of
}

func (s *stream) wants(ev *tracer.Event) bool {
	return (ev.About || ev.Boottime() >= s.begun) && s.query.Event(s.a.cfg.Names.Cgroups, ev)
}

func (s *stream) follow(r *http.Request) error {
	tick := time.NewTicker(lookEach)
	defer tick.Stop()
	for {
		late, lines, err := s.a.feed.next(r.Context(), tick.C, s.reader, s.buf[:0])
		ended := errors.Is(err, io.EOF)
		if err != nil && !ended {
			return err
		}
		s.buf = lines
		if late > 0 {
			s.appendLost(late, ByClient)
		}
		if now := time.Now(); ended || now.Sub(s.looked) >= lookEach/2 { // more often than it ticks
			if s.looked = now; hungUp(r) {
				return nil
			}
			kernel, err := s.a.lost()
			if err != nil {
				return err
			}
			if kernel > s.kernel {
				s.appendLost(kernel-s.kernel, ByKernel)
				s.kernel = kernel
			}
		}
		if err := s.write(); err != nil || ended {
			return err
		}
	}
}

func (s *stream) appendLost(n uint64, by LostBy) {
	s.buf = strconv.AppendUint(append(s.buf, `{"lost":`...), n, 10)
	s.buf = append(append(append(s.buf, `,"by":"`...), by...), "\"}\n"...)
}

// write sends what is collected. It waits for a client that does not read, while the
// feed goes on.
func (s *stream) write() error {
	if len(s.buf) == 0 {
		return nil
	}
	if err := s.out.SetWriteDeadline(time.Now().Add(unreadFor)); err != nil {
		return err
	}
	_, err := s.w.Write(s.buf)
	return errors.Join(err, s.out.Flush())
}

// lost is the number of events that did not come from the kernel.
func (a *Server) lost() (uint64, error) {
	stats, err := a.cfg.Tracer.Stats()
	return stats.Lost() + stats.Bad, err
}
