package top

import (
	"cmp"
	"fmt"
	"strconv"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// connRow is a destination: what of the ephemeral ports towards it is used, and by whom.
type connRow struct {
	render.Headroom
	connKey
	where   string
	holders []process
}

// connKey is what a connRow is told apart by.
type connKey struct {
	from, to, proto string
	netns           identity.NetNS
}

func (k connKey) compare(other connKey) int {
	return cmp.Or(cmp.Compare(k.to, other.to), cmp.Compare(k.from, other.from), cmp.Compare(k.proto, other.proto),
		cmp.Compare(k.netns.Cookie, other.netns.Cookie), cmp.Compare(k.netns.Inode, other.netns.Inode))
}

// implicit is the way UDP sockets get a port without bind().
var implicit = tracer.OpImplicitBind.String()

// connRows are the rows of what headroom answers: destinations, and of UDP what sent without bind().
func connRows(n render.Renderer, all []render.Headroom) []connRow {
	var rows []connRow
	for i := range all {
		h := &all[i]
		if h.Op == tracer.OpBind.String() || h.RemotePort == 0 && (h.Op != implicit || h.Used == 0) {
			continue
		}
		r := connRow{Headroom: *h}
		r.proto, r.netns = h.Proto, identity.NetNS{Inode: h.NetNS, Cookie: h.Cookie}
		if r.from, r.to = h.Ends(); h.RemotePort == 0 {
			r.to = "any (" + h.Proto + ")"
		}
		place := &render.Place{}
		for _, u := range h.Holders {
			if u.PID != 0 {
				if len(r.holders) == 0 {
					place = &u.Place
				}
				r.holders = append(r.holders, process{u.PID, identity.Safe(u.Comm), identity.Safe(u.Unit)})
			}
		}
		r.where = n.Where(r.netns, place)
		rows = append(rows, r)
	}
	return rows
}

func (r *connRow) comm() string {
	switch {
	case len(r.holders) == 0:
		return "-"
	case len(r.holders) == 1:
		return r.holders[0].comm
	}
	return r.holders[0].comm + " +" + strconv.Itoa(len(r.holders)-1)
}

func (r *connRow) pid() uint32 {
	if len(r.holders) == 0 {
		return 0
	}
	return r.holders[0].pid
}

func (r *connRow) text() []string {
	words := []string{r.from, r.to, r.where}
	for i := range r.holders {
		words = append(words, r.holders[i].comm, r.holders[i].unit)
	}
	return words
}

func (r *connRow) numbers() []uint32 {
	numbers := []uint32{uint32(r.RemotePort)}
	for i := range r.holders {
		numbers = append(numbers, r.holders[i].pid)
	}
	return numbers
}

func (r *connRow) tint() tint {
	switch {
	case r.Free == 0:
		return alarm
	case r.Utilization >= 0.5:
		return warn
	}
	return plain
}

func newConns(look look) *table[connRow, connKey] {
	by := func(f func(*connRow) string) func(a, b *connRow) int {
		return func(a, b *connRow) int { return cmp.Or(cmp.Compare(f(a), f(b)), a.compare(b.connKey)) }
	}
	count := func(f func(*connRow) int) func(a, b *connRow) int {
		return func(a, b *connRow) int { return cmp.Or(cmp.Compare(f(a), f(b)), -a.compare(b.connKey)) }
	}
	used, waits, free := func(r *connRow) int { return r.Used }, func(r *connRow) int { return r.TimeWait }, func(r *connRow) int { return r.Free }
	digits := func(f func(*connRow) int) func(*connRow) string {
		return func(r *connRow) string { return strconv.Itoa(f(r)) }
	}
	const bar = 8
	return &table[connRow, connKey]{
		columns: []column[connRow]{
			{title: "FULL", width: 5 + bar, down: true, cell: func(r *connRow) string {
				return fmt.Sprintf("%3d%% %s", int(100*r.Utilization), look.bar(r.Utilization, bar))
			}, compare: func(a, b *connRow) int {
				return cmp.Or(cmp.Compare(a.Utilization, b.Utilization), -a.compare(b.connKey))
			}},
			{title: "PROTO", width: 6, least: wide, cell: func(r *connRow) string { return r.proto }, compare: by(func(r *connRow) string { return r.proto })},
			{title: "FROM", weight: 5, least: wide, cell: func(r *connRow) string { return r.from }, compare: by(func(r *connRow) string { return r.from })},
			{title: "TO", weight: 6, cut: render.CutAddress, cell: func(r *connRow) string { return r.to }, compare: by(func(r *connRow) string { return r.to })},
			{title: "USED", width: 6, right: true, down: true, cell: digits(used), compare: count(used)},
			{title: "WAIT", width: 6, right: true, down: true, cell: digits(waits), compare: count(waits)},
			{title: "FREE", width: 6, right: true, cell: digits(free), compare: count(free)},
			{title: "PID", width: 7, right: true, cell: func(r *connRow) string { return dash(r.pid()) }, compare: count(func(r *connRow) int { return int(r.pid()) })},
			{title: "COMM", weight: 3, cut: render.CutEnd, cell: (*connRow).comm, compare: by((*connRow).comm)},
			{title: "WHERE", weight: 4, least: wide, cell: func(r *connRow) string { return r.where }, compare: by(func(r *connRow) string { return r.where })},
		},
		key: func(r *connRow) connKey { return r.connKey }, words: (*connRow).text, numbers: (*connRow).numbers, tint: (*connRow).tint,
	}
}
