package render

import (
	"encoding/json"
	"io"
	"net/netip"
	"runtime"
	"strconv"

	"github.com/porthole-dev/porthole/tracer"
)

// The encoders below write what encoding/json would (a test compares them), at a
// fifth of the time: with 50,000 sockets that is most of what ls does.

type object struct{ b []byte }

// key takes a key as it is written, quoted, with the comma before and the colon
// after it; the first of an object comes without the comma.
func (o *object) key(k string) { o.b = append(o.b, k...) }

func (o *object) str(k, v string) {
	o.key(k)
	o.b = appendString(o.b, v)
}

func (o *object) optStr(k, v string) {
	if v != "" {
		o.str(k, v)
	}
}

func (o *object) uint(k string, v uint64) {
	o.key(k)
	o.b = strconv.AppendUint(o.b, v, 10)
}

func (o *object) optUint(k string, v uint64) {
	if v != 0 {
		o.uint(k, v)
	}
}

func (o *object) optTrue(k string, v bool) {
	if v {
		o.key(k)
		o.b = append(o.b, "true"...)
	}
}

func (o *object) stamp(k string, v Stamp) {
	o.key(k)
	o.b, _ = v.AppendText(append(o.b, '"')) // never fails
	o.b = append(o.b, '"')
}

func (o *object) addr(k string, v netip.Addr) {
	o.key(k)
	o.b = append(o.b, '"')
	o.b = v.AppendTo(o.b)
	o.b = append(o.b, '"')
}

func (o *object) optAddr(k string, v netip.Addr) {
	if v.IsValid() {
		o.addr(k, v)
	}
}

// other encodes what is rare with encoding/json.
func (o *object) other(k string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		b = []byte("null") // strings and numbers always encode
	}
	o.key(k)
	o.b = append(o.b, escapeControls(b)...)
}

func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, err := json.Marshal(s)
			if err != nil {
				quoted = []byte(`""`) // strings always encode
			}
			return append(b, escapeControls(quoted)...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// AppendJSON appends the socket as one JSON object.
func (s *Socket) AppendJSON(b []byte) []byte {
	o := object{append(b, '{')}
	o.str(`"proto":`, s.Proto)
	o.str(`,"state":`, s.State)
	o.str(`,"role":`, s.Role)
	o.addr(`,"local_ip":`, s.LocalIP)
	o.uint(`,"local_port":`, uint64(s.LocalPort))
	o.optAddr(`,"remote_ip":`, s.RemoteIP)
	o.optUint(`,"remote_port":`, uint64(s.RemotePort))
	o.uint(`,"netns":`, uint64(s.NetNS))
	o.optUint(`,"inode":`, s.Inode)
	if s.UID != nil {
		o.uint(`,"uid":`, uint64(*s.UID))
	}
	o.optTrue(`,"mptcp":`, s.MPTCP)
	o.key(`,"holders":`)
	o.b = append(o.b, '[')
	for i := range s.Holders {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		o.b = append(o.b, '{')
		o.uint(`"pid":`, uint64(s.Holders[i].PID))
		o.str(`,"comm":`, s.Holders[i].Comm)
		o.uint(`,"fd":`, uint64(s.Holders[i].FD))
		if s.Holders[i].UID != nil {
			o.uint(`,"uid":`, uint64(*s.Holders[i].UID))
		}
		if s.Holders[i].Container != nil {
			o.other(`,"container":`, s.Holders[i].Container)
		}
		o.b = append(o.b, '}')
	}
	o.b = append(o.b, ']')
	if s.Owner != nil {
		o.other(`,"owner":`, s.Owner)
	}
	if !s.Since.IsZero() {
		o.stamp(`,"since":`, s.Since)
	}
	o.str(`,"origin":`, s.Origin)
	o.optStr(`,"service":`, s.Service)
	if s.Container != nil {
		o.other(`,"container":`, s.Container)
	}
	return append(o.b, '}')
}

// AppendJSON appends the event as one JSON object.
func (e *Event) AppendJSON(b []byte) []byte {
	o := object{append(b, '{')}
	o.stamp(`"time":`, e.Time)
	o.str(`,"event":`, e.Event)
	o.str(`,"proto":`, e.Proto)
	o.optAddr(`,"local_ip":`, e.LocalIP)
	o.optUint(`,"local_port":`, uint64(e.LocalPort))
	o.optAddr(`,"remote_ip":`, e.RemoteIP)
	o.optUint(`,"remote_port":`, uint64(e.RemotePort))
	if e.RequestedPort != nil {
		o.uint(`,"requested_port":`, uint64(*e.RequestedPort))
	}
	o.optTrue(`,"implicit":`, e.Implicit)
	o.optStr(`,"error":`, e.Error)
	if len(e.HeldBy) > 0 {
		o.other(`,"held_by":`, e.HeldBy)
	}
	if e.HeldByMore > 0 {
		o.uint(`,"held_by_more":`, uint64(e.HeldByMore))
	}
	o.optUint(`,"pid":`, uint64(e.PID))
	o.optStr(`,"comm":`, e.Comm)
	if e.UID != nil {
		o.uint(`,"uid":`, uint64(*e.UID))
	}
	o.uint(`,"netns":`, uint64(e.NetNS))
	o.optStr(`,"cgroup":`, e.Cgroup)
	if e.Container != nil {
		o.other(`,"container":`, e.Container)
	}
	o.optTrue(`,"mptcp":`, e.MPTCP)
	if e.DurationNS != 0 {
		o.key(`,"duration_ns":`)
		o.b = strconv.AppendInt(o.b, e.DurationNS, 10)
	}
	o.optTrue(`,"time_wait":`, e.TimeWait)
	if e.SearchNS != 0 {
		o.key(`,"search_ns":`)
		o.b = strconv.AppendInt(o.b, e.SearchNS, 10)
	}
	return append(o.b, '}')
}

// SocketsJSON writes one object a line, encoding on every processor.
func (n *Names) SocketsJSON(w io.Writer, sockets []tracer.Socket) error {
	bufs := make([][]byte, runtime.GOMAXPROCS(0))
	for len(sockets) > 0 {
		some := sockets[:min(partRows*len(bufs), len(sockets))]
		sockets = sockets[len(some):]
		share(len(bufs), func(i int) {
			mine := some[min(i*partRows, len(some)):min((i+1)*partRows, len(some))]
			bufs[i] = bufs[i][:0]
			holders := make([]Holder, 0, 16)
			for j := range mine {
				row := n.socket(&mine[j], holders)
				bufs[i] = append(row.AppendJSON(bufs[i]), '\n')
			}
		})
		for _, b := range bufs {
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
	}
	return nil
}
