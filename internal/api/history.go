package api

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/store"
)

// historyBytes is the memory of an answer from a history on disk: of each kind a segment is read at once.
const historyBytes = 5 << 20

// LackingTrailer follows an answer from a history on disk of which something could not be read: what, escaped
// as in a URL's query.
const LackingTrailer = "Porthole-Lacking"

// history answers with what had ports, the latest first.
func (a *Server) history(t *turn, r *http.Request) error {
	v, err := values(r)
	if err != nil {
		return err
	}
	q, err := query.ParseHistory(v, time.Now())
	if err != nil {
		return err
	}
	memory := leastAnswer
	if a.cfg.History != nil {
		memory = historyBytes
	}
	if err := t.begin(memory); err != nil {
		return err
	}
	t.made(memory)
	t.Header().Set("Content-Type", lines)
	t.Header().Set("Trailer", LackingTrailer)
	var note store.Note
	out := bufio.NewWriterSize(t, 32<<10)
	rows := a.past(q, &note)
	left := q.Limit
	next, stop := iter.Pull2(rows)
	defer stop()
	row, err, more := next()
	if err != nil { // of who asks, where it is the first
		if errors.Is(err, store.ErrCursor) {
			return badRequest(fmt.Errorf("cursor: %w", err))
		}
		return err
	}
	for ; more && left > 0; row, err, more = next() {
		if err != nil {
			return sentError{err}
		}
		if err := render.WriteJSON(out, row); err != nil {
			return sentError{err}
		}
		left--
	}
	if err := out.Flush(); err != nil {
		return sentError{err}
	}
	if note.Any() {
		t.Header().Set(LackingTrailer, url.QueryEscape(note.String()))
	}
	return nil
}

// past ranges over rows, from the disk or from memory.
func (a *Server) past(q *query.History, note *store.Note) iter.Seq2[*render.Tenancy, error] {
	rend := render.New(a.cfg.Names)
	return func(yield func(*render.Tenancy, error) bool) {
		if a.cfg.History != nil {
			for r, err := range a.cfg.History.Rows(q.Stored(), note) {
				if err != nil {
					yield(nil, err)
					return
				}
				row := rend.Past(r)
				if !yield(&row, nil) {
					return
				}
			}
			return
		}
		for t := range a.cfg.Tracer.History().Latest(0) {
			if !q.Tenancy(a.cfg.Names, &t) {
				continue
			}
			row := rend.Tenancy(&t)
			if !yield(&row, nil) {
				return
			}
		}
	}
}

// mostPast is how many rows of the history an answer about a port has at most, from disk.
const mostPast = 1 << 16

// writePort writes the answer about a port.
func (a *Server) writePort(rend render.Renderer, out io.Writer, q query.Port, at *render.PortPlace, now render.Sockets) error {
	if a.cfg.History == nil {
		return rend.PortJSON(out, q, at, now, a.cfg.Tracer.History().Latest(q.Number))
	}
	rows, cut, err := a.portPast(rend, &q)
	if err != nil {
		return err
	}
	return rend.PortPastJSON(out, q, at, now, rows, cut)
}

// portPast is who had a port before, the latest first: of listeners and of connections half of the limit
// each, for a server has many connections, and who listened is what is asked for.
func (a *Server) portPast(rend render.Renderer, q *query.Port) (rows []render.Tenancy, cut bool, err error) {
	var note store.Note
	limit := min(q.Limit, mostPast)
	read := func(listeners bool, most int) error {
		sq := &store.Query{Local: []uint16{q.Number}, Kinds: []store.Kind{store.Held}, PortsOnly: listeners}
		sq.Match = func(r *store.Row) bool {
			return (listeners && r.Listener || !listeners && (r.Spilled || !r.Listener)) && q.HadRow(r)
		}
		for r, err := range a.cfg.History.Rows(sq, &note) {
			if err != nil {
				return err
			}
			if len(rows) >= most {
				cut = true
				return nil
			}
			row := rend.Past(r)
			row.Cursor = ""
			if q.NoArgs {
				row.HideArgs()
			}
			rows = append(rows, row)
		}
		return nil
	}
	if err := read(true, (limit+1)/2); err != nil {
		return nil, false, err
	}
	if err := read(false, limit); err != nil {
		return nil, false, err
	}
	slices.SortStableFunc(rows, func(a, b render.Tenancy) int { return b.Until.Compare(a.Until.Time) })
	if note.Any() {
		a.cfg.Log.Warn("part of the history could not be read", "what", note.String())
	}
	return rows, cut, nil
}
