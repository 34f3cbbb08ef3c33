package query

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/porthole-dev/porthole/tracer"
)

// Port asks who has a port, and had it before: of these protocols, at least one, and at most
// Limit sockets of each role and protocol and as many of those before.
type Port struct {
	Number uint16
	Protos []tracer.Proto
	Limit  int
}

// ParsePort reads a port as requests have it, with proto and limit. The error is a *Wrong.
func ParsePort(number string, values Values) (q Port, err error) {
	if err := only(values, "proto", "limit"); err != nil {
		return q, err
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

// ParsePortWord reads a port as people write it: 8080, or 53/udp. The error is a *Wrong.
func ParsePortWord(word string) (Port, error) {
	number, proto, given := strings.Cut(word, "/")
	port, err := parsePort(number)
	if err != nil {
		return Port{}, &Wrong{Err: fmt.Errorf("%w, alone or followed by /tcp or /udp", err)}
	}
	q := Port{Number: port, Protos: protos(), Limit: Unlimited}
	if given {
		p, err := parseProto(proto)
		if err != nil {
			return Port{}, &Wrong{Err: fmt.Errorf("protocol %w", err)}
		}
		q.Protos = []tracer.Proto{p}
	}
	return q, nil
}

// About tells whether a protocol is asked about.
func (q *Port) About(proto tracer.Proto) bool { return slices.Contains(q.Protos, proto) }

// Values are the question as a request has it, besides the number.
func (q *Port) Values() Values {
	values := make(Values)
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
