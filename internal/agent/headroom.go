package agent

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/porthole-dev/porthole/internal/headroom"
	"github.com/porthole-dev/porthole/internal/netns"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// headroom answers as headroom does.
func (a *agent) headroom(w http.ResponseWriter, r *http.Request) error {
	v, err := values(r)
	if err != nil {
		return err
	}
	q, err := headroom.Parse(v)
	if err != nil {
		return badRequest(err)
	}
	ports, err := a.tracer.Ports(true)
	if err != nil {
		return fmt.Errorf("read ports: %w", err)
	}
	found, err := q.Answer(ports, a.names.NetNS)
	switch {
	case errors.Is(err, headroom.ErrNoDevice), errors.Is(err, netns.ErrNone), errors.Is(err, tracer.ErrNoNetNS), errors.Is(err, netns.ErrUnreachable):
		return badRequest(err)
	case errors.Is(err, netns.ErrNotPermitted):
		return &httpError{http.StatusForbidden, fmt.Errorf("%w: an agent has given up what that takes; give it from, the local address", err)}
	case err != nil:
		return err
	}
	w.Header().Set("Content-Type", lines)
	for _, row := range a.names.Headrooms(found) {
		if err := render.WriteJSON(w, row); err != nil {
			return sentError{err}
		}
	}
	return nil
}
