package query

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// End is a port as people write it, or paste it from elsewhere.
type End struct {
	Addr   netip.Addr // not valid: none is given
	Device string     // of the address; "": none
	Host   string     // a name instead of an address; "": none, or localhost
	// Localhost: the name localhost stands there. Addr is not valid: it is 127.0.0.1 or ::1.
	Localhost bool
	Port      uint16
	Protos    []tracer.Proto // at least one
}

// Ends are ports as people write them, a range at most.
type Ends struct {
	End
	Last uint16 // of the range that begins with Port; without a range it is Port
}

// ParseEndWord reads a port as ParseEndsWord does, but no range. The error is a *Wrong.
func ParseEndWord(word string) (End, error) {
	ends, err := ParseEndsWord(word)
	if err == nil && ends.Last != ends.Port {
		err = &Wrong{Err: fmt.Errorf("%q: want one port, not a range", word)}
	}
	return ends.End, err
}

// ParseEndsWord reads 8080, 80-90, http, :8080, *:8080, 127.0.0.1:8080, [::1]:8080 and
// localhost:8080, each alone, followed by /tcp or /udp, or after tcp/, udp/, tcp: or udp:; and the
// port of a URL. The error is a *Wrong.
func ParseEndsWord(word string) (Ends, error) {
	ends, err := parseEnds(word)
	if err != nil {
		return Ends{}, &Wrong{Err: err}
	}
	return ends, nil
}

func parseEnds(word string) (Ends, error) {
	if strings.Contains(word, "://") {
		return parseURL(word)
	}
	ends := Ends{End: End{Protos: protos()}}
	rest := word
	if head, tail, ok := strings.Cut(word, "/"); ok {
		proto := tail
		rest = head
		if p, err := parseProto(head); err == nil {
			proto, rest = p.String(), tail
		}
		p, err := parseProto(proto)
		if err != nil {
			return Ends{}, fmt.Errorf("protocol %w", err)
		}
		ends.Protos = []tracer.Proto{p}
	} else if head, tail, ok := strings.Cut(word, ":"); ok { // as in lsof -i tcp:80
		if p, err := parseProto(head); err == nil {
			ends.Protos, rest = []tracer.Proto{p}, tail
		}
	}
	number := rest
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		if err := misplaced(word, rest, i); err != nil {
			return Ends{}, err
		}
		number = rest[i+1:]
		if err := ends.setHost(rest[:i]); err != nil {
			return Ends{}, err
		}
	}
	if many := strings.Split(number, ","); len(many) > 1 {
		return Ends{}, fmt.Errorf("%q: want several ports as words of their own, as %s", word, identity.Safe(strings.TrimSpace(strings.Join(many, " "))))
	}
	found, err := parsePortsOf(number, ends.Protos)
	if err != nil {
		return Ends{}, fmt.Errorf("%w; before it an address if need be, and after it /tcp or /udp", err)
	}
	ends.Port, ends.Last = found.low, found.high
	return ends, nil
}

// misplaced says what is wrong with the last colon of a word, at rest[colon]: it is one of the address, or
// nothing stands after it.
func misplaced(word, rest string, colon int) error {
	head, tail := rest[:colon], rest[colon+1:]
	if addr, _, err := parseAddr(rest); err == nil && addr.Is6() {
		_, _, noAddr := parseAddr(head)
		_, noPort := parsePort(tail)
		if noAddr != nil || noPort != nil {
			return fmt.Errorf("%q: want a port after the address, as [%s]:8080", word, addr)
		}
	}
	if _, err := parsePort(head); err == nil && tail == "" {
		return fmt.Errorf("%q: want the port after the colon, as :%s, or alone", word, head)
	}
	return nil
}

// setHost takes what stands before a port: nothing, an address or a name.
func (e *End) setHost(host string) (err error) {
	switch {
	case host == "", host == "*":
		return nil
	case strings.EqualFold(host, "localhost"):
		e.Localhost = true
		return nil
	case isHostName(host):
		e.Host = host
		return nil
	}
	e.Addr, e.Device, err = parseAddr(host)
	return err
}

// isHostName tells whether a word looks like the name of a host and is no attempt at an address.
func isHostName(s string) bool {
	letters := false
	for _, c := range s {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			letters = true
		case c >= '0' && c <= '9', c == '-', c == '.', c == '_':
		default:
			return false
		}
	}
	return letters
}

// parseURL takes the port of a URL, which may follow from its scheme.
func parseURL(word string) (Ends, error) {
	u, err := url.Parse(word)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return Ends{}, fmt.Errorf("URL %q: %w", word, err)
	}
	ends := Ends{End: End{Protos: []tracer.Proto{tracer.TCP}}}
	if p, err := parseProto(u.Scheme); err == nil {
		ends.Protos[0] = p
	}
	if err := ends.setHost(u.Hostname()); err != nil {
		return Ends{}, err
	}
	number := u.Port()
	if number == "" {
		number = map[string]string{"ws": "80", "wss": "443", "postgres": "5432", "postgresql": "5432"}[u.Scheme]
	}
	if number == "" {
		number = u.Scheme
	}
	found, err := parsePortsOf(number, ends.Protos)
	if err != nil {
		return Ends{}, fmt.Errorf("URL %q: no port in it, and none is known of %s", word, identity.Safe(u.Scheme))
	}
	ends.Port, ends.Last = found.low, found.high
	return ends, nil
}

// ParseAddr reads an address as --addr has it, and its device. The error is a *Wrong.
func ParseAddr(word string) (addr netip.Addr, device string, err error) {
	addr, device, err = parseAddr(word)
	return addr, device, wrongParam(prefixed("addr", err))
}

func prefixed(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}
