//go:build load

package export

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// The exporters of TestLoad, and how often each has an event.
const (
	loadExporters = 1000
	loadEach      = time.Second
	loadAtMost    = 10 * time.Minute
)

// TestLoad is the machines of test/otlp's test of the same name: so many exporters send to PORTHOLE_LOAD_ENDPOINT, each
// by the code that an agent sends with, until stdin ends, then what is left. There is no kernel that they have their
// events from. Each second they print what they have done all together.
func TestLoad(t *testing.T) {
	endpoint := os.Getenv("PORTHOLE_LOAD_ENDPOINT")
	if endpoint == "" {
		t.Fatal("no PORTHOLE_LOAD_ENDPOINT: run make bench-fleet")
	}
	running, stop := context.WithTimeout(t.Context(), loadAtMost)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, bufio.NewReader(os.Stdin))
		stop()
	}()
	sending, end := context.WithTimeout(t.Context(), loadAtMost+time.Minute)
	defer end()
	var making, senders sync.WaitGroup
	var made atomic.Uint64
	all := make([]*Exporter, loadExporters)
	for i := range all {
		all[i] = loadExporter(t, endpoint, i)
	}
	for _, x := range all {
		senders.Go(func() { x.send(sending) })
		making.Go(func() { makeEvents(running, x, &made) })
	}
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		<-second.C
		stopped := running.Err() != nil
		if stopped {
			making.Wait()
		}
		total := Stats{Lost: make(map[Reason]uint64), Retried: make(map[Retry]uint64)}
		var lost, retried uint64
		before := made.Load()
		for _, x := range all {
			st := x.Stats()
			total.Sent += st.Sent
			total.QueueBytes += st.QueueBytes
			total.Behind = max(total.Behind, st.Behind)
			for _, n := range st.Lost {
				lost += n
			}
			for _, n := range st.Retried {
				retried += n
			}
		}
		fmt.Printf("made=%d sent=%d lost=%d retried=%d queue_bytes=%d behind=%.1f\n", before, total.Sent, lost, retried, total.QueueBytes, total.Behind.Seconds())
		if stopped && total.Sent+lost >= before || sending.Err() != nil {
			break
		}
	}
	end()
	senders.Wait()
}

// loadExporter is that of a machine of its own.
func loadExporter(t *testing.T, endpoint string, i int) *Exporter {
	t.Helper()
	name := fmt.Sprintf("load-%04d", i)
	env := map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "host.name=" + name + ",host.id=" + name}
	cfg, err := NewConfig(Settings{Endpoint: endpoint}, func(name string) string { return env[name] }, "v1")
	if err != nil {
		t.Fatal(err)
	}
	var boot [16]byte
	binary.BigEndian.PutUint64(boot[:], uint64(i+1))
	return exporterOf(t, cfg, &log{}, boot)
}

// makeEvents adds an event each second, at a moment of its own within it, and seals as gather does.
func makeEvents(ctx context.Context, x *Exporter, made *atomic.Uint64) {
	select {
	case <-time.After(rand.N(loadEach)):
	case <-ctx.Done():
		return
	}
	tick := time.NewTicker(loadEach)
	defer tick.Stop()
	f := fact{
		ev: tracer.Event{
			Proto: tracer.TCP, Process: tracer.Process{PID: 812, UID: 33, Comm: "nginx"}, NetNS: 4026531840, NetNSCookie: 1,
		},
		role: tracer.RoleListener, asked: true, space: "host", where: identity.Cgroup{Path: "/system.slice/web.service", Unit: "web.service"},
	}
	for i := 0; ctx.Err() == nil; i++ {
		f.boot, f.ev.Time, f.ev.Type = tracer.Boottime(), time.Now(), tracer.EventTypes()[i%2]
		f.ev.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), uint16(1024+i))
		x.add(&f)
		x.seal()
		made.Add(1)
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}
