// Package tracer follows the TCP and UDP ports of a Linux machine: which process
// takes, uses and gives back which port, in every network namespace.
//
//	hook -> ring buffer -> decode -> Table.apply -> subscriptions
//	                                    ^
//	kernel's port tables + file descriptors -> Snapshot
//
// A Tracer attaches its hooks, takes a snapshot and then applies events to it, so
// that there is neither a gap nor a double. One goroutine, that of Run, reads the
// ring buffer and writes the table.
//
//	t, err := tracer.Open(tracer.Config{})
//	if err != nil {
//		return err
//	}
//	defer t.Close()
//	events := t.Events(ctx)
//	go t.Run(ctx, nil)
//	for ev, err := range events {
//		if err != nil {
//			return err
//		}
//		fmt.Println(ev.Type, ev.Proto, ev.Local, ev.Process.Comm)
//	}
//
// A Snapshotter alone answers who holds which port right now.
package tracer
