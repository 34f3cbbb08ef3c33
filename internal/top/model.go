package top

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// viewID is one of the views.
type viewID int

// The views, in the order of their keys.
const (
	portsView viewID = iota
	connsView
	eventsView
	historyView
	viewCount
)

var viewNames = [viewCount]string{"ports", "connections", "events", "history"}

// kind is the kind of filters that a view has.
func (v viewID) kind() query.Kind {
	switch v {
	case connsView:
		return query.OfHeadroom
	case eventsView:
		return query.OfEvents
	case historyView:
		return query.OfHistory
	}
	return query.OfSockets
}

// state is what is known of a view's rows.
type state struct {
	gen     int // of the question: answers to an earlier one are not shown
	asking  bool
	at      time.Time     // of the answer; zero: there is none
	had     time.Duration // since boot, when it was asked
	took    time.Duration
	note    string // one sentence of the answer
	err     error
	paused  func() // what is shown once the pause ends; nil: nothing
	overdue bool   // it is asked again once it is looked at
}

// model is the screen. All of it is changed by Update alone.
type model struct {
	ctx context.Context
	cfg Config
	look

	width, height int
	view          viewID
	filter        filter
	all           bool // the table of ports has every socket
	paused, mouse bool
	message       string // until the next key
	bad           bool   // of the message
	over          overlay

	states  [viewCount]state
	ports   *table[portRow, portKey]
	conns   *table[connRow, connKey]
	events  *table[eventRow, uint64]
	history *table[tenancyRow, tenancyKey]

	stream    *follower // of events; nil: not yet
	streaming int       // which
	kept      []eventRow
	seen      uint64 // events
	unshown   uint64 // of them, more than can be shown
	lost      uint64
	rate      string
	rated     time.Time
	rateSeen  uint64
}

// overlay is what is over a table, and takes the keys. nil: nothing is.
type overlay interface {
	// key answers a key; the model's over is another, or none, afterwards.
	key(m *model, key tea.KeyPressMsg) tea.Cmd
	// lines are those of the body.
	lines(m *model, height int) []string
	// hint is the last line.
	hint(m *model) string
}

func newModel(ctx context.Context, cfg Config) (*model, error) {
	m := &model{ctx: ctx, cfg: cfg, look: look{cfg.Color, cfg.ASCII}, width: 80, height: 24}
	m.ports = newPorts(func() time.Time { return m.states[portsView].at })
	m.conns = newConns(m.look)
	m.events = newEvents()
	m.history = newHistory(func() time.Time { return m.states[historyView].at })
	f, err := parseFilter(cfg.Filter)
	if err != nil {
		return nil, err
	}
	m.setFilter(f)
	return m, nil
}

// close ends what was begun, once nothing is shown any more.
func (m *model) close() {
	if m.stream != nil {
		m.stream.cancel()
		<-m.stream.ended
	}
}

// list is the table of a view.
func (m *model) list() list {
	switch m.view {
	case connsView:
		return m.conns
	case eventsView:
		return m.events
	case historyView:
		return m.history
	}
	return m.ports
}

// Init implements tea.Model.
func (m *model) Init() tea.Cmd { return tea.Batch(m.ask(m.view), m.nextNote()) }

type (
	// answer is what a view shows from now on.
	answer struct {
		view viewID
		gen  int
		at   time.Time
		had  time.Duration
		took time.Duration
		note string
		err  error
		set  func()
	}
	// due is when a view is to be read again.
	due struct {
		view viewID
		gen  int
	}
	noteMsg   string
	streamMsg struct {
		number int
		stream *follower
		note   string
		err    error
	}
	batchMsg struct {
		number int
		at     time.Time
		batch
	}
	restartMsg int // the stream of that number
	doneMsg    struct {
		text string
		err  error
	}
)

// Update implements tea.Model.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) { return m, m.update(msg) }

func (m *model) update(msg tea.Msg) tea.Cmd {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.events.columns = eventColumns(m.width >= wide)
	case tea.KeyPressMsg:
		return m.key(msg)
	case tea.PasteMsg:
		if p, ok := m.over.(*prompt); ok {
			p.insert(m, msg.Content)
		}
	case tea.MouseMsg:
		return m.clicked(msg)
	case answer:
		return m.answered(msg)
	case due:
		if s := &m.states[msg.view]; s.gen == msg.gen {
			if msg.view == m.view {
				return m.ask(msg.view)
			}
			s.overdue = true
		}
	case streamMsg:
		return m.begun(msg)
	case batchMsg:
		return m.happened(msg)
	case restartMsg:
		if int(msg) == m.streaming {
			return m.startStream()
		}
	case whoMsg:
		m.showWho(msg)
	case victimMsg:
		m.askToEnd(msg)
	case noteMsg:
		m.say(string(msg))
		return m.nextNote()
	case doneMsg:
		if m.say(msg.text); msg.err != nil {
			m.fail(msg.err)
		}
		return m.askNow()
	}
	return nil
}

// say shows a sentence until the next key.
func (m *model) say(text string) { m.message, m.bad = identity.Safe(text), false }

func (m *model) fail(err error) { m.message, m.bad = oneLine(err), true }

// oneLine is the text of an error as a terminal may have it.
func oneLine(err error) string {
	return identity.Safe(strings.Join(strings.Fields(err.Error()), " "))
}

// nextNote waits for a sentence.
func (m *model) nextNote() tea.Cmd {
	if m.cfg.Notes == nil {
		return nil
	}
	return func() tea.Msg {
		select {
		case <-m.ctx.Done():
			return nil
		case note := <-m.cfg.Notes:
			return noteMsg(note)
		}
	}
}

// show shows a view.
func (m *model) show(v viewID) tea.Cmd {
	m.view = v
	switch s := &m.states[v]; {
	case v == eventsView && m.stream == nil && !s.asking:
		return m.startStream()
	case v != eventsView && (s.at.IsZero() || s.overdue) && !s.asking:
		return m.ask(v)
	}
	return nil
}

// setFilter shows what a filter lets pass.
func (m *model) setFilter(f filter) {
	m.filter = f
	m.search(f.words)
}

func (m *model) search(words []string) {
	for _, l := range []list{m.ports, m.conns, m.events, m.history} {
		l.setSearch(words)
	}
}

// askNow asks for the view again, with the question as it is now.
func (m *model) askNow() tea.Cmd {
	for v := range m.states {
		if viewID(v) == eventsView {
			continue
		}
		m.states[v].gen++
		m.states[v].asking = false
		m.states[v].overdue = true
	}
	if m.view == eventsView {
		return nil
	}
	return m.ask(m.view)
}

// ask asks the source for the rows of a view.
func (m *model) ask(v viewID) tea.Cmd {
	if v == eventsView {
		return m.startStream()
	}
	s := &m.states[v]
	s.asking, s.overdue = true, false
	gen, f, all := s.gen, m.filter, m.all || m.filter.asksForAll()
	return func() tea.Msg {
		a := answer{view: v, gen: gen, had: sinceBoot()}
		begin := time.Now()
		switch v {
		case connsView:
			m.readConns(&a, &f)
		case historyView:
			m.readHistory(&a, &f, all)
			a.err = errNoHistory(a.err)
		default:
			m.readPorts(&a, &f, all)
		}
		a.at = time.Now()
		a.took = a.at.Sub(begin)
		return a
	}
}

// readPorts reads the table of ports. It is not part of Update, as all that reads is not.
func (m *model) readPorts(a *answer, f *filter, all bool) {
	q, err := query.ParseSockets(f.of(query.OfSockets))
	if err != nil {
		a.err = err
		return
	}
	got, err := m.cfg.Source.Sockets(m.ctx, q)
	if err != nil {
		a.err = err
		return
	}
	defer got.Close()
	fold := newFolder(m.cfg.renderer(), all)
	if a.err = got.Each(fold.add); a.err != nil {
		return
	}
	switch a.note = got.Note(); {
	case a.note != "":
	case got.Undated() > 0:
		a.note = fmt.Sprintf("%d more sockets match, but it is not known when they took their port", got.Undated())
	case got.Unfinished() > 0:
		a.note = fmt.Sprintf("%d hash buckets kept changing while they were read; some sockets may be missing", got.Unfinished())
	}
	rows := fold.fold()
	a.set = func() { m.ports.set(rows) }
}

func (m *model) readConns(a *answer, f *filter) {
	q, err := query.ParseHeadroom(f.of(query.OfHeadroom))
	if err != nil {
		a.err = err
		return
	}
	got, err := m.cfg.Source.Headroom(m.ctx, q)
	if err != nil {
		a.err = err
		return
	}
	rows := connRows(m.cfg.renderer(), got.Rows)
	a.note = got.Note
	a.set = func() { m.conns.set(rows) }
}

// maxShare is how much of the time is spent reading: one part of so many.
const maxShare = 10

// answered shows an answer, and asks again later.
func (m *model) answered(a answer) tea.Cmd {
	s := &m.states[a.view]
	if a.gen != s.gen {
		return nil
	}
	s.asking, s.err, s.took = false, a.err, a.took
	if a.err == nil {
		shown := func() {
			s.at, s.had, s.note = a.at, a.had, a.note
			a.set()
		}
		if s.paused = nil; m.paused && !s.at.IsZero() {
			s.paused = shown
		} else {
			shown()
		}
	}
	wait := max(m.cfg.Interval, (maxShare-1)*a.took)
	return tea.Tick(wait, func(time.Time) tea.Msg { return due{a.view, a.gen} })
}

// pause stops what is shown, or goes on.
func (m *model) pause() {
	m.paused = !m.paused
	if m.paused {
		return
	}
	for i := range m.states {
		if f := m.states[i].paused; f != nil {
			m.states[i].paused = nil
			f()
		}
	}
	m.events.set(m.kept)
}

// startStream begins to follow events; an earlier stream ends.
func (m *model) startStream() tea.Cmd {
	if m.stream != nil {
		m.stream.cancel()
		m.stream = nil
	}
	m.streaming++
	m.states[eventsView].asking = true
	number, f := m.streaming, m.filter
	return func() tea.Msg {
		q, err := query.ParseEvents(f.of(query.OfEvents))
		if err != nil {
			return streamMsg{number: number, err: err}
		}
		ctx, cancel := context.WithCancel(m.ctx)
		events, err := m.cfg.Source.Events(ctx, q)
		if err != nil {
			cancel()
			return streamMsg{number: number, err: err}
		}
		return streamMsg{number, newFollower(events, m.cfg.renderer(), cancel), events.Begun().Note, nil}
	}
}

// restartAfter is how long a stream that failed is let be.
const restartAfter = 2 * time.Second

func (m *model) begun(msg streamMsg) tea.Cmd {
	if msg.number != m.streaming {
		if msg.stream != nil {
			msg.stream.cancel()
		}
		return nil
	}
	s := &m.states[eventsView]
	s.asking, s.err, s.note = false, msg.err, msg.note
	if msg.err != nil {
		return m.restart()
	}
	m.stream = msg.stream
	return m.nextBatch()
}

func (m *model) restart() tea.Cmd {
	number := m.streaming
	return tea.Tick(restartAfter, func(time.Time) tea.Msg { return restartMsg(number) })
}

func (m *model) nextBatch() tea.Cmd {
	stream, number := m.stream, m.streaming
	return func() tea.Msg {
		b := stream.next(m.ctx)
		return batchMsg{number, time.Now(), b}
	}
}

// happened shows what happened since the last batch.
func (m *model) happened(msg batchMsg) tea.Cmd {
	if msg.number != m.streaming {
		return nil
	}
	s := &m.states[eventsView]
	s.at = msg.at
	m.kept = keep(m.kept, msg.rows)
	if m.rated.IsZero() {
		m.rated = msg.at
	}
	m.seen += msg.seen
	if since := msg.at.Sub(m.rated); since >= time.Second {
		m.rate = rate(m.seen-m.rateSeen, since)
		m.rated, m.rateSeen = msg.at, m.seen
	}
	m.unshown += msg.seen - uint64(len(msg.rows))
	m.lost += msg.lost
	if !m.paused {
		m.events.set(m.kept)
	}
	switch {
	case errors.Is(msg.err, io.EOF):
		return nil
	case msg.err != nil:
		s.err, m.stream = msg.err, nil
		return m.restart()
	}
	return m.nextBatch()
}

// forget begins the events anew, for another filter.
func (m *model) forget() {
	m.kept, m.seen, m.unshown, m.lost, m.rateSeen, m.rate, m.rated = nil, 0, 0, 0, 0, "", time.Time{}
	m.events.set(nil)
}

// filtered shows what another filter lets pass, if that is another question.
func (m *model) filtered(f filter) tea.Cmd {
	same := FilterText(f.values) == FilterText(m.filter.values)
	m.setFilter(f)
	if same {
		return nil
	}
	now := m.askNow()
	m.forget()
	if m.stream == nil && m.view != eventsView {
		return now
	}
	return tea.Batch(now, m.startStream())
}

// portOf is the port that a row is about, as who takes it.
func (m *model) portOf() (q query.Port, words []string, err error) {
	var number uint16
	var name string
	var ns identity.NetNS
	switch m.view {
	case portsView:
		r := m.ports.selected()
		if r == nil {
			return q, nil, errNoRow
		}
		number, name, ns = r.port, r.proto, r.netns
	case eventsView:
		r := m.events.selected()
		if r == nil {
			return q, nil, errNoRow
		}
		number, name, ns = r.LocalPort, r.Proto, identity.NetNS{Inode: r.NetNS, Cookie: r.Cookie}
	case historyView:
		r := m.history.selected()
		if r == nil {
			return q, nil, errNoRow
		}
		number, name, ns = r.LocalPort, r.Proto, identity.NetNS{Inode: r.NetNS, Cookie: r.Cookie}
	}
	if number == 0 {
		return q, nil, errors.New("this line is about no local port")
	}
	proto := tracer.TCP
	if strings.HasPrefix(name, tracer.UDP.String()) {
		proto = tracer.UDP
	}
	q = query.Port{Number: number, Protos: []tracer.Proto{proto}, Limit: render.MaxShown}
	words = []string{"porthole", "who", fmt.Sprintf("%d/%s", number, proto)}
	if !m.cfg.Names.NetNS.IsHost(ns) {
		words = append(words, "--netns", space(m.cfg.Names.NetNS.Name(ns, time.Now()), ns))
	}
	return q, words, nil
}

// errNoRow is a key that is about a line where there is none.
var errNoRow = errors.New("there is no line")
