package top

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
)

// tenancyRow is a time that a socket had a port, or a call that got none.
type tenancyRow struct {
	render.Tenancy
	until, lasted, what, where string
}

// historian is a source that keeps what was.
type historian interface {
	Past(ctx context.Context, q *query.History) (*source.Past, error)
}

// maxTenancies is how many are shown.
const maxTenancies = 2000

// readHistory reads what listened, what was bound and what failed; with all, connections too, of which
// there may be so many that nothing else is left to see.
func (m *model) readHistory(a *answer, f *filter, all bool) {
	h, ok := m.cfg.Source.(historian)
	if !ok {
		a.err = source.ErrNoHistory
		return
	}
	q, err := f.history(all, time.Now())
	if err != nil {
		a.err = err
		return
	}
	past, err := h.Past(m.ctx, q)
	if err != nil {
		a.err = err
		return
	}
	defer past.Close()
	var got []render.Tenancy
	for row, err := range past.Rows {
		if err != nil {
			a.err = err
			return
		}
		got = append(got, *row)
	}
	a.note = past.Lacking()
	rows := tenancyRows(m.cfg.renderer(), got, time.Now())
	a.set = func() { m.history.set(rows) }
}

// history is the question of a filter.
func (f *filter) history(all bool, now time.Time) (*query.History, error) {
	values := f.of(query.OfHistory)
	if port, ok := values["port"]; ok {
		delete(values, "port")
		values[query.EitherPort] = port
	}
	if since, ok := f.values["since"]; ok {
		values["since"] = since
	}
	values["listeners"], values["failures"] = []string{"true"}, []string{"true"}
	if all {
		values["connections"] = []string{"true"}
	}
	values["limit"] = []string{number(maxTenancies)}
	return query.ParseHistory(values, now)
}

func tenancyRows(n render.Renderer, all []render.Tenancy, now time.Time) []tenancyRow {
	rows := make([]tenancyRow, len(all))
	for i := range all {
		r := &rows[i]
		r.Tenancy = all[i]
		r.Comm = identity.Safe(r.Comm)
		r.until, r.lasted, r.what = r.Cells(now)
		r.where = n.Where(identity.NetNS{Inode: r.NetNS, Cookie: r.Cookie}, &r.Place)
	}
	return rows
}

func (r *tenancyRow) text() []string {
	return []string{r.Comm, r.what, r.where, r.Error, identity.Safe(r.Unit)}
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

// length is how long it lasted, 0 where that is not known.
func (r *tenancyRow) length(now time.Time) time.Duration {
	switch {
	case r.Open && !r.Since.IsZero():
		return now.Sub(r.Since.Time)
	case r.Open && !r.KnownSince.IsZero():
		return now.Sub(r.KnownSince.Time)
	}
	return time.Duration(r.DurationNS)
}

// tenancyKey is what a tenancyRow is told apart by.
type tenancyKey struct {
	proto, what string
	pid         uint32
	netns       identity.NetNS
	at          time.Time
}

func newHistory(now func() time.Time) *table[tenancyRow, tenancyKey] {
	// What is still open is the latest.
	byEnd := func(a, b *tenancyRow) int {
		open := map[bool]int{true: 1}
		return cmp.Or(cmp.Compare(open[a.Open], open[b.Open]), a.At().Compare(b.At()))
	}
	by := func(f func(*tenancyRow) string) func(a, b *tenancyRow) int {
		return func(a, b *tenancyRow) int { return cmp.Or(cmp.Compare(f(a), f(b)), byEnd(b, a)) }
	}
	return &table[tenancyRow, tenancyKey]{
		columns: []column[tenancyRow]{
			{title: "UNTIL", width: 15, down: true, cell: func(r *tenancyRow) string { return r.until }, compare: byEnd},
			{title: "FOR", width: 10, down: true, cell: func(r *tenancyRow) string { return r.lasted }, compare: func(a, b *tenancyRow) int {
				return cmp.Or(cmp.Compare(a.length(now()), b.length(now())), byEnd(a, b))
			}},
			{title: "PRO", width: 4, cell: func(r *tenancyRow) string { return r.Proto }, compare: by(func(r *tenancyRow) string { return r.Proto })},
			{title: "WHAT", weight: 7, cell: func(r *tenancyRow) string { return r.what }, compare: func(a, b *tenancyRow) int {
				return cmp.Or(cmp.Compare(a.LocalPort, b.LocalPort), cmp.Compare(a.what, b.what), byEnd(b, a))
			}},
			{title: "PID", width: 7, right: true, cell: func(r *tenancyRow) string { return dash(r.PID) }, compare: func(a, b *tenancyRow) int { return cmp.Or(cmp.Compare(a.PID, b.PID), byEnd(b, a)) }},
			{title: "COMM", weight: 3, cut: render.CutEnd, cell: func(r *tenancyRow) string { return orDash(r.Comm) }, compare: by(func(r *tenancyRow) string { return r.Comm })},
			{title: "WHERE", weight: 4, least: wide, cell: func(r *tenancyRow) string { return r.where }, compare: by(func(r *tenancyRow) string { return r.where })},
			{title: "ERROR", width: 14, least: wide, cell: func(r *tenancyRow) string { return r.Error }, compare: by(func(r *tenancyRow) string { return r.Error })},
		},
		key: func(r *tenancyRow) tenancyKey {
			return tenancyKey{r.Proto, r.what, r.PID, identity.NetNS{Inode: r.NetNS, Cookie: r.Cookie}, r.At()}
		},
		words: (*tenancyRow).text, numbers: (*tenancyRow).numbers, tint: (*tenancyRow).tint,
	}
}

// errNoHistory says what there is to do about a source without one.
func errNoHistory(err error) error {
	if errors.Is(err, source.ErrNoHistory) {
		return errors.New("there is no history: an agent keeps one, start it with porthole agent")
	}
	return err
}
