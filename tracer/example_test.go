package tracer_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/porthole-dev/porthole/tracer"
)

// The examples are run as tests. Without root they print why they cannot, and fail.

// Follow what happens to a port, from now on.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	t, err := tracer.Open(tracer.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer t.Close() // after Run has returned

	ended := make(chan error, 1)
	events := t.Events(ctx)
	go func() { ended <- t.Run(ctx, nil) }()
	select {
	case <-t.Ready(): // what listened before is in the table, what does later is an event
	case err := <-ended:
		fmt.Println(err)
		return
	}

	port := listenAndClose()
	for ev, err := range events {
		if err != nil { // *LostError, or that of ctx
			fmt.Println(err)
			return
		}
		if ev.Local.Port() != port || ev.Process.PID != uint32(os.Getpid()) {
			continue
		}
		fmt.Println(ev.Type, ev.Proto, ev.Local.Addr(), ev.Process.Comm != "")
		if ev.Type == tracer.EventClose {
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		fmt.Println(err)
	}
	// Output:
	// bind tcp 127.0.0.1 true
	// listen tcp 127.0.0.1 true
	// close tcp 127.0.0.1 true
}

// listenAndClose listens on a port for a moment.
func listenAndClose() uint16 {
	l, port := listen()
	l.Close()
	return port
}

// listen listens on a port of 127.0.0.1.
func listen() (net.Listener, uint16) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	return l, netip.MustParseAddrPort(l.Addr().String()).Port()
}

// Ask who has a port now. No hook is attached for that.
func ExampleSnapshotter_Take() {
	l, port := listen()
	defer l.Close()

	s, err := tracer.NewSnapshotter(tracer.ReadsSockets)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	snap, err := s.Take(port)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, so := range snap.Sockets {
		fmt.Println(so.Role, so.Proto, so.Local.Addr())
		for _, holder := range so.Holders {
			fmt.Println("held by this process:", holder.PID == uint32(os.Getpid()))
		}
	}
	// Output:
	// listener tcp 127.0.0.1
	// held by this process: true
}

// Ask how many ephemeral ports are left towards one destination.
func ExamplePorts_Connect() {
	s, err := tracer.NewSnapshotter(tracer.ReadsPorts)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	ports, err := s.Ports()
	if err != nil {
		fmt.Println(err)
		return
	}
	self, err := os.Readlink("/proc/self/ns/net") // as net:[4026531840]
	if err != nil {
		fmt.Println(err)
		return
	}
	var netns uint32
	if _, err := fmt.Sscanf(self, "net:[%d]", &netns); err != nil {
		fmt.Println(err)
		return
	}
	from, to := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddrPort("192.0.2.1:443")
	h, err := ports.Connect(netns, from, to, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("some are left:", h.Free > 0)
	fmt.Println("none is counted twice:", h.Used+h.Blocked+h.Free == h.Capacity)
	// Output:
	// some are left: true
	// none is counted twice: true
}

// Keep a live map, and look up who has a port, and who had it before.
func ExampleTracer_Table() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	t, err := tracer.Open(tracer.Config{History: 1000, Reconcile: 30 * time.Second})
	if err != nil {
		fmt.Println(err)
		return
	}
	ended := make(chan error, 1)
	events := t.Events(ctx)
	go func() { ended <- t.Run(ctx, nil) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			fmt.Println(err)
		}
		t.Close()
	}()
	select {
	case <-t.Ready():
	case <-ctx.Done():
		return
	}

	l, port := listen()
	for ev, err := range events {
		if err != nil {
			fmt.Println(err)
			return
		}
		if ev.Local.Port() != port {
			continue
		}
		switch ev.Type {
		case tracer.EventListen:
			for _, so := range t.Table().Port(port) {
				fmt.Println(so.Role, so.Local.Addr(), "of this process:", so.Owner.PID == uint32(os.Getpid()))
			}
			l.Close()
		case tracer.EventClose:
			for _, had := range t.History().Port(port) {
				fmt.Println("until", had.Until.Equal(ev.Time), "of this process:", had.Owner.PID == uint32(os.Getpid()))
			}
			return
		}
	}
	// Output:
	// listener 127.0.0.1 of this process: true
	// until true of this process: true
}
