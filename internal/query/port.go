package query

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/tracer"
)

// Port asks who has a port, and had it before: of these protocols, at least one, and at most
// Limit sockets of each role and protocol and as many of those before.
type Port struct {
	Number uint16
	Protos []tracer.Proto
	Limit  int
	NoArgs bool // no command lines

	where  *Filter // nil: everywhere
	values Values  // that where was read from
}

// ParsePort reads a port as requests have it, with proto, limit, args and where to look. The
// error is a *Wrong.
func ParsePort(number string, values Values) (q Port, err error) {
	where, names := make(Values), []string{"proto", "limit", "args"}
	for _, p := range Params(OfPort) {
		names = append(names, p.Name)
		if given, ok := values[p.Name]; ok {
			where[p.Name] = given
		}
	}
	if err := only(values, names...); err != nil {
		return q, err
	}
	if err := q.Narrow(where); err != nil {
		return q, err
	}
	for _, given := range values["args"] {
		args, err := parseBool(given)
		if err != nil {
			return q, wrongParam(fmt.Errorf("args: %w", err))
		}
		q.NoArgs = !args
	}
	if q.Number, err = parsePort(number); err != nil {
		return q, &Wrong{Err: err}
	}
	if q.Protos, err = parseProtos(values["proto"]); err != nil {
		return q, err
	}
	q.Limit, err = parseLimit(values["limit"])
	return q, err
}

// Narrow leaves only what filters of ports let pass. Locate looks for the namespaces before
// Has is asked. The error is a *Wrong.
func (q *Port) Narrow(values Values) (err error) {
	if len(values) == 0 {
		return nil
	}
	q.where, err = ParseFilter(OfPort, values)
	q.values = values
	return err
}

// Locate looks for the network namespaces that are asked about, as Filter.Locate does.
func (q *Port) Locate(names *identity.NetNSNames) error {
	if q.where == nil {
		return nil
	}
	return q.where.Locate(names)
}

// Place is the one network namespace that is asked about; ok is false where it is none or
// several, or the answer is about a container or pod.
func (q *Port) Place() (id identity.NetNS, ok bool) {
	if q.where == nil || len(q.where.wanted) != 1 || len(q.values) != 1 {
		return identity.NetNS{}, false
	}
	id, err := q.where.wanted[0].ID()
	return id, err == nil
}

// Filter is that of where is looked; nil: everywhere.
func (q *Port) Filter() *Filter { return q.where }

// Narrowed tells whether only some place is asked about.
func (q *Port) Narrowed() bool { return q.where != nil }

// Has tells whether a socket with the port is asked about.
func (q *Port) Has(cgroups *identity.Cgroups, s *tracer.Socket) bool {
	return q.About(s.Proto) && (q.where == nil || q.where.Socket(cgroups, s))
}

// Had tells whether a tenancy of the port is asked about.
func (q *Port) Had(cgroups *identity.Cgroups, t *tracer.Tenancy) bool {
	if !q.About(t.Proto) || q.where == nil {
		return q.About(t.Proto)
	}
	return q.where.inNetNS(identity.NetNS{Inode: t.NetNS, Cookie: t.NetNSCookie}, t.Until) && q.where.match(cgroups, &t.Owner)
}

// HadRow is Had of what a history on disk has.
func (q *Port) HadRow(r *store.Row) bool {
	if !q.About(r.Proto) || q.where == nil {
		return q.About(r.Proto)
	}
	var place identity.Cgroup
	if r.Owner != nil {
		place = r.Owner.Place
	}
	return q.where.inSpace(r.NetNS, r.Space) && (!q.where.Any() || q.where.Match(place))
}

// Where says in words what is asked about, "" for everything.
func (q *Port) Where() string {
	var words []string
	for _, p := range Params(OfPort) {
		if given := q.values[p.Name]; len(given) > 0 {
			what := map[string]string{"netns": "network namespace"}[p.Name]
			words = append(words, fmt.Sprintf("%s %s", cmp.Or(what, p.Name), identity.Safe(strings.Join(given, " or "))))
		}
	}
	if len(words) == 0 {
		return ""
	}
	return "in " + strings.Join(words, ", ")
}

// Note says what of the question can match nothing, and what runs instead, as Places.Note does.
func (q *Port) Note(cgroups *identity.Cgroups) string {
	if q.where == nil {
		return ""
	}
	return q.where.Note(cgroups)
}

// About tells whether a protocol is asked about.
func (q *Port) About(proto tracer.Proto) bool { return slices.Contains(q.Protos, proto) }

// Values are the question as a request has it, besides the number.
func (q *Port) Values() Values {
	values := make(Values)
	maps.Copy(values, q.values)
	if q.NoArgs {
		values["args"] = []string{"false"}
	}
	if len(q.Protos) == 1 {
		values["proto"] = []string{q.Protos[0].String()}
	}
	if q.Limit != Unlimited {
		values["limit"] = []string{strconv.Itoa(q.Limit)}
	}
	return values
}

// parseProtos returns the protocols given, each once; of none given all.
func parseProtos(given []string) ([]tracer.Proto, error) {
	var out []tracer.Proto
	for _, s := range given {
		p, err := parseProto(s)
		if err != nil {
			return nil, wrongParam(fmt.Errorf("proto: %w", err))
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return protos(), nil
	}
	return out, nil
}
