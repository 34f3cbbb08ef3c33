package tracer

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
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

// Tracer follows every TCP and UDP socket of the machine. Open it, Run it in one goroutine,
// use Events, Subscribe and Table in others, and Close it once Run has returned. All methods
// but Run and Close are safe for concurrent use.
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
	ready          chan struct{} // closed by Run

	mu    sync.Mutex
	stats Stats
	tally tally
	lost  atomic.Uint64 // Stats.Lost when check last looked
	round atomic.Uint64 // CLOCK_BOOTTIME when Run last went round, nanoseconds; 0: it does not run

	// Used by Run alone.
	dec      *decoder
	onCgroup func(Cgroup) // nil: nobody wants to know
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
		table: newTable(), ready: make(chan struct{}), history: newHistory(cfg.History), tally: tally{failures: make(map[Failure]uint64)}, every: cfg.Reconcile,
		dec: newDecoder(), batch: make([]Event, 0, maxBatch),
	}
	if cfg.Reconcile > 0 {
		t.table.timeWaits = make(map[uint64]timeWait) // reconciling is what keeps it small
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

// Hooks returns the status of every hook that was tried.
func (t *Tracer) Hooks() []HookStatus { return t.hooks }

// NotSeen returns what the hooks in use cannot see, a sentence each.
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

// PartOfCgroups reports whether hooks could only be attached below the root of the cgroup
// hierarchy, as from within a cgroup namespace: then they do not see what processes elsewhere
// in the hierarchy do.
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

// Rows is like Snapshot, but makes each socket when it is read.
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

// Programs returns what each attached BPF program has cost since Open. The kernel counts that
// only while kernel.bpf_stats_enabled is 1.
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

// SubscribeTo is Subscribe, of those events alone for which wants returns true. It is called where events
// are read, for each: it must not wait, keep the event or call the Tracer.
func (t *Tracer) SubscribeTo(max int, wants func(*Event) bool) *Subscription {
	return t.out.subscribeTo(max, wants)
}

// Stats returns the counters as they are now.
func (t *Tracer) Stats() (Stats, error) {
	t.mu.Lock()
	stats := t.stats
	t.mu.Unlock()
	// After that: what was read is never more than what was submitted.
	err := readStats(t.maps[bpfMapStats], t.progs, &stats)
	return stats, err
}
