package api

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
)

// headroomBytes is what one way to get a port takes, with who has its ports.
const headroomBytes = 2 << 10

// headroom answers as headroom does.
func (a *Server) headroom(t *turn, r *http.Request) error {
	v, err := values(r)
	if err != nil {
		return err
	}
	q, err := query.ParseHeadroom(v)
	if err != nil {
		return err
	}
	if err := t.begin(answerBytes / 4); err != nil { // what it takes to find out is not known before
		return err
	}
	ports, err := a.cfg.Tracer.Ports(true)
	if err != nil {
		return fmt.Errorf("read ports: %w", err)
	}
	found, err := q.Answer(ports, a.cfg.Names)
	switch {
	case errors.Is(err, identity.ErrNotPermitted):
		return &httpError{http.StatusForbidden, fmt.Errorf("%w: an agent has given up what that takes; give it from, the local address", err)}
	case err != nil:
		return err
	}
	t.made(headroomBytes * len(found))
	t.Header().Set("Content-Type", lines)
	a.note(t.Header(), q)
	for i := range found {
		if err := render.WriteJSON(t, render.New(a.cfg.Names).Headrooms(found[i : i+1])[0]); err != nil {
			return sentError{err}
		}
	}
	return nil
}
