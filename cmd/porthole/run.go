package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/policy"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

type runOptions struct {
	agent      agentOptions
	file       string
	policyFile string
	failOnLeak bool
	verbose    bool
	jsonRows   bool
}

func newRun(e *env) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND...",
		Short: "Run a command, and say which ports it used and left open",
		Long: "Run a command and, when it ends, list the ports that it and its descendants\n" +
			"bound, listened on and connected to, and what still listens (a leak). A cgroup\n" +
			"of its own keeps track of them, daemons included; where none can be made,\n" +
			"porthole follows parents, and misses children that end at once. The table goes\n" +
			"to standard error or to a file; the terminal, standard input and standard output\n" +
			"belong to the command. Exits with the exit code of the command, or with 128 plus\n" +
			"the number of the signal that ended it. With --policy, every listener is\n" +
			"compared with the list, including one that was closed at once: if the command\n" +
			"succeeds and a listener was not allowed, porthole exits with 1; if that cannot\n" +
			"be known because events were lost, with 3.",
		Example: "  porthole run -- make test\n" +
			"  porthole run --fail-on-leak -- go test ./...\n" +
			"  porthole run --policy policy.yml -- ./smoke-test\n" +
			"  porthole run -v --json -o ports.json -- ./server",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("want a command after --, as porthole run -- make test; see %s --help", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runCommand(cmd.Context(), e, &o, args) },
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // the rest is the command's
	flags.StringVarP(&o.file, "output", "o", "", "write to `FILE` instead of standard error")
	flags.StringVar(&o.policyFile, "policy", "", "exit with 1 if the command succeeds and something listened that this `FILE` does not allow")
	flags.BoolVar(&o.failOnLeak, "fail-on-leak", false, "exit with 1 if the command succeeds and something still listens")
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "also show every event as it happens, like tail")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	o.agent.add(cmd)
	onlyHere(cmd, "on another: ssh HOST porthole run -- COMMAND")
	return cmd
}

// exitError ends porthole with the exit code of a command that it ran.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usedPort is what a command did on a port, in JSON.
type usedPort struct {
	Event      string     `json:"event"` // bind, listen, connect or accept; leak: it still listens; violation: it listened and may not
	Proto      string     `json:"proto"`
	LocalIP    netip.Addr `json:"local_ip,omitzero"`
	LocalPort  uint16     `json:"local_port,omitempty"` // absent: the kernel picked it
	RemoteIP   netip.Addr `json:"remote_ip,omitzero"`
	RemotePort uint16     `json:"remote_port,omitempty"`
	PID        uint32     `json:"pid,omitempty"` // of who has what still listens
	Comm       string     `json:"comm,omitempty"`
	Error      string     `json:"error,omitempty"`
	Rule       string     `json:"rule,omitempty"` // of a violation, as the next two
	Reason     string     `json:"reason,omitempty"`
	Exposure   string     `json:"exposure,omitempty"`
	Times      int        `json:"times"`
}

// family is a command and its descendants.
type family struct {
	dir  string // of the cgroup that they are in; "": none could be made
	name string // of the cgroup, which no other has
	fd   *os.File
	seen map[uint32]bool // without a cgroup: whether a process is a descendant of this one
}

// newFamily makes a cgroup below that of this process, or has descendants whose parents end
// become children of this process.
func newFamily() (*family, error) {
	f := &family{name: fmt.Sprintf(familyPrefix+"%d-%d", os.Getpid(), time.Now().UnixNano()), seen: make(map[uint32]bool)}
	if f.makeCgroup() == nil {
		return f, nil
	}
	f.dir = ""
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the parent of orphans: %w", err)
	}
	return f, nil
}

// ownCgroup is the directory of the cgroup that this process is in.
func ownCgroup() (string, error) {
	root, err := tracer.CgroupRoot()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(root, path), nil
		}
	}
	return "", errors.New("no cgroup v2")
}

func (f *family) makeCgroup() error {
	own, err := ownCgroup()
	if err != nil {
		return err
	}
	removeAbandoned(own)
	f.dir = filepath.Join(own, f.name)
	if err := os.Mkdir(f.dir, 0o755); err != nil {
		return err
	}
	if f.fd, err = os.Open(f.dir); err == nil {
		err = unix.Flock(int(f.fd.Fd()), unix.LOCK_SH)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.dir))
	}
	return nil
}

// familyPrefix is what the names of the cgroups begin with.
const familyPrefix = "porthole-run-"

// removeAbandoned removes the cgroups in which nobody is and that nobody has locked: whoever made them was
// killed.
func removeAbandoned(parent string) {
	dirs, err := filepath.Glob(filepath.Join(parent, familyPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = unix.Rmdir(dir) // it may have processes in it
		}
		_ = f.Close()
	}
}

// close removes the cgroup. Who is still in it goes where it would be without one.
func (f *family) close() {
	if f.dir == "" {
		return
	}
	_ = f.fd.Close()
	parent := filepath.Join(filepath.Dir(f.dir), "cgroup.procs")
	for range 3 { // some may be started meanwhile
		text, err := os.ReadFile(filepath.Join(f.dir, "cgroup.procs"))
		if err != nil {
			return
		}
		for _, pid := range strings.Fields(string(text)) {
			_ = os.WriteFile(parent, []byte(pid), 0) // it may have ended
		}
		if os.Remove(f.dir) == nil {
			return
		}
	}
}

// did tells whether one of the family acted.
func (f *family) did(ev *render.Event) bool {
	if f.dir != "" {
		return slices.Contains(strings.Split(ev.Cgroup, "/"), f.name)
	}
	return ev.PID != 0 && f.descends(ev.PID)
}

// has tells whether a process is one of the family now.
func (f *family) has(pid uint32) bool {
	if f.dir == "" {
		delete(f.seen, pid)
		return f.descends(pid)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && slices.Contains(strings.FieldsFunc(string(text), func(r rune) bool { return r == '/' || r == '\n' }), f.name)
}

// descends tells whether a process descends from this one, which orphans do too.
func (f *family) descends(pid uint32) bool {
	if known, ok := f.seen[pid]; ok {
		return known
	}
	if int(pid) == os.Getpid() || pid <= 1 {
		return false
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// "pid (comm) state ppid ...", where comm may have anything.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 2 {
		return false
	}
	parent, err := strconv.ParseUint(string(fields[1]), 10, 32)
	is := err == nil && (int(parent) == os.Getpid() || f.descends(uint32(parent)))
	f.seen[pid] = is
	return is
}

const (
	// endsWithin is how long what the command leaves may take to end with it.
	endsWithin = 250 * time.Millisecond
	// readWithin is how long events of the end of the command are waited for, at most.
	readWithin = 2 * time.Second
)

// startError is a command that cannot be started. Its exit code is that of a shell.
type startError struct{ error }

func (e startError) Unwrap() error { return e.error }

// exitCode is 127 where there is no such command, else 126.
func (e startError) exitCode() int {
	if errors.Is(e, exec.ErrNotFound) || errors.Is(e, fs.ErrNotExist) {
		return 127
	}
	return 126
}

func cannotStart(name string, err error) error {
	return startError{fmt.Errorf("run %s: %w", identity.Safe(name), err)}
}

func runCommand(ctx context.Context, e *env, o *runOptions, args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return cannotStart(args[0], err)
	}
	var allowed *policy.Policy
	if o.policyFile != "" {
		if allowed, err = readPolicy(o.policyFile); err != nil {
			return err
		}
	}
	out, style := e.stderr, e.errStyle
	if o.file != "" {
		f, err := os.Create(o.file)
		if err != nil {
			return err
		}
		defer f.Close()
		out, style = f, render.Style{}
	}
	src, err := o.agent.open(e, &source.Local{}, tracer.CheckTrace(""))
	if err != nil {
		return err
	}
	fam, err := newFamily()
	if err != nil {
		return err
	}
	defer fam.close()
	if fam.dir == "" {
		if tracer.InOtherNamespace("pid") {
			return errors.New("follow the command: no cgroup can be made for it, and process numbers are those of a pid namespace")
		}
		if allowed != nil {
			return errors.New("compare with the policy: no cgroup can be made for the command, without which a child that ends at once is not seen")
		}
		fmt.Fprintln(e.notes(), "porthole: no cgroup can be made for the command: what its children do that end at once is not seen")
	}
	r := &recorder{o: o, policy: allowed, out: out, style: style, family: fam, used: make(map[usedPort]int), bound: make(map[boundTo]usedPort), compared: make(map[boundTo]bool),
		closed: make(chan struct{}, 1), fence: make(chan struct{})}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q, err := query.ParseEvents(query.Values{"verbose": {"true"}}) // a connection that was refused was none
	if err != nil {
		return err
	}
	if r.events, err = src.Events(ctx, q); err != nil {
		return err
	}
	if allowed != nil {
		tellView(e, r.events.Begun().PartialView)
	}
	recorded := make(chan error, 1)
	go func() { recorded <- r.record() }()
	begin := time.Now()
	ended, err := fam.run(path, args)
	took := time.Since(begin)
	var leaks []usedPort
	if err == nil {
		leaks, err = r.leaks(ctx, e, src)
	}
	cancel()
	recordErr := unlessGone(<-recorded)
	lost, endErr := r.events.End()
	if err := errors.Join(err, recordErr, endErr, r.events.Close()); err != nil {
		return err
	}
	if lost > 0 {
		fmt.Fprintf(e.notes(), "porthole: %d events were lost: ports may be missing\n", lost)
	}
	if err := unlessGone(r.write(args[0], ended, took, leaks)); err != nil {
		return err
	}
	switch {
	case ended.code() != 0:
	case o.failOnLeak && len(leaks) > 0, len(r.violations) > 0:
		return errNo
	case allowed != nil && lost > 0:
		return errors.New("compare with the policy: events were lost, so something may have listened that it does not allow")
	}
	return exitError(ended.code())
}

// unlessGone is an error of a write, but for a reader that went away: the exit code is the command's.
func unlessGone(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// ending is how a command ended.
type ending syscall.WaitStatus

// code is the exit code of a shell: 128 and the number of the signal that ended the command.
func (e ending) code() int {
	ws := syscall.WaitStatus(e)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

func (e ending) String() string {
	ws := syscall.WaitStatus(e)
	if ws.Signaled() {
		return fmt.Sprintf("was ended by %s", cmp.Or(unix.SignalName(ws.Signal()), ws.Signal().String()))
	}
	return fmt.Sprintf("ended with exit code %d", ws.ExitStatus())
}

// run runs the command to its end. Signals are passed on to it.
func (f *family) run(path string, args []string) (ending, error) {
	c := &exec.Cmd{Path: path, Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if f.dir != "" {
		c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.fd.Fd())}
	}
	relayed := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGWINCH}
	signal.Reset(syscall.SIGINT, syscall.SIGTERM) // they end the command, which ends this
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, relayed...)
	defer signal.Stop(signals)
	// What is ignored would stay so in the command. It is never stopped: the table may be written to
	// a reader that went away.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if err := c.Start(); err != nil {
		return 0, cannotStart(path, err)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case sig := <-signals:
				if fromTerminal(sig) {
					continue
				}
				_ = c.Process.Signal(sig)
			case <-done:
				return
			}
		}
	}()
	err := c.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("wait for %s: %w", identity.Safe(path), err)
	}
	return ending(c.ProcessState.Sys().(syscall.WaitStatus)), nil
}

// fromTerminal tells whether the terminal sends a signal to the command too: they are in one
// process group, in the foreground.
func fromTerminal(sig os.Signal) bool {
	if sig != syscall.SIGINT && sig != syscall.SIGQUIT && sig != syscall.SIGWINCH {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// leaks are the sockets that still listen and are the family's: one of it has them, or has bound them,
// wherever who has them is by now. What ends together with the command has a moment to do so. All events
// of the command were read then.
func (r *recorder) leaks(ctx context.Context, e *env, src source.Source) ([]usedPort, error) {
	if err := r.readAll(); err != nil {
		return nil, err
	}
	over := time.After(endsWithin)
	for last := false; ; {
		rows, _, err := socketRows(ctx, e, src, query.Values{"listening": {"true"}})
		if err != nil {
			return nil, err
		}
		var left []usedPort
		for i := range rows {
			if leak, is := r.leak(&rows[i]); is {
				left = append(left, leak)
			}
		}
		if len(left) == 0 || last {
			return left, nil
		}
		select {
		case <-r.closed:
		case <-over:
			last = true
		}
	}
}

// leak tells whether a socket is the family's. A UDP socket whose port the kernel picked waits for
// nobody: it is a client.
func (r *recorder) leak(s *render.Socket) (usedPort, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := usedPort{Event: "leak", Proto: s.Proto, LocalIP: s.LocalIP, LocalPort: s.LocalPort, Times: 1}
	where := boundTo{s.Proto, netip.AddrPortFrom(s.LocalIP, s.LocalPort), s.NetNS}
	if r.picked[where] {
		return p, false
	}
	_, bound := r.bound[where]
	at := slices.IndexFunc(s.Holders, func(h render.Holder) bool { return r.family.has(h.PID) })
	switch {
	case at >= 0:
		p.PID, p.Comm = s.Holders[at].PID, s.Holders[at].Comm
	case bound && len(s.Holders) > 0:
		p.PID, p.Comm = s.Holders[0].PID, s.Holders[0].Comm
	}
	is := at >= 0 || bound
	if is && r.policy != nil && !r.compared[where] && (s.FixedPort || s.State == tracer.StateListen.String()) { // it was handed over, and is theirs now
		r.compared[where] = true
		l := policy.Of(s, reachable(s.LocalIP, s.Device))
		r.judge(&l, s.LocalIP, p.Comm)
	}
	return p, is
}

// readAll waits until every event that has happened was read: until one of its own is.
func (r *recorder) readAll() error {
	r.mu.Lock()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err == nil {
			var to unix.Sockaddr
			if to, err = unix.Getsockname(fd); err == nil {
				r.fencePort = uint16(to.(*unix.SockaddrInet4).Port)
			}
		}
	}
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("mark the end of the events: %w", err)
	}
	select {
	case <-r.fence:
	case <-time.After(readWithin): // it was lost, or there are very many
	}
	return nil
}

// recorder adds up what the family does.
type recorder struct {
	o      *runOptions
	policy *policy.Policy // nil: there is none
	out    io.Writer
	style  render.Style
	events source.Events
	line   []byte
	closed chan struct{} // holds a token once one of the family has closed a socket
	fence  chan struct{} // closed once the event of the fence was read

	mu     sync.Mutex // of what follows, until record has returned
	family *family
	// violations are listeners that the policy does not allow, and how often each was there; compared are those
	// that events told of.
	violations map[usedPort]int
	compared   map[boundTo]bool
	used       map[usedPort]int
	bound      map[boundTo]usedPort // the bind, as it was counted, of what is bound now
	picked     map[boundTo]bool     // of those the ones that the kernel bound by itself
	trying     map[connection]usedPort
	fencePort  uint16 // of the UDP socket that is the fence; 0: there is none yet
}

// connection is a TCP connection that is being made, as one of the family began it.
type connection struct {
	local, remote netip.AddrPort
	netns         uint32
}

// record reads events until they end.
func (r *recorder) record() error {
	var ev render.Event
	for {
		happened, err := r.events.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case happened != source.Event:
			continue
		}
		if err := r.events.Row(&ev); err != nil {
			return err
		}
		if !r.take(&ev) || !r.o.verbose || ev.Event == tracer.EventEstablished.String() {
			continue
		}
		if r.o.jsonRows {
			r.line, err = r.events.AppendJSON(r.line[:0])
		} else {
			r.line, err = r.events.AppendText(r.line[:0], r.style)
		}
		if err != nil {
			return err
		}
		if _, err := r.out.Write(r.line); err != nil {
			return err
		}
	}
}

// take counts an event of the family, and tells whether it is one.
func (r *recorder) take(ev *render.Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fencePort != 0 && ev.LocalPort == r.fencePort && int(ev.PID) == os.Getpid() && ev.Event == tracer.EventBind.String() {
		r.fencePort = 0
		close(r.fence)
	}
	if !r.family.did(ev) {
		return false
	}
	r.add(ev)
	if ev.Event == tracer.EventClose.String() {
		select {
		case r.closed <- struct{}{}:
		default: // it will be looked anyway
		}
	}
	return true
}

// add counts an event. Ports that the kernel picked are one row, and what became a listener is no
// bind.
func (r *recorder) add(ev *render.Event) {
	p := usedPort{Event: ev.Event, Proto: ev.Proto, LocalIP: ev.LocalIP, LocalPort: ev.LocalPort, Comm: ev.Comm, Error: ev.Error}
	at := boundTo{ev.Proto, netip.AddrPortFrom(ev.LocalIP, ev.LocalPort), ev.NetNS}
	bind, bound := r.bound[at]
	switch ev.Event {
	case tracer.EventEstablished.String():
		delete(r.trying, connectionOf(ev))
		return
	case tracer.EventClose.String():
		r.close(ev, at)
		return
	case tracer.EventConnect.String():
		p.LocalIP, p.LocalPort, p.RemoteIP, p.RemotePort = netip.Addr{}, 0, ev.RemoteIP, ev.RemotePort
		if ev.Proto == tracer.TCP.String() && ev.Error == "" {
			if r.trying == nil {
				r.trying = make(map[connection]usedPort)
			}
			r.trying[connectionOf(ev)] = p
		}
	case tracer.EventBind.String():
		if ev.Implicit || ev.RequestedPort != nil && *ev.RequestedPort == 0 {
			p.LocalPort = 0
		}
		if ev.Error == "" {
			r.bound[at] = p
			if ev.Implicit {
				if r.picked == nil {
					r.picked = make(map[boundTo]bool)
				}
				r.picked[at] = true
			}
		}
	case tracer.EventListen.String(), tracer.EventAccept.String():
		if bound {
			p.LocalPort = bind.LocalPort
		}
		if bound && ev.Event == tracer.EventListen.String() && ev.Error == "" {
			r.uncount(bind)
		}
	}
	r.used[p]++
	r.compare(ev, at)
}

// compare compares what became a listener with the policy, as policy check does: a TCP socket that listens, or a UDP
// socket on a port that was asked for. Who can reach it follows from its address alone: where the command
// runs for a test need not be where it will run.
func (r *recorder) compare(ev *render.Event, at boundTo) {
	listens := ev.Event == tracer.EventListen.String() ||
		ev.Event == tracer.EventBind.String() && ev.Proto == tracer.UDP.String() && !ev.Implicit && ev.RequestedPort != nil && *ev.RequestedPort != 0
	if r.policy == nil || !listens || ev.Error != "" {
		return
	}
	r.compared[at] = true
	l := policy.Listener{
		Proto: ev.Proto, Port: ev.LocalPort, Exposed: reachable(ev.LocalIP, ev.Device), Programs: []string{ev.Comm},
		Where: identity.Cgroup{Unit: ev.Unit, Container: ev.Container, Pod: ev.Pod},
	}
	if ev.UID != nil {
		l.UID = *ev.UID
	}
	r.judge(&l, ev.LocalIP, ev.Comm)
}

// reachable tells whether others could reach a listener on an address.
func reachable(ip netip.Addr, device string) bool { return !ip.IsLoopback() && device != "lo" }

// judge counts a listener that is not allowed.
func (r *recorder) judge(l *policy.Listener, ip netip.Addr, comm string) {
	allowed, rule, why := r.policy.Check(l)
	if allowed {
		return
	}
	if r.violations == nil {
		r.violations = make(map[usedPort]int)
	}
	r.violations[usedPort{
		Event: "violation", Proto: l.Proto, LocalIP: ip, LocalPort: l.Port, Comm: comm, Rule: rule, Reason: why, Exposure: l.Exposure(),
	}]++
}

// uncount takes back what was counted.
func (r *recorder) uncount(p usedPort) {
	if r.used[p]--; r.used[p] <= 0 {
		delete(r.used, p)
	}
}

// close is the end of a socket. One that had not been connected yet says why not.
func (r *recorder) close(ev *render.Event, at boundTo) {
	if tried, ok := r.trying[connectionOf(ev)]; ok {
		delete(r.trying, connectionOf(ev))
		if ev.Error != "" {
			r.uncount(tried)
			tried.Error = ev.Error
			r.used[tried]++
		}
	}
	switch {
	case ev.Proto == tracer.UDP.String():
		for _, addr := range []netip.Addr{ev.LocalIP, netip.IPv4Unspecified(), netip.IPv6Unspecified()} { // as it was before connect()
			at.local = netip.AddrPortFrom(addr, ev.LocalPort)
			delete(r.bound, at)
			delete(r.picked, at)
		}
	case !ev.RemoteIP.IsValid(): // else it is a connection of the listener
		delete(r.bound, at)
	}
}

func connectionOf(ev *render.Event) connection {
	return connection{netip.AddrPortFrom(ev.LocalIP, ev.LocalPort), netip.AddrPortFrom(ev.RemoteIP, ev.RemotePort), ev.NetNS}
}

// boundTo is where a socket is bound.
type boundTo struct {
	proto string
	local netip.AddrPort
	netns uint32
}

// rows are what was used, listeners first.
func (r *recorder) rows() []usedPort {
	return counted(r.used, []string{"listen", "bind", "accept", "connect"})
}

// broken are the violations of the policy.
func (r *recorder) broken() []usedPort { return counted(r.violations, nil) }

// counted are what was counted, by the order of events, then by port.
func counted(counts map[usedPort]int, order []string) []usedPort {
	var rows []usedPort
	for p, times := range counts {
		p.Times = times
		rows = append(rows, p)
	}
	slices.SortFunc(rows, func(a, b usedPort) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Event), slices.Index(order, b.Event)), cmp.Compare(a.LocalPort, b.LocalPort),
			cmp.Compare(a.RemotePort, b.RemotePort), cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	})
	return rows
}

// write writes the table.
func (r *recorder) write(name string, ended ending, took time.Duration, leaks []usedPort) error {
	rows := append(r.rows(), leaks...)
	broken := r.broken()
	if r.o.jsonRows {
		rows = append(rows, broken...)
		for i := range rows {
			if err := render.WriteJSON(r.out, &rows[i]); err != nil {
				return err
			}
		}
		return nil
	}
	out := new(bytes.Buffer)
	left := "nothing listens any more"
	switch {
	case len(rows) == 0:
		left = "it used no ports"
	case len(leaks) == 1:
		left = "a socket still listens (leak)"
	case len(leaks) > 1:
		left = fmt.Sprintf("%d sockets still listen (leak)", len(leaks))
	}
	fmt.Fprintf(r.style.Wrapper(out), "porthole: %s %v after %v; %s\n", identity.Safe(filepath.Base(name)), ended, took.Round(time.Millisecond), left)
	if len(rows) > 0 {
		var lines [][]string
		for i := range rows {
			p := &rows[i]
			lines = append(lines, []string{p.Event, p.Proto, p.address(), identity.Safe(cmp.Or(p.Comm, "-")), strconv.Itoa(p.Times), p.Error})
		}
		const address, comm = 2, 3
		columns := []render.Column{{Name: "EVENT"}, {Name: "PROTO"}, {Name: "ADDRESS", Address: true}, {Name: "COMM"}, {Name: "TIMES", Right: true}, {Name: "ERROR"}}
		if err := render.Table(out, r.style, columns, lines, render.Squeeze{To: 21, Columns: []int{address}}, render.Squeeze{To: 10, Columns: []int{comm}}, render.Squeeze{To: 12, Columns: []int{address}}); err != nil {
			return err
		}
	}
	var pids []string
	for i := range leaks {
		if pid := strconv.FormatUint(uint64(leaks[i].PID), 10); leaks[i].PID != 0 && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	if len(pids) > 0 {
		fmt.Fprintf(r.style.Wrapper(out), "stop what still listens: kill %s\n", strings.Join(pids, " "))
	}
	for i := range broken {
		p := &broken[i]
		rule := ""
		if p.Rule != policy.None {
			rule = "rule " + identity.Safe(p.Rule) + ": "
		}
		fmt.Fprintf(r.style.Wrapper(out), "porthole: not allowed: %d/%s on %s, %s, by %s: %s%s\n",
			p.LocalPort, p.Proto, p.LocalIP, p.Exposure, identity.Safe(cmp.Or(p.Comm, "?")), rule, p.Reason)
	}
	_, err := out.WriteTo(r.out)
	return err
}

func (p *usedPort) address() string {
	if p.RemoteIP.IsValid() {
		return netip.AddrPortFrom(p.RemoteIP, p.RemotePort).String()
	}
	if p.LocalPort == 0 {
		return strings.TrimSuffix(netip.AddrPortFrom(p.LocalIP, 1).String(), "1") + "any"
	}
	return netip.AddrPortFrom(p.LocalIP, p.LocalPort).String()
}
