package main

import (
	"bufio"
	"fmt"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/tracer"
)

type lsOptions struct {
	filters              filterFlags
	tcp, udp, listen     bool
	ipv4, ipv6, jsonRows bool
}

func newLs(e *env) *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List every socket with a port, and the processes that hold it",
		Long: "List every socket with a port, in every network namespace, and the processes\n" +
			"that hold it. Filters can be repeated or comma-separated; all must match.",
		Example: "  porthole ls -tulpn              what listens, as ss -tulpn\n" +
			"  porthole ls -t --state TIME-WAIT\n" +
			"  porthole ls --lport 8080 --json",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return ls(e, &o) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.tcp, "tcp", "t", false, "only TCP; with -u both")
	flags.BoolVarP(&o.udp, "udp", "u", false, "only UDP; with -t both")
	flags.BoolVarP(&o.listen, "listening", "l", false, "only TCP listeners and UDP sockets without a peer")
	flags.BoolVarP(&o.ipv4, "ipv4", "4", false, "only IPv4 addresses")
	flags.BoolVarP(&o.ipv6, "ipv6", "6", false, "only IPv6 addresses")
	flags.BoolP("all", "a", false, "accepted as in ss: all sockets are shown anyway")
	flags.BoolP("numeric", "n", false, "accepted as in ss: numbers are shown anyway")
	flags.BoolP("processes", "p", false, "accepted as in ss: processes are shown anyway")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	o.filters.add(cmd)
	o.filters.addSocket(cmd)
	return cmd
}

// match applies the flags that ls has of ss.
func (o *lsOptions) match(s *tracer.Socket) bool {
	if o.tcp != o.udp && (s.Proto == tracer.TCP) != o.tcp {
		return false
	}
	if o.ipv4 != o.ipv6 && s.Local.Addr().Is4() != o.ipv4 {
		return false
	}
	return !o.listen || s.State == tracer.StateListen || s.Proto == tracer.UDP && s.State == tracer.StateUnconn
}

func ls(e *env, o *lsOptions) error {
	f, err := o.filters.parse()
	if err != nil {
		return err
	}
	var port uint16
	if len(f.lport) == 1 {
		port = f.lport[0]
	}
	snap, err := takeSnapshot(e, port)
	if err != nil {
		return err
	}
	names := newNames(e)
	defer names.Cgroups.Close()
	sockets := slices.DeleteFunc(snap.Sockets, func(s tracer.Socket) bool {
		return !o.match(&s) || !f.matchSocket(names, &s)
	})
	out := bufio.NewWriterSize(e.stdout, 1<<16)
	if o.jsonRows {
		err = names.SocketsJSON(out, sockets)
	} else {
		err = names.Sockets(out, e.style, sockets)
	}
	if err != nil {
		return err
	}
	return out.Flush()
}

// takeSnapshot reads the kernel's sockets once; port 0 means all.
func takeSnapshot(e *env, port uint16) (*tracer.Snapshot, error) {
	if err := tracer.CheckSnapshot(); err != nil {
		return nil, err
	}
	// A command that ends at once need not collect what it throws away, as long as
	// it stays small.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	s, err := tracer.NewSnapshotter()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	snap, err := s.Take(port)
	if err == nil && snap.Unfinished > 0 {
		fmt.Fprintf(e.stderr, "%d slots of the kernel's tables did not hold still: sockets may be missing\n", snap.Unfinished)
	}
	return snap, err
}
