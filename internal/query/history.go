package query

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/tracer"
)

// History asks for what had ports, the latest first: what is over and, where a kind is asked for, what is
// still, and calls that got none.
type History struct {
	*Filter
	Limit        int
	Since, Until time.Time // what had its port at some time between these; zero: whenever
	After        string    // the cursor of the row to go on after; "": from the latest on

	failures, listeners, connections bool
	plain                            bool // none of these: only what is over
	values                           Values
}

// historyParams are those that are no filters. port is a local port, as it has always been: the filter of
// that name is either here.
var historyParams = []string{"port", "limit", "since", "until", "at", "cursor", "failures", "listeners", "connections"}

// EitherPort is what parameters of requests call the filter port: there port is a local port.
const EitherPort = "either_port"

// ParseHistory reads filters, port, limit, since, until, at, cursor and which kinds are asked for. Times are those of a
// time zone, of now. The error is a *Wrong.
func ParseHistory(values Values, now time.Time) (*History, error) {
	q := &History{values: values}
	filters := make(Values)
	for name, given := range values {
		switch {
		case name == EitherPort:
			filters["port"] = given
		case !slices.Contains(historyParams, name):
			filters[name] = given
		}
	}
	one := func(name string) (string, bool, error) {
		given := values[name]
		if len(given) > 1 {
			return "", false, wrongParam(fmt.Errorf("%s: %q: want one", name, strings.Join(given, ",")))
		}
		if len(given) == 0 {
			return "", false, nil
		}
		return given[0], true, nil
	}
	for name, to := range map[string]*bool{"failures": &q.failures, "listeners": &q.listeners, "connections": &q.connections} {
		for _, given := range values[name] {
			var err error
			if *to, err = parseBool(given); err != nil {
				return nil, wrongParam(fmt.Errorf("%s: %w", name, err))
			}
		}
	}
	q.plain = !q.failures && !q.listeners && !q.connections
	if word, ok, err := one("port"); err != nil {
		return nil, err
	} else if ok {
		if _, err := parsePort(word); err != nil {
			return nil, wrongParam(fmt.Errorf("port: %w", err))
		}
		if len(filters["lport"]) > 0 {
			return nil, wrongParam(errors.New("port: not with lport"))
		}
		filters["lport"] = []string{word}
	}
	var err error
	if q.Limit, err = parseLimit(values["limit"]); err != nil {
		return nil, err
	}
	if q.After, _, err = one("cursor"); err != nil {
		return nil, err
	}
	for _, name := range []string{"since", "until", "at"} {
		word, ok, err := one(name)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		m, err := ParseMoment(word, now)
		if err != nil {
			return nil, wrongParam(fmt.Errorf("%s: %w", name, err))
		}
		switch name {
		case "since":
			q.Since = m.From
		case "until":
			q.Until = m.From
		case "at":
			if !q.Since.IsZero() || !q.Until.IsZero() {
				return nil, wrongParam(errors.New("at: not with since or until"))
			}
			q.Since, q.Until = m.From, m.To
		}
	}
	if !q.Until.IsZero() && q.Until.Before(q.Since) {
		return nil, wrongParam(fmt.Errorf("until: %s is before since, %s", q.Until.Format(time.RFC3339), q.Since.Format(time.RFC3339)))
	}
	if q.Filter, err = ParseFilter(OfHistory, filters); err != nil {
		return nil, err
	}
	return q, nil
}

// Values are the question as a request has it: its times are those of a clock that is the same
// everywhere.
func (q *History) Values() Values {
	values := make(Values)
	maps.Copy(values, q.values)
	delete(values, "at")
	for name, t := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !t.IsZero() {
			values[name] = []string{t.Format(time.RFC3339Nano)}
		}
	}
	if q.Limit != Unlimited {
		values["limit"] = []string{strconv.Itoa(q.Limit)}
	}
	return values
}

// mostPorts is of how many ports it is looked up which segments have them.
const mostPorts = 64

// Stored is the question as the history on disk is asked.
func (q *History) Stored() *store.Query {
	s := &store.Query{Since: q.Since, Until: q.Until, After: q.After, Match: q.matches}
	for _, list := range []struct {
		to   *[]uint16
		from []uint16
	}{{&s.Local, q.lport}, {&s.Remote, q.rport}, {&s.Either, q.port}} {
		if len(list.from) <= mostPorts {
			*list.to = list.from
		}
	}
	if q.plain {
		s.Kinds = []store.Kind{store.Held}
	}
	return s
}

// matches tells whether a row passes.
func (q *History) matches(r *store.Row) bool {
	if !q.plain {
		failed := r.Kind == store.Refused || r.OfRefused || store.Failed(r.Errno)
		refused := r.Kind == store.Refused || r.OfRefused
		if !(q.failures && failed || q.listeners && r.Listener && !refused || q.connections && !r.Listener && !refused) {
			return false
		}
	}
	var p tracer.Process
	var place identity.Cgroup
	if r.Owner != nil {
		p, place = r.Owner.Process, r.Owner.Place
	}
	return q.row(r.Proto, r.Role, r.Local.Port(), r.Remote.Port(), &p) && q.touches(r.Proto, r.Local, r.Remote, tracer.DeviceID{}) &&
		q.inSpace(r.NetNS, r.Space) && (!q.Any() || q.Match(place))
}

func (f *Filter) row(proto tracer.Proto, role tracer.Role, local, remote uint16, p *tracer.Process) bool {
	return pass(f.proto, proto) && pass(f.role, role) && f.ports(local, remote) && (len(f.pid) == 0 || has(f.pid, p.PID)) &&
		(len(f.uid) == 0 || p.PID != 0 && has(f.uid, p.UID)) && f.comm.pass(p.Comm)
}

// inSpace tells whether a network namespace passes by the name that it had then, or its number.
func (f *Filter) inSpace(inode uint32, name string) bool {
	return len(f.netNS) == 0 || slices.ContainsFunc(f.netNS, func(word string) bool {
		return word == name || word == strconv.FormatUint(uint64(inode), 10)
	})
}

// Tenancy tells whether what the agent has in memory passes, and its namespace's name.
func (q *History) Tenancy(names *identity.Names, t *tracer.Tenancy) bool {
	if !q.Since.IsZero() && t.Until.Before(q.Since) || !q.Until.IsZero() && t.Since.After(q.Until) {
		return false
	}
	r := store.Row{
		Kind: store.Held, Proto: t.Proto, Local: t.Local, Remote: t.Remote, NetNS: t.NetNS, Errno: t.Errno, Listener: !t.Remote.IsValid(),
		Owner: &store.Process{Process: t.Owner},
	}
	if len(q.netNS) > 0 {
		r.Space = names.NetNS.Name(identity.NetNS{Inode: t.NetNS, Cookie: t.NetNSCookie}, t.Until)
	}
	if q.Any() {
		r.Owner.Place = names.Cgroups.Of(&t.Owner)
	}
	return q.matches(&r)
}
