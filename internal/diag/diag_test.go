package diag

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/tracer"
)

// Which end called connect() follows from the counters, but not while something is on its way.
func TestConnected(t *testing.T) {
	for _, c := range []struct {
		state tracer.State
		info  unix.TCPInfo
		want  tracer.Role
	}{
		{tracer.StateEstablished, unix.TCPInfo{Bytes_acked: 1}, tracer.RoleClient},
		{tracer.StateEstablished, unix.TCPInfo{}, tracer.RoleServer},
		{tracer.StateEstablished, unix.TCPInfo{Bytes_acked: 11, Bytes_sent: 25, Bytes_retrans: 15}, tracer.RoleClient},
		{tracer.StateEstablished, unix.TCPInfo{Bytes_acked: 10, Bytes_sent: 25, Bytes_retrans: 15}, tracer.RoleServer},
		{tracer.StateEstablished, unix.TCPInfo{Bytes_acked: 1, Unacked: 1}, tracer.RoleUnknown},
		{tracer.StateFinWait2, unix.TCPInfo{Bytes_acked: 1}, tracer.RoleServer}, // its FIN
		{tracer.StateFinWait2, unix.TCPInfo{Bytes_acked: 2}, tracer.RoleClient},
		{tracer.StateCloseWait, unix.TCPInfo{Bytes_acked: 1}, tracer.RoleClient},
	} {
		info := unsafe.Slice((*byte)(unsafe.Pointer(&c.info)), unsafe.Sizeof(c.info))
		if got := connected(c.state, info); got != c.want {
			t.Errorf("%v, %+v: %v, want %v", c.state, c.info, got, c.want)
		}
		if got := connected(c.state, info[:100]); got != tracer.RoleUnknown {
			t.Errorf("of an old kernel: %v", got)
		}
	}
}

// A message that is cut off is refused.
func TestSocketOfShort(t *testing.T) {
	if _, err := socketOf(make([]byte, messageBytes), tracer.TCP); err != nil {
		t.Error(err)
	}
	if _, err := socketOf(make([]byte, messageBytes-1), tracer.TCP); err == nil {
		t.Error("a message that is too short is taken")
	}
}
