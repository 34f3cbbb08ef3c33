package export

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/tracer"
)

// Selection is what Settings.Events may be besides filters, for people.
const Selection = "default, all, or filters of tail as event=connect&rport=5432"

// selection is which events are exported: those that one of its parts lets pass.
type selection struct {
	ports   bool // default
	filters []*query.Events
}

// parseSelection reads Settings.Events.
func parseSelection(words []string) (s selection, err error) {
	if len(words) == 0 {
		s.ports = true
	}
	for _, word := range words {
		switch {
		case word == "default":
			s.ports = true
			continue
		case word == "all":
			word = ""
		case !strings.Contains(word, "="):
			return s, fmt.Errorf("%q: want %s%s", word, Selection, query.Meant(word, []string{"default", "all"}))
		}
		params, err := url.ParseQuery(word)
		if err != nil {
			return s, fmt.Errorf("%q: want %s: %w", word, Selection, err)
		}
		values, err := query.Decode(params)
		if err != nil {
			return s, err
		}
		q, err := query.ParseEvents(values)
		if err != nil {
			return s, err
		}
		if q.Verbose {
			return s, errors.New("established: handshakes are not exported: want bind, listen, connect, accept or close")
		}
		s.filters = append(s.filters, q)
	}
	return s, nil
}

// locate looks for the network namespaces that filters name, on this machine.
func (s *selection) locate(names *identity.Names) error {
	for _, q := range s.filters {
		if err := q.Locate(names.NetNS); err != nil {
			return fmt.Errorf("--otlp.events: %w", err)
		}
		q.NameDevices(names.Device)
	}
	return nil
}

// wants tells whether an event is exported; in is where its process runs.
func (s *selection) wants(f *fact) bool {
	if f.ev.Type == tracer.EventEstablished {
		return false
	}
	if s.ports && f.isOfPort() {
		return true
	}
	for _, q := range s.filters {
		if q.EventAt(f.where, &f.ev) {
			return true
		}
	}
	return false
}

// connections tells whether events of connections may be wanted.
func (s *selection) connections() bool { return len(s.filters) > 0 }
