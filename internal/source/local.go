package source

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// Local asks the kernel of this machine. It knows what is, and what happens while it follows
// events; not what was.
type Local struct {
	Hooks  tracer.Config // to follow events with
	Dir    string        // of a history on disk; "": there is none
	Cannot error         // why it is known that events cannot be followed; nil: it is tried
}

// PartialView implements Source.
func (l *Local) PartialView() []string { return doctor.View() }

// PIDs implements Source.
func (l *Local) PIDs() string { return doctor.PIDs() }

// Elsewhere implements Source.
func (l *Local) Elsewhere() string { return "" }

// Names implements Source.
func (l *Local) Names(context.Context) (*identity.Names, error) { return identity.Load(nil), nil }

// Partial implements Source.
func (l *Local) Partial() bool { return false }

// livingNow lists the network namespaces there are.
func livingNow() ([]tracer.NetNS, error) {
	s, err := tracer.NewSnapshotter(tracer.ReadsPorts)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.NetNamespaces()
}

// readRows reads the kernel's sockets once; port 0 means all. also, if not nil, reads what
// else is needed.
func readRows(port uint16, also func(*tracer.Snapshotter, *tracer.Rows) error) (*tracer.Rows, error) {
	s, err := tracer.NewSnapshotter(tracer.ReadsSockets)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	rows, err := s.Rows(port)
	if err == nil && also != nil {
		err = also(s, rows)
	}
	return rows, err
}

// Sockets implements Source.
func (l *Local) Sockets(_ context.Context, q *query.Sockets) (SocketsAnswer, error) {
	a := &localSockets{names: identity.Load(livingNow), undated: q.Undated}
	err := q.Locate(a.names.NetNS)
	var rows *tracer.Rows
	if err == nil {
		rows, err = readRows(q.LocalPort(), func(s *tracer.Snapshotter, _ *tracer.Rows) (err error) {
			if q.Exposed() {
				q.Reach, err = s.Reach()
			}
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	a.names.Device = rows.Devices.Name
	q.NameDevices(a.names.Device)
	a.unfinished, a.note = rows.Unfinished, q.Note(a.names.Cgroups)
	a.sockets = render.SocketsOfRows(rows, func(s *tracer.Socket) bool { return q.Socket(a.names.Cgroups, s) })
	return a, nil
}

// localSockets are sockets of which the rows are made when they are written.
type localSockets struct {
	names      *identity.Names
	sockets    render.Sockets
	unfinished int
	note       string
	undated    func() int
}

func (a *localSockets) Unfinished() int { return a.unfinished }
func (a *localSockets) Note() string    { return a.note }
func (a *localSockets) Close() error    { return a.names.Cgroups.Close() }

// Undated implements SocketsAnswer.
func (a *localSockets) Undated() int { return a.undated() }

// Rows implements SocketsAnswer.
func (a *localSockets) Rows() ([]render.Socket, error) {
	return render.New(a.names).Sockets(a.sockets), nil
}

func (a *localSockets) JSON(w io.Writer) error {
	return render.New(a.names).SocketsJSON(w, a.sockets)
}

// Each implements SocketsAnswer.
func (a *localSockets) Each(f func(*render.Socket)) error {
	render.New(a.names).EachSocket(a.sockets, f)
	return nil
}

func (a *localSockets) Text(w io.Writer, style render.Style) error {
	return render.New(a.names).SocketsText(w, style, a.sockets)
}

// Port implements Source.
func (l *Local) Port(ctx context.Context, q query.Port) (PortAnswer, error) {
	names := identity.Load(livingNow)
	a := &localPort{q: q, names: names}
	if err := a.read(ctx); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// read asks the kernel.
func (a *localPort) read(ctx context.Context) error {
	own, err := identity.NetNSOfThread()
	if err != nil {
		return err
	}
	if err := a.q.Locate(a.names.NetNS); err != nil {
		return err
	}
	place := identity.NetNS{Inode: own}
	if wanted, ok := a.q.Place(); ok {
		place = wanted
	}
	nat := make(chan struct{})
	var targets []identity.NATTarget
	var natErr error
	go func() { // while programs are loaded
		defer close(nat)
		targets, natErr = identity.NAT(ctx, place.Inode, a.q.Number, a.q.Protos...)
	}()
	defer func() { <-nat }()
	s, err := tracer.NewSnapshotter(tracer.ReadsSockets)
	if err != nil {
		return err
	}
	a.snap = s
	if a.rows, err = s.Rows(a.q.Number); err != nil {
		return err
	}
	var ranges map[tracer.NetNS]*tracer.Range // of other namespaces, where one has the port
	elsewhere := place.Inode != own
	for i := 0; i < a.rows.Len() && !elsewhere; i++ {
		elsewhere = a.rows.NetNS(i).Inode != own
	}
	if elsewhere {
		if ranges, err = s.Ranges(); err != nil {
			return err
		}
	}
	if place.Inode == own {
		a.at.Pool, err = identity.ReadPool()
	} else {
		a.at.Pool, err = identity.PoolIn(ranges, place)
	}
	if err != nil {
		return err
	}
	<-nat
	a.at.NetNS, a.at.NAT, a.at.NATUnread = place, targets, natErr
	a.names.Device = a.rows.Devices.Name
	a.names.Range = func(ns tracer.NetNS) *tracer.Range { return render.OtherRange(ranges[ns], a.at.Pool) }
	a.names.Behind = identity.BehindRows(s.Rows)
	a.names.Processes = identity.NewProcesses(!a.q.NoArgs)
	return nil
}

type localPort struct {
	held
	q     query.Port
	names *identity.Names
	snap  *tracer.Snapshotter
	rows  *tracer.Rows
	at    render.PortPlace
}

func (a *localPort) Unfinished() int { return a.rows.Unfinished }
func (a *localPort) Note() string    { return a.q.Note(a.names.Cgroups) }

func (a *localPort) Close() error {
	err := a.names.Cgroups.Close()
	if a.snap != nil {
		err = errors.Join(err, a.snap.Close())
	}
	return err
}

func (a *localPort) JSON(w io.Writer) error {
	a.w = w
	all := render.SocketsOfRows(a.rows, func(*tracer.Socket) bool { return true })
	return render.New(a.names).PortJSON(a, a.q, &a.at, all, func(func(tracer.Tenancy) bool) {})
}

func (a *localPort) Text(w io.Writer, style render.Style) error {
	r := render.New(a.names)
	answer := r.PortInBrief(a.q, &a.at, a.rows)
	answer.Where, answer.OnHost = a.q.Where(), doctor.PIDs() != ""
	a.is = answer.Held()
	return r.PortText(w, style, answer)
}

// Headroom implements Source. The error wraps identity.ErrNotPermitted where the route to a
// destination may not be asked for.
func (l *Local) Headroom(_ context.Context, q *query.Headroom) (*Headroom, error) {
	s, err := tracer.NewSnapshotter(tracer.ReadsPorts)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	ports, err := s.Ports()
	if err != nil {
		return nil, err
	}
	names := identity.Load(func() ([]tracer.NetNS, error) { return ports.NetNamespaces(), nil })
	defer names.Cgroups.Close()
	found, err := q.Answer(ports, names)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(found, func(h tracer.Headroom) bool { return h.Device != 0 }) {
		devices, err := ports.Devices()
		if err != nil {
			return nil, err
		}
		names.Device = devices.Name
	}
	return &Headroom{render.New(names).Headrooms(found), q.Note(names.Cgroups)}, nil
}

// Report implements Source: it attaches every hook and detaches it again.
func (l *Local) Report(context.Context) (MachineReport, error) {
	r, err := doctor.Machine()
	if err != nil {
		return nil, err
	}
	cannot := l.Cannot
	if cannot == nil {
		cannot = l.try(r)
	}
	if cannot != nil {
		r.Error = cannot.Error()
	}
	return localReport{r}, cannot
}

func (l *Local) try(r *doctor.Report) error {
	t, err := tracer.Open(l.Hooks)
	if err != nil {
		return err
	}
	defer t.Close()
	r.Attached(t)
	return nil
}

type localReport struct{ *doctor.Report }

func (r localReport) JSON(w io.Writer) error { return json.NewEncoder(w).Encode(r.Report) }

const (
	// compareEvery is how often what is known is compared with the kernel's tables: closes
	// that the kernel does not tell are noticed then.
	compareEvery = 30 * time.Second
	// eventQueue is how many events may wait for who reads slowly: 16 MB.
	eventQueue = 1 << 16
	// lookEvery is how often it is looked whether events were lost, at most.
	lookEvery = time.Second
)

// Events implements Source. It returns once every hook is attached and all sockets are known,
// or ctx has ended.
func (l *Local) Events(ctx context.Context, q *query.Events) (Events, error) {
	cfg := l.Hooks
	cfg.Reconcile, cfg.Established = compareEvery, q.Verbose
	t, err := tracer.Open(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &localEvents{t: t, q: q, names: identity.Load(t.NetNamespaces), cancel: cancel, ended: make(chan error, 1)}
	s.names.Follow(t)
	q.NameDevices(s.names.Device)
	if err := q.Locate(s.names.NetNS); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.naming.Go(func() { s.names.Cgroups.Run(ctx) })
	s.sub = t.Subscribe(eventQueue)
	ready := make(chan *tracer.Snapshot, 1)
	go func() { s.ended <- t.Run(ctx, func(snap *tracer.Snapshot) { ready <- snap }) }()
	select {
	case snap := <-ready:
		s.first = snap.Sockets
		return s, nil
	case err := <-s.ended:
		return nil, errors.Join(cmp.Or(err, ctx.Err()), s.Close())
	}
}

// localEvents are the events of a tracer of its own.
type localEvents struct {
	t      *tracer.Tracer
	sub    *tracer.Subscription
	q      *query.Events
	names  *identity.Names
	first  []tracer.Socket // those there were
	cancel context.CancelFunc
	naming sync.WaitGroup
	ended  chan error

	events []tracer.Event
	next   int // of events
	paused bool
	row    render.Event
	json   render.Encoder

	looked time.Time // when it was last looked what was lost
	kernel uint64    // told of: lost in the kernel
	late   uint64    // told of: lost because the queue was full
	lost   api.Lost  // of the last Loss
}

// Begun implements Events.
func (s *localEvents) Begun() Begun {
	b := Begun{Tier: s.t.Tier(), PartialView: doctor.ViewOf(s.t), PIDs: doctor.PIDs(), Note: s.q.Note(s.names.Cgroups)}
	for _, h := range s.t.Hooks() {
		if h.Attached {
			b.Hooks++
		}
	}
	return b
}

// Sockets implements Events.
func (s *localEvents) Sockets() Answer {
	return &firstSockets{localSockets{names: s.names, sockets: render.SocketsOf(s.first, func(so *tracer.Socket) bool {
		return s.q.Socket(s.names.Cgroups, so)
	})}}
}

// firstSockets have names that are closed with the events.
type firstSockets struct{ localSockets }

func (*firstSockets) Close() error { return nil }

// Next implements Events. Losses are told at most every second.
func (s *localEvents) Next() (Happened, error) {
	for s.next < len(s.events) {
		ev := &s.events[s.next]
		s.next++
		if s.q.Event(s.names.Cgroups, ev) {
			return Event, nil
		}
	}
	if !s.paused {
		s.paused = true
		return Pause, nil
	}
	if lost, err := s.lostSince(); lost || err != nil {
		return Loss, err
	}
	events, err := s.sub.Next(context.Background(), s.events)
	if err != nil {
		return Pause, err
	}
	s.events, s.next, s.paused = events, 0, false
	return s.Next()
}

// lostSince tells whether any were lost since that was last told.
func (s *localEvents) lostSince() (bool, error) {
	if time.Since(s.looked) < lookEvery {
		return false, nil
	}
	stats, err := s.t.Stats()
	if err != nil {
		return false, err
	}
	if lost := stats.Lost() + stats.Bad; lost > s.kernel {
		s.lost, s.kernel = api.Lost{Lost: lost - s.kernel, By: api.ByKernel}, lost
		return true, nil
	}
	s.looked = time.Now() // now that both have been told
	if late := s.sub.Lost(); late > s.late {
		s.lost, s.late = api.Lost{Lost: late - s.late, By: api.ByClient}, late
		return true, nil
	}
	return false, nil
}

// Lost implements Events.
func (s *localEvents) Lost() api.Lost { return s.lost }

// Row implements Events. It is not made before it is asked for: what only counts events needs none.
func (s *localEvents) Row(row *render.Event) error {
	*row = render.New(s.names).Event(&s.events[s.next-1])
	return nil
}

// AppendJSON implements Events.
func (s *localEvents) AppendJSON(b []byte) ([]byte, error) {
	if err := s.Row(&s.row); err != nil {
		return b, err
	}
	return append(s.json.AppendEvent(b, &s.row), '\n'), nil
}

// AppendText implements Events.
func (s *localEvents) AppendText(b []byte, style render.Style) ([]byte, error) {
	if err := s.Row(&s.row); err != nil {
		return b, err
	}
	return append(append(b, render.New(s.names).EventLine(style, &s.row)...), '\n'), nil
}

// End implements Events.
func (s *localEvents) End() (lost uint64, err error) {
	s.cancel()
	err = <-s.ended
	stats, statsErr := s.t.Stats()
	return stats.Lost() + stats.Bad + s.sub.Lost(), errors.Join(err, statsErr)
}

// Close implements Events.
func (s *localEvents) Close() error {
	s.cancel()
	s.naming.Wait()
	return errors.Join(s.names.Cgroups.Close(), s.t.Close())
}
