package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/container"
	"github.com/porthole-dev/porthole/internal/netns"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// filterFlags are the filters as typed; filter is what they mean. An empty list
// lets everything pass, and all lists must.
type filterFlags struct {
	port, lport, rport                 []string
	proto, state, role, event          []string
	pid, uid, comm, netNS, containerID []string
}

type filter struct {
	port, lport, rport []uint16
	proto              []tracer.Proto
	state              []tracer.State
	role               []tracer.Role
	event              []tracer.EventType
	pid, uid, netNS    []uint32
	comm, container    []string
}

// add declares the filters that tail and ls share.
func (f *filterFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	for _, d := range []struct {
		to          *[]string
		name, usage string
	}{
		{&f.port, "port", "local or remote port"},
		{&f.lport, "lport", "local port"},
		{&f.rport, "rport", "remote port"},
		{&f.proto, "proto", "tcp or udp"},
		{&f.pid, "pid", "process id"},
		{&f.comm, "comm", "process name"},
		{&f.uid, "uid", "user id"},
		{&f.netNS, "netns", "network namespace: host, a name of /run/netns, or an inode number"},
		{&f.containerID, "container", "container name, or the start of its id"},
	} {
		flags.StringSliceVar(d.to, d.name, nil, d.usage)
	}
}

// addSocket declares the filters of sockets, addEvent those of events.
func (f *filterFlags) addSocket(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.role, "role", nil, "role: "+joinNames(tracer.Roles()))
	cmd.Flags().StringSliceVar(&f.state, "state", nil, "state, by its name in ss(8)")
	completeWith(cmd, "role", tracer.Roles())
	completeWith(cmd, "state", tracer.States())
	completeWith(cmd, "proto", protos)
}

func (f *filterFlags) addEvent(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.event, "event", nil, "event: "+joinNames(tracer.EventTypes()))
	completeWith(cmd, "event", tracer.EventTypes())
	completeWith(cmd, "proto", protos)
}

var protos = []tracer.Proto{tracer.TCP, tracer.UDP}

func completeWith[T fmt.Stringer](cmd *cobra.Command, flag string, values []T) {
	words := strings.Split(joinNames(values), ", ")
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// parse checks every value. The error is a usageError naming the value and what
// is accepted.
func (f *filterFlags) parse() (*filter, error) {
	out := &filter{comm: f.comm, container: f.containerID}
	var err error
	for _, p := range []struct {
		flag string
		from []string
		to   *[]uint16
	}{{"port", f.port, &out.port}, {"lport", f.lport, &out.lport}, {"rport", f.rport, &out.rport}} {
		if *p.to, err = parseEach(p.from, p.flag, parsePort); err != nil {
			return nil, err
		}
	}
	if out.proto, err = parseEach(f.proto, "proto", oneOf(protos)); err != nil {
		return nil, err
	}
	if out.state, err = parseEach(f.state, "state", parseState); err != nil {
		return nil, err
	}
	if out.role, err = parseEach(f.role, "role", oneOf(tracer.Roles())); err != nil {
		return nil, err
	}
	if out.event, err = parseEach(f.event, "event", oneOf(tracer.EventTypes())); err != nil {
		return nil, err
	}
	if out.pid, err = parseEach(f.pid, "pid", parseID); err != nil {
		return nil, err
	}
	if out.uid, err = parseEach(f.uid, "uid", parseID); err != nil {
		return nil, err
	}
	out.netNS, err = parseEach(f.netNS, "netns", netns.Resolve)
	return out, err
}

func parseEach[T any](values []string, flag string, parse func(string) (T, error)) ([]T, error) {
	var out []T
	for _, s := range values {
		v, err := parse(s)
		if err != nil {
			return nil, usagef("--%s: %w", flag, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// parsePort accepts 1-65535.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: want a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q: want a number from 0 to 4294967295", s)
	}
	return uint32(n), nil
}

func oneOf[T fmt.Stringer](values []T) func(string) (T, error) {
	return func(s string) (T, error) {
		for _, v := range values {
			if strings.EqualFold(v.String(), s) {
				return v, nil
			}
		}
		var none T
		return none, fmt.Errorf("%q: want one of %s", s, joinNames(values))
	}
}

// parseState accepts the names of ss(8), in either case, with - or _.
func parseState(s string) (tracer.State, error) {
	switch name := strings.ReplaceAll(strings.ToUpper(s), "_", "-"); name {
	case "ESTABLISHED":
		return tracer.StateEstablished, nil
	case "LISTENING":
		return tracer.StateListen, nil
	default:
		v, err := oneOf(tracer.States())(name)
		if err != nil {
			return 0, fmt.Errorf("%q: want one of %s", s, joinNames(tracer.States()))
		}
		return v, nil
	}
}

func pass[T comparable](list []T, v T) bool { return len(list) == 0 || slices.Contains(list, v) }

func (f *filter) ports(local, remote uint16) bool {
	return pass(f.lport, local) && pass(f.rport, remote) &&
		(len(f.port) == 0 || slices.Contains(f.port, local) || slices.Contains(f.port, remote))
}

func (f *filter) inContainer(names *render.Names, cgroup uint64) bool {
	if len(f.container) == 0 {
		return true
	}
	return isContainer(f.container, names.Cgroups.Resolve(cgroup).Container)
}

func isContainer(wanted []string, c *container.Container) bool {
	return c != nil && slices.ContainsFunc(wanted, func(w string) bool {
		return w != "" && (w == c.Name || strings.HasPrefix(c.ID, w))
	})
}

// matchEvent tells whether an event passes.
func (f *filter) matchEvent(names *render.Names, ev *tracer.Event) bool {
	p := &ev.Process
	return pass(f.event, ev.Type) && pass(f.proto, ev.Proto) && pass(f.netNS, ev.NetNS) &&
		f.ports(ev.Local.Port(), ev.Remote.Port()) &&
		(len(f.pid) == 0 || slices.Contains(f.pid, p.PID)) &&
		(len(f.uid) == 0 || p.PID != 0 && slices.Contains(f.uid, p.UID)) &&
		(len(f.comm) == 0 || slices.Contains(f.comm, p.Comm)) &&
		f.inContainer(names, p.Cgroup)
}

// matchSocket tells whether a socket passes. Filters of processes pass when any
// holder does; uid is the socket's own.
func (f *filter) matchSocket(names *render.Names, s *tracer.Socket) bool {
	if !pass(f.proto, s.Proto) || !pass(f.state, s.State) || !pass(f.role, s.Role) || !pass(f.netNS, s.NetNS) ||
		!f.ports(s.Local.Port(), s.Remote.Port()) {
		return false
	}
	if len(f.uid) > 0 && (s.Role == tracer.RoleTimeWait || !slices.Contains(f.uid, s.UID)) {
		return false
	}
	if len(f.pid) == 0 && len(f.comm) == 0 && len(f.container) == 0 {
		return true
	}
	return slices.ContainsFunc(s.Holders, func(h tracer.Holder) bool {
		return pass(f.pid, h.PID) && pass(f.comm, h.Comm) && f.inContainer(names, h.Cgroup)
	})
}
