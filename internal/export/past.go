package export

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/tracer"
)

// cursorFile is where it is kept, in the directory of the history, how far the export has got.
const cursorFile = "exported"

// cursor is its content.
type cursor struct {
	BootID   string        `json:"boot_id"`
	Boottime time.Duration `json:"boottime_ns"` // everything up to then was sent
	Time     time.Time     `json:"time"`        // the same by the wall clock
}

// save keeps how far the export has got.
func (x *Exporter) save() {
	if x.past == nil {
		return
	}
	x.mu.Lock()
	m := x.acked
	x.mu.Unlock()
	x.past.Store.SetRead(m)
	text, err := json.Marshal(cursor{hex.EncodeToString(m.Boot[:]), m.At, m.Wall.UTC()})
	if err == nil {
		err = replace(filepath.Join(x.cfg.Dir, cursorFile), append(text, '\n'))
	}
	if err != nil {
		x.note("cursor", "it cannot be kept how far the export has got; after a restart events may be sent twice", "error", err)
	}
}

// replace writes a file that has either all of it, or what it had, also after a power cut.
func replace(path string, text []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// resume goes on where the last agent ended.
func (x *Exporter) resume() {
	text, err := os.ReadFile(filepath.Join(x.cfg.Dir, cursorFile))
	if errors.Is(err, fs.ErrNotExist) {
		return // nothing was exported before: what is older than that was not asked for
	}
	var c cursor
	var id []byte
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err == nil {
		id, err = hex.DecodeString(c.BootID)
	}
	if err == nil && len(id) != 16 {
		err = fmt.Errorf("boot_id %q", c.BootID)
	}
	if err != nil {
		x.cfg.Log.Warn("it is not known how far the export had got; what was not exported then is left out", "file", cursorFile, "error", err)
		return
	}
	m := store.Mark{Boot: [16]byte(id), At: c.Boottime, Wall: c.Time}
	x.gap, x.acked, x.liveFrom = &m, m, tracer.Boottime()
	x.waiting[LostNotRunning].since = c.Time
}

// historyLost is how many records the history has lost itself.
func (x *Exporter) historyLost() (n uint64) {
	for _, lost := range x.past.Store.Stats().Lost {
		n += lost
	}
	return n
}

// countHistory counts what was to be read from the history, and is not there. Hold mu.
func (x *Exporter) countHistory() {
	if x.past == nil {
		return
	}
	if unread := x.past.Store.Unread(); unread > x.unread {
		x.lose(LostHistory, unread-x.unread)
		x.unread = unread
	}
	if lost := x.historyLost(); lost > x.keptLost {
		if x.gap != nil {
			x.lose(LostHistory, lost-x.keptLost)
		}
		x.keptLost = lost
	}
}

// stores tells whether the history keeps enough of an event to send it later.
func (x *Exporter) stores(f *fact) bool {
	if !f.storable() {
		return false
	}
	which := x.past.Which()
	switch {
	case f.isOfPort() && f.ev.Type != tracer.EventConnect, which == store.AllConnections:
		return true
	case f.ev.Type == tracer.EventConnect:
		return f.ev.Errno != 0 && which == store.FailedConnections
	}
	return f.ev.Type == tracer.EventClose && f.ev.Errno != 0 && which == store.FailedConnections
}

// behind tells whether the history is to be read next: nothing that waits was before. next is the first that waits;
// nil: nothing does.
func (x *Exporter) behind(next *batch) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.gap != nil && (next == nil || x.gapFirst(next))
}

// catchUp sends what the history has since the gap began. What happens from now on is queued again.
func (x *Exporter) catchUp(ctx context.Context) {
	x.mu.Lock()
	if x.liveFrom == never {
		x.liveFrom = tracer.Boottime()
	}
	until := x.liveFrom
	x.mu.Unlock()
	if !x.pause(ctx, settleFor) { // what is on its way to the history
		return
	}
	x.mu.Lock()
	from := *x.gap
	x.gap, x.liveFrom, x.catching = nil, 0, true
	x.mu.Unlock()
	var note store.Note
	rows := x.past.After(from, &note)
	r := replay{x: x, ctx: ctx, from: from, until: until, seen: make(map[firstKey]bool)}
	for row, err := range rows {
		if err != nil {
			note.Errors = append(note.Errors, err)
			break
		}
		if !r.row(row) {
			break
		}
	}
	if !r.ended {
		r.open()
		r.ended = !r.flush()
	}
	if note.Any() {
		x.cfg.Log.Warn("part of the history could not be read to be exported", "what", note.String())
		x.mu.Lock()
		x.lose(LostHistory, uint64(max(note.Damaged, 1)))
		x.mu.Unlock()
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !r.ended { // else it goes on from there when the agent is started again
		x.catching = false
		x.acked = x.mark(until - slack)
	}
}

// replay sends what the history has of a time.
type replay struct {
	x     *Exporter
	ctx   context.Context
	from  store.Mark
	until time.Duration // CLOCK_BOOTTIME of this boot
	seen  map[firstKey]bool
	ended bool // ctx has
	at    store.Mark
	some  []fact
}

// firstKey tells the first event of a socket, which several rows have.
type firstKey struct {
	boot  [16]byte
	taken time.Duration
	netns uint32
	port  uint16
	proto tracer.Proto
}

// maxSeen is of how many sockets it is known that their first event was sent. Of others it may be sent twice.
const maxSeen = 1 << 14

// row sends what a row tells; false: ctx has ended.
func (r *replay) row(row *store.Passed) bool {
	r.some = r.facts(r.some[:0], row)
	for i := range r.some {
		if !r.add(&r.some[i], row.Boot) {
			return false
		}
	}
	if r.some = r.some[:0]; row.Boot != r.x.boot || row.At < r.until {
		r.at = store.Mark{Boot: row.Boot, At: row.At - slack, Wall: row.When}
	}
	return true
}

func (r *replay) add(f *fact, boot [16]byte) bool {
	if boot == r.from.Boot && f.boot <= r.from.At || boot == r.x.boot && f.boot >= r.until || !r.x.cfg.selected.wants(f) {
		return true
	}
	r.x.again.enc.boot = boot
	if err := r.x.again.add(f); err != nil {
		r.x.cfg.Log.Error("an event of the history cannot be exported", "error", err)
		return true
	}
	if r.x.again.full() {
		r.ended = !r.flush()
	}
	return !r.ended
}

// flush sends what was collected; false: ctx has ended.
func (r *replay) flush() bool {
	b := r.x.again.build()
	if b == nil {
		return true
	}
	if !r.x.deliver(r.ctx, b) {
		return false
	}
	r.x.mu.Lock()
	if r.at.At != 0 {
		r.x.acked = r.at
	}
	r.x.mu.Unlock()
	r.x.save()
	return true
}

// facts are the events that a row tells of.
func (r *replay) facts(out []fact, row *store.Passed) []fact {
	f := fact{
		ev: tracer.Event{
			Time: row.When, Proto: row.Proto, Local: row.Local, Remote: row.Remote, NetNS: row.NetNS, NetNSCookie: row.NetNSCookie, Device: row.Device,
			MPTCP: row.MPTCP, V6Only: row.V6Only,
		},
		boot: row.At, taken: row.Taken, role: row.Role, asked: row.Asked, space: row.Space, index: row.Device, stored: true,
	}
	if p := row.Owner; p != nil {
		f.ev.Process, f.where, f.exe = p.Process, p.Place, p.Exe
	}
	switch row.Kind {
	case store.Refused:
		f.ev.Type, f.ev.Errno, f.ev.Implicit = row.Event, row.Errno, row.Implicit
		return append(out, f)
	case store.Folded:
		f.ev.Type, f.folded = tracer.EventClose, row.Count
		if row.OfRefused {
			f.ev.Type, f.ev.Errno = row.Event, row.Errno
		}
		f.index = 0
		return append(out, f)
	}
	if first, ok := r.first(&f, row.Boot, row.When); ok {
		out = append(out, first)
	}
	switch {
	case row.Kind == store.Holding && row.Event == tracer.EventListen:
		f.ev.Type, f.role = tracer.EventListen, tracer.RoleListener
	case row.Kind == store.Held && !row.UntilUnknown:
		f.ev.Type, f.ev.Errno, f.ev.TimeWait, f.ev.About = tracer.EventClose, row.Errno, row.TimeWait, row.About
		if row.Taken != 0 {
			f.ev.Duration = row.Took
		}
	default:
		return out
	}
	return append(out, f)
}

// first is the event by which a socket took its port, where that is known, and was not sent yet.
func (r *replay) first(of *fact, boot [16]byte, when time.Time) (fact, bool) {
	f := *of
	f.boot, f.ev.Time = of.taken, when.Add(of.taken-of.boot)
	switch {
	case of.taken == 0:
		return f, false
	case of.asked:
		f.ev.Type, f.role, f.ev.Remote = tracer.EventBind, tracer.RoleBound, netip.AddrPort{}
	case of.ev.Proto == tracer.TCP && of.role == tracer.RoleClient:
		f.ev.Type = tracer.EventConnect
	case of.ev.Proto == tracer.TCP && of.role == tracer.RoleServer:
		f.ev.Type = tracer.EventAccept
	default:
		return f, false
	}
	if boot == r.from.Boot && f.boot <= r.from.At {
		return f, false
	}
	k := firstKey{boot, f.boot, f.ev.NetNS, f.ev.Local.Port(), f.ev.Proto}
	if r.seen[k] {
		return f, false
	}
	if len(r.seen) >= maxSeen {
		clear(r.seen)
	}
	r.seen[k] = true
	return f, true
}

// open sends the beginning of connections that are open still: the history tells of them when they end, or have
// lasted.
func (r *replay) open() {
	if !r.x.cfg.selected.connections() || r.x.past.Which() != store.AllConnections {
		return
	}
	var some []fact
	now, at := time.Now(), tracer.Boottime()
	r.x.past.Open(func(e *store.Entry) {
		if e.Taken == 0 || e.Taken >= r.until {
			return
		}
		f := fact{
			ev: tracer.Event{
				Proto: e.Proto, Local: e.Local, Remote: e.Remote, NetNS: e.NetNS, NetNSCookie: e.NetNSCookie, Device: e.Device, MPTCP: e.MPTCP,
				V6Only: e.V6Only, Process: e.Owner,
			},
			boot: at, taken: e.Taken, role: e.Role, asked: e.Asked, index: e.Device, stored: true,
		}
		if first, ok := r.first(&f, r.x.boot, now); ok {
			some = append(some, first)
		}
	})
	slices.SortFunc(some, func(a, b fact) int { return int(a.boot - b.boot) })
	for i := range some {
		f := &some[i]
		f.where = r.x.names.Cgroups.Of(&f.ev.Process)
		f.space = r.x.names.NetNS.Name(identity.NetNS{Inode: f.ev.NetNS, Cookie: f.ev.NetNSCookie}, f.ev.Time)
		if !r.add(f, r.x.boot) {
			return
		}
	}
}
