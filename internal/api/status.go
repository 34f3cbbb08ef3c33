package api

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
)

// Status is the answer of /v1/status.
type Status struct {
	doctor.Report
	Version     string       `json:"version"`
	Since       render.Stamp `json:"since"`        // when the agent was started
	Ready       bool         `json:"ready"`        // it knows every socket
	Events      uint64       `json:"events"`       // read from the kernel
	Lost        uint64       `json:"lost"`         // events that were not
	Clients     int          `json:"clients"`      // that read events now
	OpenSockets int          `json:"open_sockets"` // in the table
	Tenancies   int          `json:"tenancies"`    // in the history
}

func (a *Server) status(w http.ResponseWriter, r *http.Request) error {
	v, err := values(r)
	if err != nil {
		return err
	}
	if err := query.None(v); err != nil {
		return err
	}
	stats, err := a.cfg.Tracer.Stats()
	if err != nil {
		return err
	}
	report := *a.cfg.Report
	if err := a.cfg.Names.Cgroups.Kubelet.Err(); err != nil {
		report.PartialView = append(slices.Clip(report.PartialView), fmt.Sprintf("pods have no labels, or old ones: %v", err))
	}
	tenancies := a.cfg.Tracer.History().Len()
	if a.cfg.History != nil {
		tenancies = int(a.cfg.History.Store.Stats().Records)
	}
	return writeObject(w, Status{
		Report: report, Version: a.cfg.Version, Since: render.Stamp{Time: a.cfg.Since}, Ready: a.ready(),
		Events: stats.Decoded, Lost: stats.Lost() + stats.Bad, Clients: a.feed.len(),
		OpenSockets: a.cfg.Tracer.Table().Len(), Tenancies: tenancies,
	})
}
