package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

type waitOptions struct {
	agent         agentOptions
	tree          treeOption
	free          bool
	addr, netns   string
	timeout       time.Duration
	quiet, asJSON bool
}

// waitFilters are the filters of wait: who is waited for.
func waitFilters() []string { return []string{"comm", "pid", "unit", "container", "pod"} }

func newWait(e *env) *cobra.Command {
	var o waitOptions
	cmd := &cobra.Command{
		Use:   "wait PORT[/tcp|/udp]...",
		Short: "Wait until somebody listens on a port, or nobody does",
		Long: "Wait until a process listens on a port, or with --free until none does. Of\n" +
			"several ports, all must be ready; they are TCP unless /udp is given. It makes no\n" +
			"connection, so the server does not notice, and returns at once if the port is\n" +
			"ready already. The kernel or the agent reports the change (without privileges\n" +
			"and an agent, porthole looks every 100 ms). With --comm, --pid, --tree, --unit,\n" +
			"--container or --pod, only matching processes count. Exits with 1 at the\n" +
			"timeout, and says who has the port instead.",
		Example: "  porthole wait 5432                        before the tests begin\n" +
			"  porthole wait 8080 --comm nginx --timeout 10s\n" +
			"  porthole wait 8080 --free -q && ./server",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("want a port, as 8080 or 53/udp; see %s --help", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, args []string) error { return runWait(cmd, e, &o, args) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.free, "free", false, "wait until nobody listens")
	flags.StringVar(&o.addr, "addr", "", "only listeners that take connections to this local `ADDRESS`, such as 127.0.0.1 or ::1")
	flags.StringVar(&o.netns, "netns", "", "network `NAMESPACE`: host, a name in /run/netns, or an inode number (default: this one)")
	flags.DurationVar(&o.timeout, "timeout", 30*time.Second, "`TIME` to wait, such as 90s or 5m; 0: look once")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "write nothing")
	flags.BoolVar(&o.asJSON, "json", false, "one JSON object a line, for each port")
	o.tree.add(cmd)
	for _, p := range query.Params(query.OfSockets) {
		for _, name := range waitFilters() {
			if p.Name == name {
				flags.StringSlice(name, nil, p.Usage)
			}
		}
	}
	complete(cmd, e, &o.agent, append(waitFilters(), "tree", "netns")...)
	o.agent.add(cmd)
	return cmd
}

// waitAnswer is how a wait ended, in JSON.
type waitAnswer struct {
	OK        bool            `json:"ok"`
	Free      bool            `json:"free"`
	Proto     string          `json:"proto"`
	LocalPort uint16          `json:"local_port"`
	NetNS     uint32          `json:"netns"`
	WaitedNS  int64           `json:"waited_ns"`
	Sockets   []render.Socket `json:"sockets"`
	Partial   bool            `json:"partial,omitempty"`
}

// waiter waits for ports.
type waiter struct {
	e      *env
	o      *waitOptions
	src    source.Source
	ends   []query.End  // whose address, if there is one, and device count
	port   query.Values // sockets on the ports, whoever has them
	whose  query.Values // those that are waited for
	begin  time.Time
	looked bool
	known  [][]render.Socket // who listened on each port when it was last looked; nil: it never was
	after  []time.Duration   // since when each port is so, from begin; 0: since it was first looked; negative: it is not
}

func runWait(cmd *cobra.Command, e *env, o *waitOptions, words []string) error {
	if o.timeout < 0 {
		return usagef("--timeout: %v: want a positive time, or 0", o.timeout)
	}
	w := &waiter{e: e, o: o, begin: time.Now()}
	if err := w.parse(words); err != nil {
		return err
	}
	o.agent.within = o.timeout + answerWithin
	where, err := w.place(cmd)
	defer where.close()
	if err != nil {
		return err
	}
	if !o.quiet {
		tellView(e, w.src.PartialView())
	}
	if w.src.Partial() && o.free && w.byProcess() {
		return errors.New("that no process of those listens takes root, or an agent, to know: the processes of other users cannot be seen")
	}
	ctx, cancel := context.WithCancelCause(cmd.Context())
	defer cancel(nil)
	stopWhenUnread(ctx, e.stdout, cancel) // as where ssh has lost whoever waits
	ok, sockets, err := w.wait(ctx)
	if errors.Is(context.Cause(ctx), syscall.EPIPE) {
		return errNo
	} else if err != nil {
		return err
	}
	waited := time.Since(w.begin)
	for i, end := range w.ends {
		a := &waitAnswer{Free: o.free, Proto: end.Protos[0].String(), LocalPort: end.Port, NetNS: where.inode, WaitedNS: waited.Nanoseconds(), Sockets: []render.Socket{}, Partial: w.src.Partial()}
		a.OK = ok
		if sockets != nil {
			a.OK, a.Sockets = w.isSo(w.known[i]), sockets[i]
			if a.OK { // else it is who has it instead
				a.Sockets, a.WaitedNS = w.known[i], w.after[i].Nanoseconds()
			}
		}
		if err := w.tell(cmd.Context(), a); err != nil {
			return err
		}
	}
	if !ok {
		return errNo
	}
	return nil
}

// place finds the network namespace, and who is asked about it. Of a machine elsewhere that is the one that the
// machine starts with, unless another is named, and whether it has a device is not looked at.
func (w *waiter) place(cmd *cobra.Command) (where space, err error) {
	if w.o.agent.far.URL != "" {
		if w.src, err = openSource(w.e, &w.o.agent); err != nil {
			return where, err
		}
		names, err := w.src.Names(cmd.Context())
		if err != nil {
			return where, err
		}
		defer names.Cgroups.Close()
		wanted, err := names.NetNS.Want(cmp.Or(w.o.netns, identity.HostName))
		if err != nil {
			return where, &query.Wrong{Err: fmt.Errorf("netns: %w", err), Param: true}
		}
		id, err := wanted.ID()
		if err != nil {
			return where, err
		}
		where.inode = id.Inode
		return where, w.filters(cmd, where)
	}
	if where, err = openSpace(w.o.netns); err != nil {
		return where, err
	}
	for i := range w.ends {
		if err := where.in(func() error { return needDevice(w.ends[i].Device) }); err != nil {
			return where, err
		}
	}
	if err := w.filters(cmd, where); err != nil {
		return where, err
	}
	w.src, err = openSource(w.e, &w.o.agent)
	return where, err
}

// parse reads the ports.
func (w *waiter) parse(words []string) error {
	for _, word := range words {
		end, err := query.ParseEndWord(word)
		if err == nil {
			err = end.NoHost(word)
		}
		if err != nil {
			return err
		}
		if err := addAddr(&end, word, w.o.addr); err != nil {
			return err
		}
		w.ends = append(w.ends, end)
	}
	w.after = make([]time.Duration, len(w.ends))
	return nil
}

// filters makes questions of what is waited for.
func (w *waiter) filters(cmd *cobra.Command, where space) (err error) {
	w.port = query.Values{"netns": {strconv.FormatUint(uint64(where.inode), 10)}}
	for _, end := range w.ends {
		w.port["lport"] = append(w.port["lport"], strconv.Itoa(int(end.Port)))
		w.port["proto"] = append(w.port["proto"], end.Protos[0].String())
	}
	w.whose = query.Values{"listening": {"true"}}
	for name, given := range w.port {
		w.whose[name] = given
	}
	for _, name := range waitFilters() {
		if cmd.Flags().Changed(name) {
			if w.whose[name], err = filterValue(cmd, name); err != nil {
				return err
			}
		}
	}
	values := maps.Clone(w.whose)
	if err := w.o.tree.narrow(values); err != nil {
		return err
	}
	_, err = query.ParseSockets(values)
	return err
}

// answerWithin is how long after its time a wait may end: it looks a last time then.
const answerWithin = time.Second

// lookWithin is how long it may take to look once.
const lookWithin = 5 * time.Second

// look tells whether it is so, and who listens on each port.
func (w *waiter) look(ctx context.Context) (bool, [][]render.Socket, error) {
	whose := maps.Clone(w.whose)
	var rows []render.Socket
	var note string
	err := w.o.tree.narrow(whose)
	if err == nil {
		rows, note, err = socketRows(ctx, w.e, w.src, whose)
	} else if errors.Is(err, errTreeGone) { // so nobody of them listens
		err = nil
	}
	if err != nil {
		return false, nil, err
	}
	w.known = w.byPort(rows, w.takes)
	so := true
	for i, listeners := range w.known {
		switch is := w.isSo(listeners); {
		case !is:
			so, w.after[i] = false, -1
		case !w.looked:
			w.after[i] = 0
		case w.after[i] < 0:
			w.after[i] = time.Since(w.begin)
		}
	}
	if !so && !w.looked && !w.o.quiet {
		tellNote(w.e, note)
	}
	w.looked = true
	return so, w.known, nil
}

// byProcess tells whether only sockets of some processes count.
func (w *waiter) byProcess() bool {
	return len(w.whose["pid"]) > 0 || len(w.whose["comm"]) > 0 || len(w.o.tree.pids) > 0
}

// isSo tells whether a port is as it is waited for.
func (w *waiter) isSo(listeners []render.Socket) bool { return (len(listeners) > 0) != w.o.free }

// byPort are the rows of each port that pass.
func (w *waiter) byPort(rows []render.Socket, pass func(end *query.End, row *render.Socket) bool) [][]render.Socket {
	all := make([][]render.Socket, len(w.ends))
	for i := range w.ends {
		end := &w.ends[i]
		all[i] = []render.Socket{}
		for j := range rows {
			if row := &rows[j]; row.LocalPort == end.Port && row.Proto == end.Protos[0].String() && pass(end, row) {
				all[i] = append(all[i], *row)
			}
		}
	}
	return all
}

// takes tells whether a listener takes what is sent to the address, through the device if one is
// given. One that is bound to a device takes of the loopback addresses, and of all addresses at
// once, only what that device brings.
func (w *waiter) takes(end *query.End, row *render.Socket) bool {
	if end.Localhost { // who connects there tries both
		four, six := *end, *end
		four.Localhost, four.Addr = false, netip.AddrFrom4([4]byte{127, 0, 0, 1})
		six.Localhost, six.Addr = false, netip.IPv6Loopback()
		return w.takes(&four, row) || w.takes(&six, row)
	}
	its, addr := row.LocalIP.WithZone("").Unmap(), end.Addr
	if !addr.IsValid() {
		return true
	}
	if row.Device != "" || row.Index != 0 {
		switch {
		case end.Device != "":
			if row.Device != end.Device {
				return false
			}
		case addr.IsUnspecified(), addr.IsLoopback() && row.Device != "lo":
			return false
		}
	}
	if its.IsUnspecified() {
		return its.Is4() == addr.Is4() || addr.Is4() && !row.V6Only
	}
	return its == addr
}

// lookAgain is when it is looked again after an event: one may be told just before the kernel acts
// on it.
func lookAgain() []time.Duration {
	return []time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond, 500 * time.Millisecond}
}

// wait looks, and then looks whenever something has happened on the port, until it is so or the
// time is over. The sockets are then those that listen, or that have the port instead. Who is asked
// and does not answer makes it no longer than answerWithin: then it is as when last looked.
func (w *waiter) wait(ctx context.Context) (ok bool, sockets [][]render.Socket, err error) {
	over := w.begin.Add(w.o.timeout)
	last := over.Add(answerWithin)
	if w.o.timeout == 0 {
		last = over.Add(lookWithin)
	}
	limited, cancel := context.WithDeadline(ctx, last)
	defer cancel()
	if ok, sockets, err = w.look(limited); ok || err != nil {
		return ok, sockets, err
	}
	if w.o.timeout > 0 {
		bounded, cancel := context.WithDeadline(ctx, over)
		ok, sockets, err = w.follow(bounded)
		cancel()
		if ok || err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
			return ok, sockets, err
		}
		// Over. An answer may have come late: it is looked once more.
		ok, sockets, err = w.look(limited)
	}
	if err == nil && !ok && !w.o.free {
		var rows []render.Socket
		rows, _, err = socketRows(limited, w.e, w.src, w.port)
		sockets = w.byPort(rows, func(*query.End, *render.Socket) bool { return true })
	}
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		fmt.Fprintf(w.e.notes(), "porthole: not looked at the end: %v\n", err)
		return false, w.known, nil
	}
	return ok, sockets, err
}

// follow waits for events; the error wraps that of ctx once it has ended.
func (w *waiter) follow(ctx context.Context) (ok bool, sockets [][]render.Socket, err error) {
	values := query.Values{"event": {tracer.EventBind.String(), tracer.EventListen.String(), tracer.EventClose.String()}}
	for name, given := range w.port {
		values[name] = given
	}
	q, err := query.ParseEvents(values)
	if err != nil {
		return false, nil, err
	}
	streaming, stop := context.WithCancel(ctx)
	events, err := w.src.Events(streaming, q)
	if err != nil {
		stop()
		if w.src.Partial() { // nothing tells when it is so
			return w.poll(ctx)
		}
		return false, nil, err
	}
	happened, ended := make(chan struct{}, 1), make(chan error, 1)
	happened <- struct{}{}     // look once now that nothing is missed
	var reading sync.WaitGroup // events are for one goroutine
	reading.Go(func() { ended <- forward(events, happened) })
	defer func() {
		stop()
		reading.Wait()
		_, endErr := events.End()
		err = errors.Join(err, endErr, events.Close())
	}()
	for {
		select {
		case <-happened:
		case <-ctx.Done():
			return false, nil, nil
		case readErr := <-ended:
			if errors.Is(readErr, io.EOF) { // as ctx has
				readErr = nil
			}
			return false, nil, readErr
		}
		for _, pause := range lookAgain() {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return false, nil, nil
			}
			if ok, sockets, err = w.look(ctx); ok || err != nil {
				return ok, sockets, err
			}
		}
	}
}

// pollEvery is how often it is looked where nobody tells.
const pollEvery = 100 * time.Millisecond

// poll looks again and again; the error wraps that of ctx once it has ended.
func (w *waiter) poll(ctx context.Context) (ok bool, sockets [][]render.Socket, err error) {
	again := time.NewTicker(pollEvery)
	defer again.Stop()
	for {
		select {
		case <-again.C:
		case <-ctx.Done():
			return false, nil, nil
		}
		if ok, sockets, err = w.look(ctx); ok || err != nil {
			return ok, sockets, err
		}
	}
}

// forward says that something happened, or may have, until the events end.
func forward(events source.Events, happened chan<- struct{}) error {
	for {
		what, err := events.Next()
		if err != nil {
			return err
		}
		if what == source.Pause {
			continue
		}
		select {
		case happened <- struct{}{}:
		default: // it will be looked anyway
		}
	}
}

// tell writes how it ended.
func (w *waiter) tell(ctx context.Context, a *waitAnswer) error {
	switch {
	case w.o.quiet:
		return nil
	case w.o.asJSON:
		return render.WriteJSON(w.e.stdout, a)
	}
	out := new(bytes.Buffer)
	prose := w.e.style.Wrapper(out)
	what := "somebody listens"
	if w.o.free {
		what = "nobody listens"
	}
	waited := time.Duration(a.WaitedNS).Round(time.Millisecond)
	some := len(w.whose) > len(w.port)+1 || len(w.o.tree.pids) > 0
	if w.o.free && some {
		what = "nobody of those asked for listens"
	}
	switch {
	case a.OK && a.WaitedNS == 0 && w.o.free:
		fmt.Fprintf(prose, "%d/%s: %s\n", a.LocalPort, a.Proto, what)
	case a.OK && a.WaitedNS == 0:
		fmt.Fprintf(prose, "%d/%s: %s already\n", a.LocalPort, a.Proto, what)
	case a.OK:
		fmt.Fprintf(prose, "%d/%s: %s, after %v\n", a.LocalPort, a.Proto, what, waited)
	default:
		if w.o.free {
			what = "nobody stopped listening"
		} else if some {
			what = "nobody of those waited for listened"
		} else {
			what = "nobody listened"
		}
		fmt.Fprintf(prose, "%d/%s: %s within %v\n", a.LocalPort, a.Proto, w.e.style.Red(what), w.o.timeout)
		if len(a.Sockets) > 0 {
			fmt.Fprintln(out, "the port is used by:")
		}
	}
	if n := len(a.Sockets); n > 0 {
		names, err := w.src.Names(ctx)
		if err != nil {
			return err
		}
		defer names.Cgroups.Close()
		if err := render.New(names).RowsText(out, w.e.inOneNetNS(), a.Sockets[:min(n, maxInTheWay)]); err != nil {
			return err
		}
		if n > maxInTheWay {
			fmt.Fprintf(out, "and %d more, see --json\n", n-maxInTheWay)
		}
	}
	_, err := out.WriteTo(w.e.stdout)
	return err
}
