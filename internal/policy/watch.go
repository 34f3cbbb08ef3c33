package policy

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	// lookEach is how often listeners are compared where nothing is known to have changed: who holds a
	// socket, which namespace can be reached, and what a container is called are no events.
	lookEach = 30 * time.Second
	// lookAfter is how long a listener that is new has to be told who it is, and how long at least there is
	// between two comparisons.
	lookAfter = time.Second
	// sureFor is for how long it is believed of a socket what the kernel told besides the table.
	sureFor = 5 * time.Minute
	// queueOf is how many listeners may begin or end between two comparisons, and be told even if they are gone.
	queueOf = 4096
	// A flood of listeners must not be one of the log.
	logsPerSecond, logsAtOnce = 1, 200
)

// Watch compares what listens on a machine with a policy for as long as it runs: it counts what is not
// allowed, and logs each listener once.
type Watch struct {
	file   string
	tracer *tracer.Tracer
	names  *identity.Names
	log    *slog.Logger
	sub    *tracer.Subscription

	// Of Run.
	policy *Policy
	told   map[socket]verdict // violations that are logged
	sure   map[socket]sure    // verdicts on sockets of which the table does not have everything
	new    []tracer.Event     // listeners that began since the last comparison
	lost   uint64
	tokens float64 // of the log
	filled time.Time
	muted  int

	mu      sync.Mutex
	present map[string]int // violations by rule
}

// socket tells a listener from others.
type socket struct {
	cookie uint64
	netns  uint32
	proto  tracer.Proto
	device uint32
	local  netip.AddrPort
	taken  time.Duration // 0: it was there before
	inode  uint64        // of what was there before
}

// place is what the socket of the kernel's tables has of it.
func (s socket) place() socket {
	s.taken, s.inode = 0, 0
	return s
}

// verdict is what a policy says of a listener.
type verdict struct {
	allowed   bool
	rule, why string
}

// brokenBy is a listener that the table's word would not allow.
type brokenBy struct {
	row *render.Socket
	verdict
}

type sure struct {
	verdict
	at time.Time
}

// NewWatch reads the policy in a file, and returns a Watch that has every listener from now on. The error
// is that of Read.
func NewWatch(file string, t *tracer.Tracer, names *identity.Names, log *slog.Logger) (*Watch, error) {
	p, err := Read(file)
	if err != nil {
		return nil, err
	}
	w := &Watch{
		file: file, tracer: t, names: names, log: log, told: make(map[socket]verdict), tokens: logsAtOnce,
		sub: t.SubscribeTo(queueOf, func(ev *tracer.Event) bool { return ev.Listener() != 0 }),
	}
	w.use(p)
	return w, nil
}

// use has listeners compared with a policy from now on.
func (w *Watch) use(p *Policy) {
	w.policy, w.sure = p, make(map[socket]sure)
}

// Present is how many listeners there are now that no rule allows, by the rule that has their port, or None.
// Every rule has its number. It is nil until listeners were compared for the first time.
func (w *Watch) Present() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.present)
}

// Run compares until ctx ends. Something received from again has it read the file again; one that cannot
// be used changes nothing, and is logged.
func (w *Watch) Run(ctx context.Context, again <-chan os.Signal) {
	defer w.sub.Close()
	select {
	case <-w.tracer.Ready():
	case <-ctx.Done():
		return
	}
	changed := w.sub.Ready()
	for {
		began := time.Now()
		w.look(began)
		// Whatever it takes, others have most of the processor.
		rest := time.NewTimer(max(lookAfter, 9*time.Since(began)))
		next := time.NewTimer(lookEach)
		select {
		case <-rest.C:
			select {
			case <-changed:
				// Who it is is known once it has been there for a moment: a server that systemd starts is
				// called so only when it runs.
				select {
				case <-time.After(lookAfter):
				case <-ctx.Done():
				}
			case <-next.C:
			case <-again:
				w.again()
			case <-ctx.Done():
			}
		case <-again:
			w.again()
		case <-ctx.Done():
		}
		rest.Stop()
		next.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// again reads the file again.
func (w *Watch) again() {
	p, err := Read(w.file)
	if err != nil {
		var unread *fs.PathError
		if errors.As(err, &unread) {
			w.log.Error("the policy cannot be read again, the one before holds", "error", err)
		} else {
			w.log.Error("the policy is wrong, the one before holds", "error", err)
		}
		return
	}
	w.use(p)
	w.log.Warn("the policy was read again", "file", w.file, "rules", len(p.rules))
}

// look compares every listener there is, and those there were since the last time.
func (w *Watch) look(now time.Time) {
	reach, err := w.tracer.Reach()
	if err != nil {
		w.log.Error("compare listeners with the policy", "error", err)
		return
	}
	w.take()
	rend := render.New(w.names)
	there := w.listeners()
	broken := make(map[socket]brokenBy)
	for k, s := range there {
		if row, v := w.judge(s, rend, reach); !v.allowed {
			broken[k] = brokenBy{row, v}
		}
	}
	asked := w.ask(broken, rend, reach, now)
	present := map[string]int{None: 0}
	for _, name := range w.policy.Rules() {
		present[name] = 0
	}
	told := make(map[socket]verdict)
	for k, b := range broken {
		row, v := b.row, b.verdict
		if known, ok := w.sure[k]; ok {
			v = known.verdict
		}
		if v.allowed {
			continue
		}
		if rows, ok := asked[k.place()]; ok {
			row = rows
		}
		present[v.rule]++
		told[k] = v
		if w.told[k] != v {
			w.tell(now, row, v, reach.Exposed(there[k]), false)
		}
	}
	for i := range w.new {
		ev := &w.new[i]
		k := keyOf(ev)
		if _, ok := there[k]; ok {
			continue
		}
		s := socketOf(ev)
		if row, v := w.judge(&s, rend, reach); !v.allowed {
			w.tell(now, row, v, reach.Exposed(&s), true)
		}
	}
	w.new, w.told = nil, told
	maps.DeleteFunc(w.sure, func(k socket, _ sure) bool { return there[k] == nil })
	w.mu.Lock()
	w.present = present
	w.mu.Unlock()
}

// take takes the listeners that began.
func (w *Watch) take() {
	w.sub.Drain(func(ev *tracer.Event) {
		if ev.Listener() > 0 {
			w.new = append(w.new, *ev)
		}
	})
	if lost := w.sub.Lost(); lost > w.lost {
		w.log.Warn("listeners came faster than they could be compared with the policy; those that were gone soon are not told", "listeners", lost-w.lost)
		w.lost = lost
	}
}

// listeners are those of the table.
func (w *Watch) listeners() map[socket]*tracer.Socket {
	there := make(map[socket]*tracer.Socket)
	w.tracer.Table().Each(func(s *tracer.Socket) {
		if !s.Listens() {
			return
		}
		own := *s
		own.Holders = slices.Clone(s.Holders)
		if len(own.Holders) == 0 && own.Owner.PID != 0 { // no comparison has come by
			own.Holders, own.UID = []tracer.Holder{{Process: own.Owner}}, own.Owner.UID
		}
		there[keyOfSocket(s)] = &own
	})
	return there
}

func (w *Watch) judge(s *tracer.Socket, rend render.Renderer, reach *tracer.Reach) (*render.Socket, verdict) {
	row := rend.Socket(s)
	l := Of(&row, reach.Exposed(s))
	var v verdict
	v.allowed, v.rule, v.why = w.policy.Check(&l)
	return &row, v
}

// ask asks the kernel about the sockets of broken: the table does not have the unit that
// a listener was made by, nor who came to hold it since the last comparison. What it says is kept in sure,
// and returned by place.
func (w *Watch) ask(broken map[socket]brokenBy, rend render.Renderer, reach *tracer.Reach, now time.Time) map[socket]*render.Socket {
	unsure := make(map[socket][]socket)
	ports := make(map[uint16]bool)
	for k := range broken {
		if known, ok := w.sure[k]; ok && now.Sub(known.at) < sureFor {
			continue
		}
		unsure[k.place()] = append(unsure[k.place()], k)
		ports[k.local.Port()] = true
	}
	if len(unsure) == 0 {
		return nil
	}
	ask := uint16(0) // all
	if len(ports) == 1 {
		for port := range ports {
			ask = port
		}
	}
	rows, err := w.tracer.Rows(ask)
	if err != nil {
		w.log.Error("compare listeners with the policy", "error", err)
		return nil
	}
	found := make(map[socket]*render.Socket)
	render.SocketsOfRows(rows, func(s *tracer.Socket) bool {
		k := keyOfSocket(s).place()
		if s.Listens() && unsure[k] != nil {
			row, v := w.judge(s, rend, reach)
			if found[k] == nil || !v.allowed { // of several with one address one is enough
				found[k] = row
				for _, of := range unsure[k] {
					w.sure[of] = sure{v, now}
				}
			}
		}
		return false
	})
	return found
}

func keyOf(ev *tracer.Event) socket {
	return socket{cookie: ev.NetNSCookie, netns: ev.NetNS, proto: ev.Proto, device: ev.Device, local: ev.Local, taken: ev.Taken()}
}

func keyOfSocket(s *tracer.Socket) socket {
	k := socket{cookie: s.NetNSCookie, netns: s.NetNS, proto: s.Proto, device: s.Device, local: s.Local, taken: s.Taken()}
	if k.taken == 0 {
		k.inode = s.Inode
	}
	return k
}

// socketOf is the listener that an event tells of.
func socketOf(ev *tracer.Event) tracer.Socket {
	s := tracer.Socket{
		Proto: ev.Proto, State: tracer.StateListen, Role: tracer.RoleListener, Local: ev.Local, NetNS: ev.NetNS, NetNSCookie: ev.NetNSCookie, Device: ev.Device,
		UID: ev.Process.UID, Owner: ev.Process,
	}
	if ev.Proto == tracer.UDP {
		s.State, s.Role, s.FixedPort = tracer.StateUnconn, tracer.RoleBound, true
	}
	if ev.Process.PID != 0 {
		s.Holders = []tracer.Holder{{Process: ev.Process}}
	}
	return s
}

// tell logs a violation.
func (w *Watch) tell(now time.Time, s *render.Socket, v verdict, exposed, gone bool) {
	w.tokens = min(logsAtOnce, w.tokens+logsPerSecond*now.Sub(w.filled).Seconds())
	w.filled = now
	if w.tokens < 1 {
		w.muted++
		return
	}
	w.tokens--
	if w.muted > 0 {
		w.log.Warn("more listeners were not allowed by the policy than are logged", "listeners", w.muted)
		w.muted = 0
	}
	l := Of(s, exposed)
	words := []any{
		"port", strconv.Itoa(int(s.LocalPort)) + "/" + s.Proto, "address", s.Host(), "exposure", l.Exposure(), "rule", v.rule, "reason", v.why,
	}
	if len(s.Holders) > 0 {
		words = append(words, "process", s.Holders[0].Comm, "pid", s.Holders[0].PID)
	}
	if where := cmp.Or(s.SocketUnit, s.Place.Label()); where != "" {
		words = append(words, "of", where)
	}
	if gone {
		words = append(words, "gone", true)
	}
	w.log.Warn("a listener is not allowed by the policy", words...)
}
