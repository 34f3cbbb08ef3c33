package top

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
)

// tenancyRow is a time that a socket had a port, now over.
type tenancyRow struct {
	render.Tenancy
	local, remote, where string
}

// historian is a source that keeps what was.
type historian interface {
	History(ctx context.Context, q *query.History) ([]render.Tenancy, error)
}

// maxTenancies is how many are shown.
const maxTenancies = 2000

// errNoHistory is a source that keeps nothing.
var errNoHistory = errors.New("only an agent keeps what was: start one with porthole agent")

func (m *model) readHistory(a *answer, _ *filter) {
	h, ok := m.cfg.Source.(historian)
	if !ok {
		a.err = errNoHistory
		return
	}
	got, err := h.History(m.ctx, &query.History{Limit: maxTenancies})
	if err != nil {
		a.err = err
		return
	}
	rows := tenancyRows(m.cfg.renderer(), got)
	a.set = func() { m.history.set(rows) }
}

func tenancyRows(n render.Renderer, all []render.Tenancy) []tenancyRow {
	rows := make([]tenancyRow, len(all))
	for i := range all {
		t := &all[i]
		rows[i].Tenancy = *t
		rows[i].Comm = identity.Safe(t.Comm)
		rows[i].local, rows[i].remote = t.Ends()
		rows[i].where = n.Where(identity.NetNS{Inode: t.NetNS, Cookie: t.Cookie}, &t.Place)
	}
	return rows
}

func (r *tenancyRow) text() []string {
	return []string{r.Comm, r.local, r.remote, r.where, r.Error, identity.Safe(r.Unit)}
}

func (r *tenancyRow) numbers() []uint32 {
	return []uint32{r.PID, uint32(r.LocalPort), uint32(r.RemotePort)}
}

func (r *tenancyRow) tint() tint {
	if r.Error != "" {
		return alarm
	}
	return plain
}

func (r *tenancyRow) lasted() string {
	if r.Since.IsZero() {
		return "-"
	}
	return span(time.Duration(r.DurationNS))
}

// tenancyKey is what a tenancyRow is told apart by.
type tenancyKey struct {
	proto, local, remote string
	netns                identity.NetNS
	until                time.Time
}

func newHistory(now func() time.Time) *table[tenancyRow, tenancyKey] {
	byEnd := func(a, b *tenancyRow) int { return a.Until.Compare(b.Until.Time) }
	by := func(f func(*tenancyRow) string) func(a, b *tenancyRow) int {
		return func(a, b *tenancyRow) int { return cmp.Or(cmp.Compare(f(a), f(b)), byEnd(b, a)) }
	}
	return &table[tenancyRow, tenancyKey]{
		columns: []column[tenancyRow]{
			{title: "ENDED", width: 8, right: true, down: true, cell: func(r *tenancyRow) string { return age(now(), r.Until.Time) }, compare: byEnd},
			{title: "LASTED", width: 7, right: true, down: true, cell: (*tenancyRow).lasted, compare: func(a, b *tenancyRow) int { return cmp.Or(cmp.Compare(a.DurationNS, b.DurationNS), byEnd(a, b)) }},
			{title: "PRO", width: 4, cell: func(r *tenancyRow) string { return r.Proto }, compare: by(func(r *tenancyRow) string { return r.Proto })},
			{title: "LOCAL", weight: 5, cut: render.CutAddress, cell: func(r *tenancyRow) string { return r.local }, compare: func(a, b *tenancyRow) int { return cmp.Or(cmp.Compare(a.LocalPort, b.LocalPort), byEnd(b, a)) }},
			{title: "REMOTE", weight: 5, cut: render.CutAddress, cell: func(r *tenancyRow) string { return orDash(r.remote) }, compare: by(func(r *tenancyRow) string { return r.remote })},
			{title: "PID", width: 7, right: true, cell: func(r *tenancyRow) string { return dash(r.PID) }, compare: func(a, b *tenancyRow) int { return cmp.Or(cmp.Compare(a.PID, b.PID), byEnd(b, a)) }},
			{title: "COMM", weight: 3, cut: render.CutEnd, cell: func(r *tenancyRow) string { return orDash(r.Comm) }, compare: by(func(r *tenancyRow) string { return r.Comm })},
			{title: "WHERE", weight: 3, least: wide, cell: func(r *tenancyRow) string { return r.where }, compare: by(func(r *tenancyRow) string { return r.where })},
			{title: "ERROR", width: 12, least: wide, cell: func(r *tenancyRow) string { return r.Error }, compare: by(func(r *tenancyRow) string { return r.Error })},
		},
		key: func(r *tenancyRow) tenancyKey {
			return tenancyKey{r.Proto, r.local, r.remote, identity.NetNS{Inode: r.NetNS, Cookie: r.Cookie}, r.Until.Time}
		},
		words: (*tenancyRow).text, numbers: (*tenancyRow).numbers, tint: (*tenancyRow).tint,
	}
}
