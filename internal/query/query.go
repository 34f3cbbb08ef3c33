// Package query is what can be asked: about sockets, a port, events, history, and what
// headroom there is. A question is read once, from flags and from parameters of requests to the
// agent alike, by the same names, and decides what is part of its answer.
package query

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// Values are what was given, by the names of flags and of parameters.
type Values = map[string][]string

// Wrong is an error of who asks: it is not understood, or there is no such thing.
type Wrong struct {
	Err   error
	Param bool // its text begins with the name of a parameter
}

func (w *Wrong) Error() string { return w.Err.Error() }
func (w *Wrong) Unwrap() error { return w.Err }

// wrongParam is nil if err is.
func wrongParam(err error) error {
	if err == nil {
		return nil
	}
	return &Wrong{Err: err, Param: true}
}

// notThere makes errors that tell of a namespace or a device that is not there, or may not be
// looked for, those of who asks.
func notThere(err error, param bool, those ...error) error {
	if slices.ContainsFunc(those, func(is error) bool { return errors.Is(err, is) }) {
		return &Wrong{Err: err, Param: param}
	}
	return err
}

// Unlimited is a limit for all there is.
const Unlimited = math.MaxInt

// Sockets asks for the sockets that a filter lets pass.
type Sockets struct {
	*Filter
	values  Values
	asked   time.Time
	undated atomic.Int64
}

// ParseSockets reads filters of sockets. The error is a *Wrong.
func ParseSockets(values Values) (*Sockets, error) {
	f, err := ParseFilter(OfSockets, values)
	return &Sockets{Filter: f, values: values, asked: time.Now()}, err
}

// Socket is Filter.Socket, and with since tells whether a socket took its port within that time. One
// of which that is not known does not pass, and is counted.
func (q *Sockets) Socket(cgroups *identity.Cgroups, s *tracer.Socket) bool {
	if !q.Filter.Socket(cgroups, s) {
		return false
	}
	if q.since > 0 && s.Since.IsZero() {
		q.undated.Add(1)
		return false
	}
	return q.since == 0 || !s.Since.Before(q.asked.Add(-q.since))
}

// Dated tells whether it matters when sockets took their port.
func (q *Sockets) Dated() bool { return q.since > 0 }

// Undated is how many sockets did not pass because it is not known when they took their port.
func (q *Sockets) Undated() int { return int(q.undated.Load()) }

// Values are what the question was read from.
func (q *Sockets) Values() Values { return maps.Clone(q.values) }

// Events asks for the events that a filter lets pass.
type Events struct {
	*Filter
	Verbose bool // handshakes too, also where nothing else is asked for
	values  Values
}

// ParseEvents reads filters of events, and verbose. The error is a *Wrong.
func ParseEvents(values Values) (*Events, error) {
	q := &Events{values: values}
	for _, given := range values["verbose"] {
		var err error
		if q.Verbose, err = parseBool(given); err != nil {
			return nil, wrongParam(fmt.Errorf("verbose: %w", err))
		}
	}
	filters := maps.Clone(values)
	delete(filters, "verbose")
	var err error
	if q.Filter, err = ParseFilter(OfEvents, filters); err == nil {
		q.Verbose = q.Verbose || slices.Equal(q.event, []tracer.EventType{tracer.EventEstablished}) // who asks for nothing else wants it
	}
	return q, err
}

// Event tells whether an event passes.
func (q *Events) Event(cgroups *identity.Cgroups, ev *tracer.Event) bool {
	return (ev.Type != tracer.EventEstablished || q.Verbose) && q.Filter.Event(cgroups, ev)
}

// EventAt is Event of a process of which it is known where it runs, or ran.
func (q *Events) EventAt(in identity.Cgroup, ev *tracer.Event) bool {
	return (ev.Type != tracer.EventEstablished || q.Verbose) && q.happened(ev) && (!q.Any() || q.Match(in))
}

// Values are what the question was read from.
func (q *Events) Values() Values { return maps.Clone(q.values) }

// None refuses every parameter. The error is a *Wrong.
func None(values Values) error { return only(values) }

// only refuses parameters of other names.
func only(values Values, want ...string) error {
	for name := range values {
		if !slices.Contains(want, name) {
			list := strings.Join(want, ", ")
			if list == "" {
				list = "none"
			}
			return &Wrong{Err: fmt.Errorf("parameter %q: want %s", name, list)}
		}
	}
	return nil
}

// parseLimit reads how many rows are wanted; none given: all.
func parseLimit(given []string) (int, error) {
	switch len(given) {
	case 0:
		return Unlimited, nil
	case 1:
		n, err := strconv.ParseUint(given[0], 10, 31)
		if err != nil {
			return 0, wrongParam(fmt.Errorf("limit: %q: want a number from 0 to 2147483647", given[0]))
		}
		return int(n), nil
	}
	return 0, wrongParam(fmt.Errorf("limit: %q: want one", strings.Join(given, ",")))
}
