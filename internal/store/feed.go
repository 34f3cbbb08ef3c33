package store

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// Which says which connections are kept.
type Which string

// Which connections are kept. Listeners, sockets bound by bind() and refused calls are in any case.
const (
	AllConnections    Which = "all"
	FailedConnections Which = "failures" // those that failed, as Failed has it
	NoConnections     Which = "none"
)

// Whiches returns every Which.
func Whiches() []Which { return []Which{AllConnections, FailedConnections, NoConnections} }

const (
	// queueOf is how many events wait for the store: 4 MB.
	queueOf = 1 << 14
	// takeEach is how often they are taken while they come: it need not be woken more often.
	takeEach = 100 * time.Millisecond
	// maxBinds is how many sockets wait to be told as bound. One that does something else within a
	// second never is.
	maxBinds = 4096
	// openEach is how often connections that are open are told: those that last no longer are told once,
	// when they end.
	openEach = time.Minute
	// looksPerSecond bounds how many processes are looked up, which takes some 50 µs each.
	looksPerSecond, looksAtOnce = 200, 1000
)

// Feed puts what a tracer sees into a Store, beside the reader of events, which never waits for it.
type Feed struct {
	Store  *Store
	tracer *tracer.Tracer
	which  Which
	sub    *tracer.Subscription

	mu    sync.Mutex // of whoever takes events
	lost  uint64     // told of
	binds map[bindKey]Entry
	ready bool          // the table has every socket
	cut   time.Duration // CLOCK_BOOTTIME: connections that are older were told as open
	told  time.Time     // when they were
}

// bindKey tells a bound socket from others.
type bindKey struct {
	cookie uint64
	inode  uint32
	proto  tracer.Proto
	port   uint16
	taken  time.Duration
}

// Describing returns what Config has about processes, places and namespaces, from their names.
func (cfg Config) Describing(names *identity.Names) Config {
	looks := bucket{tokens: looksAtOnce}
	cfg.Place = names.Cgroups.Of
	cfg.Space = func(inode uint32, cookie uint64) string {
		return names.NetNS.Name(identity.NetNS{Inode: inode, Cookie: cookie}, time.Now())
	}
	cfg.Describe = func(p *tracer.Process) (out Process) {
		if names.Processes == nil || !looks.take(uint64(tracer.Boottime()), looksPerSecond, looksAtOnce) {
			return out
		}
		if got, err := names.Processes.Look(*p); err == nil {
			out = Process{Exe: got.Exe, Args: got.Args, ArgsCut: got.ArgsCut}
		}
		return out
	}
	return cfg
}

// NewFeed returns a Feed that has every event from now on.
func NewFeed(s *Store, t *tracer.Tracer, which Which) *Feed {
	return &Feed{Store: s, tracer: t, which: which, sub: t.Subscribe(queueOf), binds: make(map[bindKey]Entry)}
}

// Run puts events into the store until ctx ends, and writes that. Then Close is called.
func (f *Feed) Run(ctx context.Context) {
	var writing sync.WaitGroup
	writing.Go(func() { f.Store.Run(ctx) })
	defer writing.Wait()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	known := f.tracer.Ready()
	for {
		select {
		case <-known:
			known = nil
			f.setReady()
		case <-f.sub.Ready():
			f.take()
			select { // a part of what comes next is taken with the rest
			case <-time.After(takeEach):
			case <-ctx.Done():
				return
			}
		case <-second.C:
			f.second()
		case <-ctx.Done():
			return
		}
	}
}

// setReady says that the table has every socket.
func (f *Feed) setReady() {
	f.mu.Lock()
	f.ready = true
	f.mu.Unlock()
	f.second()
}

// take puts into the store what has happened so far.
func (f *Feed) take() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.takeAll()
}

func (f *Feed) takeAll() {
	f.sub.Drain(f.event)
	if lost := f.sub.Lost(); lost > f.lost {
		f.Store.Lose(LostEvents, lost-f.lost)
		f.lost = lost
	}
}

// event keeps one event.
func (f *Feed) event(ev *tracer.Event) {
	e := Entry{
		Proto: ev.Proto, Role: ev.Role(), Local: ev.Local, Remote: ev.Remote, NetNS: ev.NetNS, NetNSCookie: ev.NetNSCookie, Device: ev.Device,
		Owner: ev.Process, Errno: ev.Errno, Event: ev.Type, Taken: ev.Taken(), At: ev.Boottime(), MPTCP: ev.MPTCP, V6Only: ev.V6Only, Asked: ev.Asked(),
		Implicit: ev.Implicit, TimeWait: ev.TimeWait, About: ev.About, HeldBy: ev.HeldBy, HeldByMore: ev.HeldByMore,
	}
	if !e.Local.Addr().IsValid() {
		return // nothing is known of it
	}
	switch {
	case ev.Type == tracer.EventEstablished:
	case ev.Type == tracer.EventClose:
		delete(f.binds, e.bindKey())
		if f.wants(&e) {
			f.Store.Add(Held, &e)
		}
	case ev.Errno != 0:
		if ev.Type != tracer.EventConnect || f.which != NoConnections {
			f.Store.Add(Refused, &e)
		}
	case ev.Type == tracer.EventListen:
		delete(f.binds, e.bindKey())
		f.Store.Add(Holding, &e)
	case ev.Type == tracer.EventBind && !ev.Implicit:
		if len(f.binds) < maxBinds {
			f.binds[e.bindKey()] = e
		} else {
			f.Store.Add(Holding, &e)
		}
	default:
		if len(f.binds) > 0 {
			delete(f.binds, e.bindKey())
		}
	}
}

func (e *Entry) bindKey() bindKey {
	return bindKey{e.NetNSCookie, e.NetNS, e.Proto, e.Local.Port(), e.Taken}
}

// wants tells whether the tenancy of a socket is kept.
func (f *Feed) wants(e *Entry) bool {
	return f.which == AllConnections || isListener(e.Role, e.Asked, e.Taken == 0) || f.which == FailedConnections && Failed(e.Errno)
}

// second tells what is open and was not told yet.
func (f *Feed) second() {
	f.Store.look()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.takeAll()
	now := tracer.Boottime()
	for k, e := range f.binds {
		if now-e.At >= time.Second {
			f.Store.Add(Holding, &e)
			delete(f.binds, k)
		}
	}
	if !f.ready {
		return
	}
	listeners := f.Store.Wanting()
	connections := f.which == AllConnections && time.Since(f.told) >= openEach
	if !listeners && !connections {
		return
	}
	f.open(func(e *Entry) {
		if isListener(e.Role, e.Asked, e.Taken == 0) {
			if listeners {
				f.Store.Add(Holding, e)
			}
		} else if connections && (e.Taken > f.cut || e.Taken == 0 && f.cut == 0) {
			f.Store.Add(Holding, e)
		}
	})
	if listeners {
		f.Store.Opened()
	}
	if connections {
		f.cut, f.told = now, time.Now()
	}
}

// open calls add with every socket of the table, as it is now.
func (f *Feed) open(add func(*Entry)) {
	now := tracer.Boottime()
	f.tracer.Table().Each(func(s *tracer.Socket) {
		e := Entry{
			Proto: s.Proto, Role: s.Role, Local: s.Local, Remote: s.Remote, NetNS: s.NetNS, NetNSCookie: s.NetNSCookie, Device: s.Device,
			Owner: s.Owner, Taken: s.Taken(), At: now, MPTCP: s.MPTCP, V6Only: s.V6Only, Asked: s.Asked(),
		}
		if e.Owner.PID == 0 && len(s.Holders) > 0 {
			e.Owner = s.Holders[0].Process
		}
		if s.Role == tracer.RoleListener || s.Role == tracer.RoleBound {
			e.Remote = netip.AddrPort{}
		}
		add(&e)
	})
}

// Rows is Store.Rows, of everything that has happened so far, and of what is open.
func (f *Feed) Rows(q *Query, note *Note) iter.Seq2[*Row, error] {
	f.take()
	var open func(func(*Entry))
	if len(q.Kinds) == 0 || slices.Contains(q.Kinds, Holding) {
		open = func(add func(*Entry)) {
			f.open(func(e *Entry) {
				if f.wants(e) {
					add(e)
				}
			})
		}
	}
	return f.Store.Rows(q, open, note)
}

// Close ends the store once the tracer has ended: what is still open is told, and what becomes of it is
// not known.
func (f *Feed) Close() error {
	f.take()
	n := 0
	err := f.Store.Close(func(add func(*Entry)) {
		if !f.ready {
			return
		}
		f.open(func(e *Entry) {
			if !f.wants(e) {
				return
			}
			if add(e); n%4096 == 4095 {
				_ = f.Store.Flush() // it fails again at the end
			}
			n++
		})
	})
	if err != nil {
		return fmt.Errorf("end the history: %w", err)
	}
	return nil
}
