package source

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/store"
)

// Past is an answer about what was.
type Past struct {
	// Rows ranges over the rows, once.
	Rows iter.Seq2[*render.Tenancy, error]
	// Lacking is, once they have ended, what could not be read; "": all was.
	Lacking func() string
	close   func() error
}

// Close frees the answer.
func (p *Past) Close() error { return p.close() }

// ErrNoHistory tells that there is no agent to ask, and nothing on disk.
var ErrNoHistory = errors.New("there is no history: no agent answers, and none has left one on disk")

// Past reads what an agent has left on disk. The caller closes it.
func (l *Local) Past(_ context.Context, q *query.History) (*Past, error) {
	if err := store.Readable(l.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s", ErrNoHistory, l.Dir)
	} else if err != nil {
		return nil, err
	}
	names := identity.Load(nil)
	rend := render.New(names)
	var note store.Note
	rows := func(yield func(*render.Tenancy, error) bool) {
		left := q.Limit
		for r, err := range store.Read(l.Dir, q.Stored(), &note) {
			if err != nil {
				if errors.Is(err, store.ErrCursor) {
					err = &query.Wrong{Err: fmt.Errorf("cursor: %w", err), Param: true}
				}
				yield(nil, err)
				return
			}
			if left--; left < 0 {
				return
			}
			row := rend.Past(r)
			if !yield(&row, nil) {
				return
			}
		}
	}
	return &Past{rows, note.String, names.Cgroups.Close}, nil
}

// Past answers what had ports, the latest first. The caller closes it.
func (r *Remote) Past(ctx context.Context, q *query.History) (*Past, error) {
	a, err := r.client.get(ctx, "/v1/history", q.Values())
	if err != nil {
		return nil, err
	}
	rows := func(yield func(*render.Tenancy, error) bool) {
		for dec := json.NewDecoder(bufio.NewReaderSize(a, 1<<16)); ; {
			var row render.Tenancy
			if err := dec.Decode(&row); errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				yield(nil, badAnswer(err))
				return
			}
			row.Quote()
			if !yield(&row, nil) {
				return
			}
		}
	}
	lacking := func() string {
		text, err := url.QueryUnescape(a.trailer.Get(api.LackingTrailer))
		if err != nil {
			return ""
		}
		return identity.Safe(text)
	}
	return &Past{rows, lacking, a.Close}, nil
}
