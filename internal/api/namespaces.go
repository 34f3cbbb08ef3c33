package api

import (
	"fmt"
	"net/http"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
)

// NetNS is a network namespace, and what it is called now: a line of the answer of /v1/namespaces.
type NetNS struct {
	NetNS  uint32 `json:"netns"`
	Cookie uint64 `json:"netns_cookie,omitempty"`
	Name   string `json:"name,omitempty"`
}

// namespaceBytes is what a namespace takes until its line is written.
const namespaceBytes = 256

// namespaces answers which network namespaces there are, for who has no files to look their names up in.
func (a *Server) namespaces(t *turn, r *http.Request) error {
	v, err := values(r)
	if err == nil {
		err = query.None(v)
	}
	if err != nil {
		return err
	}
	if err := t.begin(leastAnswer); err != nil {
		return err
	}
	all, err := a.cfg.Tracer.NetNamespaces()
	if err != nil {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	t.made(namespaceBytes * len(all))
	t.Header().Set("Content-Type", lines)
	now := time.Now()
	for _, ns := range all {
		row := NetNS{ns.Inode, ns.Cookie, a.cfg.Names.NetNS.Name(identity.NetNS(ns), now)}
		if err := render.WriteJSON(t, row); err != nil {
			return sentError{err}
		}
	}
	return nil
}
