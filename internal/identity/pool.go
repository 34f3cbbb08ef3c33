package identity

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/porthole-dev/porthole/tracer"
)

// Pool is the range the kernel picks ports from, both ends included, and the
// ports of it that it leaves out.
type Pool struct {
	Low, High uint16
	reserved  []portRange
	of        *tracer.Range // has them instead
}

// PoolOf is the pool of a network namespace that a tracer has read.
func PoolOf(r *tracer.Range) *Pool { return &Pool{Low: r.Low, High: r.High, of: r} }

type portRange struct{ low, high uint16 }

// PoolIn is the pool of one of these network namespaces. The error wraps ErrNoNetNS: it went away.
func PoolIn(ranges map[tracer.NetNS]*tracer.Range, place NetNS) (*Pool, error) {
	for id, r := range ranges {
		if place.Is(NetNS(id)) {
			return PoolOf(r), nil
		}
	}
	return nil, fmt.Errorf("%w: inode number %d", ErrNoNetNS, place.Inode)
}

// Has tells whether a port is in the range.
func (p *Pool) Has(port uint16) bool { return port >= p.Low && port <= p.High }

// Reserved tells whether the kernel never picks a port.
func (p *Pool) Reserved(port uint16) bool {
	if p.of != nil {
		return p.of.Reserved(port)
	}
	for _, r := range p.reserved {
		if port >= r.low && port <= r.high {
			return true
		}
	}
	return false
}

// ReadPool reads the pool of the calling thread's network namespace.
func ReadPool() (*Pool, error) {
	const dir = "/proc/sys/net/ipv4/"
	ends, err := os.ReadFile(dir + "ip_local_port_range")
	if err != nil {
		return nil, fmt.Errorf("read ephemeral range: %w", err)
	}
	reserved, err := os.ReadFile(dir + "ip_local_reserved_ports")
	if err != nil {
		return nil, fmt.Errorf("read reserved ports: %w", err)
	}
	return ParsePool(string(ends), string(reserved))
}

// ParsePool reads "32768 60999" and "8080,9000-9010".
func ParsePool(ends, reserved string) (*Pool, error) {
	p := &Pool{}
	if _, err := fmt.Sscan(ends, &p.Low, &p.High); err != nil {
		return nil, fmt.Errorf("read ephemeral range %q: %w", ends, err)
	}
	if p.Low > p.High {
		return nil, fmt.Errorf("read ephemeral range %q: it ends before it begins", ends)
	}
	var err error
	p.reserved, err = parseRanges(strings.TrimSpace(reserved))
	return p, err
}

// parseRanges reads "8080,9000-9010".
func parseRanges(s string) ([]portRange, error) {
	var out []portRange
	for part := range strings.SplitSeq(s, ",") {
		if part == "" {
			continue
		}
		low, high, ranged := strings.Cut(part, "-")
		if !ranged {
			high = low
		}
		l, errLow := strconv.ParseUint(low, 10, 16)
		h, errHigh := strconv.ParseUint(high, 10, 16)
		if errLow != nil || errHigh != nil || l > h {
			return nil, fmt.Errorf("read reserved ports: %q", part)
		}
		out = append(out, portRange{uint16(l), uint16(h)})
	}
	return out, nil
}
