package query

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/porthole-dev/porthole/tracer"
)

// End is a local port as people write it, or paste it from elsewhere.
type End struct {
	Addr   netip.Addr // not valid: none is given
	Device string     // of the address; "": none
	Port   uint16
	Protos []tracer.Proto // at least one
}

// ParseEndWord reads 8080, :8080, *:8080, 127.0.0.1:8080, [::1]:8080 and http, each alone, followed
// by /tcp or /udp, or after tcp/ or udp/. The error is a *Wrong.
func ParseEndWord(word string) (End, error) {
	end := End{Protos: protos()}
	rest := word
	if head, tail, ok := strings.Cut(word, "/"); ok {
		proto := tail
		rest = head
		if p, err := parseProto(head); err == nil {
			proto, rest = p.String(), tail
		}
		p, err := parseProto(proto)
		if err != nil {
			return End{}, &Wrong{Err: fmt.Errorf("protocol %w", err)}
		}
		end.Protos = []tracer.Proto{p}
	}
	number := rest
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host := rest[:i]
		number = rest[i+1:]
		if host != "" && host != "*" {
			var err error
			if end.Addr, end.Device, err = parseAddr(host); err != nil {
				return End{}, &Wrong{Err: err}
			}
		}
	}
	port, err := parsePort(number)
	if err != nil {
		if named, ok := numberOf(number, end.Protos[0] == tracer.UDP); ok {
			port, err = named, nil
		}
	}
	if err != nil {
		return End{}, &Wrong{Err: fmt.Errorf("%w, or a service as http; before it an address if need be, and after it /tcp or /udp", err)}
	}
	end.Port = port
	return end, nil
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
