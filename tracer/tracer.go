package tracer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
)

// DefaultRingBytes is the size of the ring buffer: room for some 100,000 events.
const DefaultRingBytes = 8 << 20

// Config says how to trace. The zero value is good.
type Config struct {
	// RingBytes is the size of the ring buffer, a power of two and at least a
	// page; 0 means DefaultRingBytes.
	RingBytes int
	// Established adds EventEstablished, until SetEstablished says otherwise.
	Established bool
	// Tier forces the hooks of one tier; "" means those of TierFentry, and where the
	// kernel refuses one of them, those of TierTracepoint that see the same.
	Tier Tier
	// NoSyscallHooks leaves out the hooks that cost every system call of the
	// machine, and every request of io_uring; what is then not seen is in Hooks.
	NoSyscallHooks bool
	// History is how many tenancies that ended to keep; 0: none.
	History int
	// Reconcile is how often the table is compared with the kernel's own; 0: only
	// after a loss.
	Reconcile time.Duration
}

// Tracer follows every TCP and UDP socket of the machine. Open it, Run it in one
// goroutine, read from Subscribe and Table in others, Close it.
type Tracer struct {
	maps  map[string]*ebpf.Map
	links []link.Link
	progs []attached
	hooks []HookStatus
	// byTracepoint are the parts that hooks of the tracepoint tier report; the
	// programs read them from partsVar.
	byTracepoint   bpfPart
	preempted      bool // syscallsPreempted
	cgroupPart     bool // see PartOfCgroups
	partsVar       *ebpf.Variable
	establishedVar *ebpf.Variable
	reader         *ringbuf.Reader
	snap           *Snapshotter
	devices        deviceNames
	table          *Table
	history        *History
	out            fanout
	completer      *completer

	mu    sync.Mutex
	stats Stats
	tally tally
	round atomic.Uint64 // CLOCK_BOOTTIME when Run last went round, nanoseconds; 0: it does not run

	// Used by Run alone.
	dec      *decoder
	clock    wallClock
	batch    []Event
	decoded  uint64        // events since the last handOn
	asks     bool          // of batch: the completer has to
	inWay    knownInWay    // of the last refused bind
	checked  time.Time     // last look at the counters
	resynced uint64        // losses the table has been rebuilt after
	every    time.Duration // Config.Reconcile
	next     time.Time     // the next one; zero: none
	owed     bool          // the table is to be rebuilt after a loss
	retry    time.Time     // not to rebuild the table before
	caughtUp time.Time     // end of the last catchUp
	reading  time.Duration // in catchUp, since the beginning of rebuild
	newest   uint64        // Event.boot of the last event read
	settle   uint64        // CLOCK_BOOTTIME: once what is older was read the table can be settled; 0: it is
}

// attached is a program at its hook.
type attached struct {
	hook string
	prog *ebpf.Program
}

const (
	// lruPerCPU is how many entries the tables that forget have at least, for each processor.
	lruPerCPU = 512
	// readerIdle is how long the reader waits for unannounced events before it
	// sleeps until the kernel wakes it; see emit.h.
	readerIdle = 50 * time.Millisecond
	// idleRound is how long Run sleeps at most where nothing happens, to prove that it lives.
	idleRound = 5 * time.Second
	// maxBatch bounds how many events are handed on at once.
	maxBatch = 512
	// checkEvery is how often the loss counters are read while events come.
	checkEvery = 100 * time.Millisecond
	// retryAfter is when the table is tried to be rebuilt again that could not be.
	retryAfter = time.Second
	// restAfter is how long the table is not rebuilt, as a multiple of what the last time
	// took: whoever makes events be lost without end gets a tenth of the reader's time.
	restAfter = 9
)

// Open loads the programs and attaches every hook; events collect in the ring
// buffer from then on. On error nothing stays attached. The error wraps
// ErrNotPermitted or ErrNotSupported where one of these is the reason.
func Open(cfg Config) (*Tracer, error) {
	if err := CheckTrace(cfg.Tier); err != nil {
		return nil, err
	}
	if cfg.RingBytes == 0 {
		cfg.RingBytes = DefaultRingBytes
	}
	if page := os.Getpagesize(); cfg.RingBytes < page || cfg.RingBytes&(cfg.RingBytes-1) != 0 {
		return nil, fmt.Errorf("ring buffer of %d bytes: want a power of two, at least %d", cfg.RingBytes, page)
	}
	t := &Tracer{
		table: NewTable(), history: newHistory(cfg.History), tally: tally{failures: make(map[Failure]uint64)}, every: cfg.Reconcile,
		dec: newDecoder(), batch: make([]Event, 0, maxBatch),
	}
	if cfg.Reconcile > 0 {
		t.table.left = make(map[uint64]left) // reconciling is what keeps it small
	}
	dec := newDecoder()
	t.completer = newCompleter(&t.out, t.table, func(ports ...uint16) (*Rows, error) { return t.snap.rowsOf(dec, ports...) })
	if err := t.open(cfg); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Tracer) open(cfg Config) error {
	var err error
	if t.snap, err = NewSnapshotter(ReadsSockets | ReadsPorts); err != nil {
		return err
	}
	t.snap.timed = 1 // events are older than a row, or newer
	t.devices.read = t.snap.Devices
	load := loadBpf
	if cast, err := hasCast(t.snap.kernel); err != nil {
		return err
	} else if !cast {
		load = loadBpfOld
	}
	spec, err := load()
	if err != nil {
		return fmt.Errorf("read BPF object: %w", err)
	}
	if err := t.openMaps(spec, cfg); err != nil {
		return err
	}
	if t.reader, err = ringbuf.NewReader(t.maps[bpfMapEvents]); err != nil {
		return explain("open ring buffer", err)
	}
	if err := t.attach(spec, cfg); err != nil {
		return err
	}
	return t.snap.forget()
}

func (t *Tracer) openMaps(spec *ebpf.CollectionSpec, cfg Config) error {
	spec.Maps[bpfMapEvents].MaxEntries = uint32(cfg.RingBytes)
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count processors: %w", err)
	}
	// Each processor keeps up to 128 free entries to itself: a table that is small for
	// that forgets what was just written.
	for _, name := range []string{bpfMapPendings, bpfMapSpareNotes} {
		spec.Maps[name].MaxEntries = max(spec.Maps[name].MaxEntries, uint32(lruPerCPU*cpus))
	}
	for name, value := range map[string]any{
		bpfVarSyscallHooks: !cfg.NoSyscallHooks,
		bpfVarWakeBytes:    uint32(cfg.RingBytes / 8),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	coll, err := createMaps(spec)
	if err != nil {
		return err
	}
	t.maps, t.partsVar, t.establishedVar = coll.Maps, coll.Variables[bpfVarTracepointParts], coll.Variables[bpfVarWantEstablished]
	return t.SetEstablished(cfg.Established)
}

// attach attaches every hook of the tier, or none. Hooks that see the end of
// sockets come first: of a socket whose beginning is seen the end must be too.
func (t *Tracer) attach(spec *ebpf.CollectionSpec, cfg Config) error {
	kernel, err := t.snap.kernel.Kernel()
	if err != nil {
		return explain("read the kernel's BTF", err)
	}
	opts, err := loadOptions(t.maps, t.snap.kernel)
	if err != nil {
		return err
	}
	t.preempted = syscallsPreempted(kernel)
	l := loader{t: t, spec: spec, opts: opts, kernel: kernel, uring: !cfg.NoSyscallHooks && pickUring(kernel) != ""}
	defer l.close()
	if err := l.attach(hooksOf(func(p *probe) bool { return p.tier == "" })); err != nil {
		return err
	}
	for _, part := range parts {
		if cfg.Tier != TierTracepoint {
			hooks := hooksOf(func(p *probe) bool { return p.tier == TierFentry && p.parts == part })
			err := l.attach(hooks)
			if err == nil {
				continue
			}
			if cfg.Tier == TierFentry {
				return fmt.Errorf("tier %s is not for this kernel: %w", cfg.Tier, err)
			}
			for _, p := range hooks {
				t.hooks = append(t.hooks, HookStatus{Hook: p.hook, Tier: p.tier, Reason: reason(p.hook, err)})
			}
		}
		t.byTracepoint |= part
		if err := CheckTrace(TierTracepoint); err != nil {
			return fmt.Errorf("without BPF trampolines, which the kernel refuses: %w", err)
		}
		if err := l.attach(l.needed(cfg, func(p *probe) bool { return p.parts == part })); err != nil {
			return err
		}
	}
	if err := t.partsVar.Set(uint32(t.byTracepoint)); err != nil {
		return fmt.Errorf("set %s: %w", bpfVarTracepointParts, err)
	}
	return l.attach(l.needed(cfg, func(p *probe) bool { return p.parts&(p.parts-1) != 0 && p.parts&t.byTracepoint != 0 }))
}

// hooksOf picks hooks.
func hooksOf(want func(*probe) bool) []*probe {
	var out []*probe
	for i := range probes {
		if want(&probes[i]) {
			out = append(out, &probes[i])
		}
	}
	return out
}

// loader puts programs into the kernel for a Tracer.
type loader struct {
	t      *Tracer
	spec   *ebpf.CollectionSpec
	opts   ebpf.CollectionOptions
	kernel *btf.Spec
	// uring: hookUring is wanted, and this kernel has what it needs.
	uring  bool
	cgroup *os.File // see openCgroup; nil: not opened yet
}

func (l *loader) close() {
	if l.cgroup != nil {
		l.cgroup.Close()
	}
}

// needed picks hooks of the tracepoint tier, and tells of those left out why.
func (l *loader) needed(cfg Config, want func(*probe) bool) []*probe {
	return hooksOf(func(p *probe) bool {
		if p.tier != TierTracepoint || !want(p) {
			return false
		}
		left := HookStatus{Hook: p.hook, Tier: p.tier, Lost: p.lost}
		switch {
		case p.syscall && cfg.NoSyscallHooks:
			left.Reason = "switched off"
		case p.hook == hookUring && !l.uring:
			left.Reason = "tells no request in this kernel (new in 5.18)"
		case p.new != "" && !hasTracepoint(l.kernel, p.hook):
			left.Reason = "not in this kernel (new in " + p.new + ")"
		case p.uring && l.uring:
			left.Reason, left.Lost = "not needed with "+hookUring, ""
		default:
			return true
		}
		l.t.hooks = append(l.t.hooks, left)
		return false
	})
}

// attach attaches all of these hooks, or none. Loading takes long and attaching
// does not, so everything is loaded first: the first hook must not wait for the
// last while events collect.
func (l *loader) attach(hooks []*probe) (err error) {
	var progs []*ebpf.Program
	var links []link.Link
	defer func() {
		for i, prog := range progs {
			if err != nil {
				prog.Close()
			} else { // kept for its counters
				l.t.progs = append(l.t.progs, attached{hooks[i].hook, prog})
			}
		}
		if err == nil {
			l.t.links = append(l.t.links, links...)
			return
		}
		for _, link := range links {
			link.Close()
		}
	}()
	for _, p := range hooks {
		prog, err := p.load(l.spec, l.opts)
		if err != nil {
			return &hookError{p.hook, errors.Is(err, ErrNotPermitted), err}
		}
		progs = append(progs, prog)
	}
	for i, p := range hooks {
		if progs[i].Type() != ebpf.Tracing && l.cgroup == nil {
			var whole bool
			if l.cgroup, whole, err = openCgroup(); err != nil {
				return err
			}
			l.t.cgroupPart = !whole
		}
		link, err := p.attach(progs[i], l.spec.Programs[p.progs[0]].AttachType, l.cgroup)
		if err != nil {
			return &hookError{p.hook, true, err}
		}
		links = append(links, link)
	}
	for _, p := range hooks {
		l.t.hooks = append(l.t.hooks, HookStatus{Hook: p.hook, Tier: p.tier, Attached: true, Lost: p.lost})
	}
	return nil
}

// Close detaches every hook and frees everything. Call it after Run has
// returned.
func (t *Tracer) Close() error {
	var errs []error
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	for _, a := range t.progs {
		errs = append(errs, a.prog.Close())
	}
	if t.reader != nil {
		errs = append(errs, t.reader.Close())
	}
	for _, m := range t.maps {
		errs = append(errs, m.Close())
	}
	if t.snap != nil {
		errs = append(errs, t.snap.Close())
	}
	t.out.close()
	return errors.Join(errs...)
}

// Tier is the set of hooks in use: TierFentry if it has any part of the job.
func (t *Tracer) Tier() Tier {
	for _, part := range parts {
		if t.byTracepoint&part == 0 {
			return TierFentry
		}
	}
	return TierTracepoint
}

// Hooks tells of every hook that was tried what became of it.
func (t *Tracer) Hooks() []HookStatus { return t.hooks }

// NotSeen tells what the hooks in use cannot see, one sentence each.
func (t *Tracer) NotSeen() []string {
	var out []string
	for _, h := range t.hooks {
		switch {
		case !h.Attached && h.Lost != "":
			out = append(out, h.Lost)
		case h.Attached && h.Hook == hookSyscall && t.preempted:
			out = append(out, skippedCalls)
		}
	}
	for _, b := range blindSpots {
		if b.tier == "" || b.tier == TierTracepoint && t.byTracepoint&b.parts != 0 || b.tier == TierFentry && b.parts&^t.byTracepoint != 0 {
			out = append(out, b.what)
		}
	}
	return out
}

// PartOfCgroups tells whether hooks could only be attached below the root of the cgroup
// hierarchy, as from within a cgroup namespace: what they see of processes that are not
// below is missing.
func (t *Tracer) PartOfCgroups() bool { return t.cgroupPart }

// Table is the live map. It is empty until Run has taken the first snapshot.
func (t *Tracer) Table() *Table { return t.table }

// History is the last tenancies that ended.
func (t *Tracer) History() *History { return t.history }

// Snapshot reads the kernel's sockets now, as Snapshotter.Take does, and adds what
// events told: Owner, Since, Origin; of TIME_WAIT who left it. Callers wait for
// each other.
func (t *Tracer) Snapshot(port uint16) (*Snapshot, error) {
	rows, err := t.Rows(port)
	if err != nil {
		return nil, err
	}
	return rows.Snapshot(), nil
}

// Rows is Snapshot, but for making the sockets.
func (t *Tracer) Rows(port uint16) (*Rows, error) {
	rows, err := t.snap.Rows(port)
	if err != nil {
		return nil, err
	}
	t.table.completeRows(rows)
	return rows, nil
}

// Ports reads every use of an ephemeral port now; of sockets that no process holds
// it tells who had them last, where that was observed. Unless holders is set, who
// has the others is not read either, but taken from the table: that takes half the
// time. Callers wait for each other.
func (t *Tracer) Ports(holders bool) (*Ports, error) { return t.snap.ports(t.table, holders) }

// NetNamespaces is Snapshotter.NetNamespaces.
func (t *Tracer) NetNamespaces() ([]NetNS, error) { return t.snap.NetNamespaces() }

// Programs tells what each attached BPF program has cost since Open, as far as the
// kernel counts: only while kernel.bpf_stats_enabled is 1.
func (t *Tracer) Programs() ([]ProgramStats, error) {
	out := make([]ProgramStats, 0, len(t.progs))
	for _, a := range t.progs {
		stats, err := a.prog.Stats()
		if err != nil {
			return nil, fmt.Errorf("read counters of %s: %w", a.hook, err)
		}
		out = append(out, ProgramStats{Hook: a.hook, Runs: stats.RunCount, Time: stats.Runtime})
	}
	return out, nil
}

// Counts are the events published since Open.
func (t *Tracer) Counts() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tally.counts()
}

// SetEstablished turns EventEstablished on or off.
func (t *Tracer) SetEstablished(on bool) error {
	if err := t.establishedVar.Set(on); err != nil {
		return fmt.Errorf("set %s: %w", bpfVarWantEstablished, err)
	}
	return nil
}

// Subscribe returns a queue of every event from now on: of at most max of them, and fewer
// where they take more memory than usual, as a bind does that was refused because of many.
func (t *Tracer) Subscribe(max int) *Subscription { return t.out.subscribe(max) }

// Stats returns the counters as they are now.
func (t *Tracer) Stats() (Stats, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := readStats(t.maps[bpfMapStats], t.progs, &t.stats)
	return t.stats, err
}

// Run reads events until ctx ends, and calls ready, if not nil, with the first
// snapshot, which is ready's to keep, once it is in the table: an event older
// than it is not published, for the snapshot tells it. When ctx ends Run hands on what the kernel has collected,
// ends every subscription and returns nil.
func (t *Tracer) Run(ctx context.Context, ready func(*Snapshot)) error {
	defer t.out.close()
	snap, err := t.snap.Take(0)
	if err != nil {
		return err
	}
	t.readClock()
	t.table.Reconcile(snap)
	t.settleSoon()
	if t.every > 0 {
		t.next = time.Now().Add(t.every)
	}
	t.round.Store(boottime())
	if ready != nil {
		ready(snap)
	}
	defer t.complete()()
	t.reader.SetDeadline(t.quiet())
	var last atomic.Uint64 // CLOCK_BOOTTIME when ctx ended: events go on, maybe as fast as they are read
	stop := context.AfterFunc(ctx, func() {
		last.Store(boottime())
		_ = t.reader.Flush() // fails only on a closed reader
	})
	defer stop()
	var rec ringbuf.Record
	var idleFrom time.Time // when the last event was handed on
	for {
		err = t.reader.ReadInto(&rec)
		if err != nil {
			t.handOn()
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				if err := t.check(); err != nil {
					return err
				}
				if time.Since(idleFrom) >= readerIdle {
					t.reader.SetDeadline(t.quiet())
				} else { // an event came as the time ran out; those after it are unannounced
					t.reader.SetDeadline(idleFrom.Add(readerIdle))
				}
				continue
			case errors.Is(err, ringbuf.ErrFlushed), errors.Is(err, ringbuf.ErrClosed):
				return nil
			}
			return fmt.Errorf("read ring buffer: %w", err)
		}
		t.take(rec.RawSample)
		if len(t.batch) < maxBatch && rec.Remaining > 0 {
			continue
		}
		t.handOn()
		if end := last.Load(); end != 0 && t.newest > end {
			return nil
		}
		idleFrom = time.Now()
		t.reader.SetDeadline(idleFrom.Add(readerIdle))
		if idleFrom.Sub(t.checked) > checkEvery {
			if err := t.check(); err != nil {
				return err
			}
		}
	}
}

// complete starts the completer, and returns what ends it.
func (t *Tracer) complete() (end func()) {
	ending, ended := make(chan struct{}), make(chan struct{})
	t.completer.running.Store(true)
	go func() {
		defer close(ended)
		t.completer.run(ending)
	}()
	return func() {
		close(ending)
		<-ended
		t.completer.running.Store(false)
	}
}

// quiet is until when to sleep, unless an event wakes the reader.
func (t *Tracer) quiet() time.Time {
	until := t.next
	sooner := func(at time.Time) {
		if until.IsZero() || at.Before(until) {
			until = at
		}
	}
	if t.owed {
		sooner(t.retry)
	} else if !until.IsZero() && until.Before(t.retry) {
		until = t.retry
	}
	if t.settle != 0 {
		sooner(time.Now().Add(time.Duration(t.settle-min(t.settle, boottime())) + time.Millisecond))
	}
	sooner(time.Now().Add(idleRound))
	return until
}

// SinceRound is how long ago Run last handed on events, or found that there are none: some
// seconds at most, unless it is stuck. It is very long before the first time.
func (t *Tracer) SinceRound() time.Duration { return time.Duration(boottime() - t.round.Load()) }

// take decodes one record, puts it into the table and keeps it for handOn.
func (t *Tracer) take(record []byte) {
	t.batch = t.batch[:len(t.batch)+1]
	ev := &t.batch[len(t.batch)-1]
	if err := t.dec.event(record, t.clock.zero, ev); err != nil {
		t.batch = t.batch[:len(t.batch)-1]
		t.count(&t.stats.Bad, 1)
		return
	}
	t.newest = ev.boot
	news := t.table.Apply(ev)
	if len(t.table.missed) > 0 { // before what it was noticed by
		last := *ev
		t.batch = t.batch[:len(t.batch)-1]
		t.tellMissed()
		t.batch = append(t.batch, last)
		ev = &t.batch[len(t.batch)-1]
	}
	if !news {
		t.batch = t.batch[:len(t.batch)-1]
	} else if ev.contested() {
		t.knownInTheWay(ev)
		t.asks = true
	}
	t.decoded++
}

// tellMissed hands on the closes that were not seen.
func (t *Tracer) tellMissed() {
	missed := t.table.missed
	for i := range missed {
		if t.batch = append(t.batch, missed[i]); len(t.batch) == maxBatch {
			t.handOn()
		}
	}
	if t.table.missed = missed[:0]; cap(missed) > maxBatch {
		t.table.missed = nil
	}
}

// handOn publishes what take has collected: last, so that who gets a close finds it in
// the history.
func (t *Tracer) handOn() {
	t.mu.Lock()
	for i := range t.batch {
		t.tally.add(&t.batch[i])
	}
	t.stats.Decoded += t.decoded
	t.mu.Unlock()
	for i := range t.batch {
		if t.batch[i].Type == EventClose {
			t.history.add(&t.batch[i])
		}
	}
	t.completer.publish(t.batch, t.asks)
	t.asks = false
	clear(t.batch) // who was in the way of a bind is the subscribers'
	t.batch = t.batch[:0]
	t.decoded = 0
	t.readClock()
	t.round.Store(boottime())
}

// readClock looks whether the clock was set.
func (t *Tracer) readClock() {
	t.clock.read()
	if zero := t.clock.zero.UnixNano(); zero != t.table.zero {
		t.table.setZero(zero)
	}
}

func (t *Tracer) count(to *uint64, n uint64) {
	t.mu.Lock()
	*to += n
	t.mu.Unlock()
}

// check rebuilds the table when events were lost since the last time, or its time
// has come.
func (t *Tracer) check() error {
	t.checked = time.Now()
	if t.settle != 0 && (t.newest > t.settle || boottime() > t.settle && t.reader.AvailableBytes() == 0) {
		t.settle = 0
		if again := t.checked.Add(retryAfter); !t.settleNow() && (t.next.IsZero() || t.next.After(again)) {
			t.next = again
		}
	}
	stats, err := t.Stats()
	if err != nil {
		return err
	}
	lost := stats.Lost()
	t.owed = lost != t.resynced
	due := !t.next.IsZero() && !t.checked.Before(t.next)
	switch {
	case !t.owed && !due || t.checked.Before(t.retry):
	case !t.rebuild():
	case t.owed:
		t.owed, t.resynced = false, lost
		t.count(&t.stats.Resyncs, 1)
	default:
		t.count(&t.stats.Reconciles, 1)
	}
	return nil
}

// rebuild is resync. That it could not be done, for want of memory or of a file
// descriptor, is counted, and it is tried again after a while: what is known still
// serves, and events go on.
func (t *Tracer) rebuild() bool {
	start := time.Now()
	t.reading = 0
	err := t.resync()
	if err == nil {
		end := time.Now()
		if t.retry = end.Add(restAfter * (end.Sub(start) - t.reading)); t.every > 0 {
			t.next = time.Now().Add(t.every)
		} else {
			t.next = time.Time{}
		}
		return true
	}
	t.mu.Lock()
	t.stats.ResyncErrors++
	t.stats.ResyncError = err
	t.mu.Unlock()
	t.retry = time.Now().Add(retryAfter)
	t.next = t.retry
	return false
}

// catchUp reads what the kernel has collected, up to a time of CLOCK_BOOTTIME.
func (t *Tracer) catchUp(until uint64) error {
	start := time.Now()
	defer func() {
		t.caughtUp = time.Now()
		t.reading += t.caughtUp.Sub(start)
	}()
	var rec ringbuf.Record
	t.reader.SetDeadline(time.Now()) // what is there is read all the same
	for t.reader.AvailableBytes() > 0 {
		err := t.reader.ReadInto(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if errors.Is(err, ringbuf.ErrFlushed) {
			return t.reader.Flush() // for Run to see
		}
		if err != nil {
			return fmt.Errorf("read ring buffer: %w", err)
		}
		t.take(rec.RawSample)
		if len(t.batch) == maxBatch {
			t.handOn()
		}
		if t.newest > until+uint64(readerIdle) { // processors need not agree on the order of times
			break
		}
	}
	t.handOn()
	return nil
}

// settleSoon is for after a snapshot has been merged.
func (t *Tracer) settleSoon() {
	// A close is told a moment after the socket is in no table any more: by the time it
	// can be thought lost, it has long been in the ring buffer.
	t.settle = boottime() + uint64(readerIdle)
}
