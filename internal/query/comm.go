package query

import (
	"fmt"
	"slices"
	"strings"

	"github.com/porthole-dev/porthole/internal/identity"
)

// maxComm is how much of a process's name the kernel keeps (TASK_COMM_LEN, less the zero byte).
const maxComm = 15

// commFilter lets pass the processes with one of some names. The zero value lets all pass.
type commFilter struct {
	names    []string // sorted
	patterns []string
}

// parseComm takes names: each may be a pattern, with *, ? and [...].
func parseComm(p *parser) commFilter {
	var f commFilter
	for _, s := range each(p, "comm", glob) {
		if strings.ContainsAny(s, `*?[\`) {
			f.patterns = append(f.patterns, s)
		} else {
			f.names = append(f.names, s)
		}
	}
	if len(f.patterns) > maxCompared {
		p.fail("comm", fmt.Errorf("%d patterns: want at most %d", len(f.patterns), maxCompared))
	}
	slices.Sort(f.names)
	return f
}

func (f *commFilter) any() bool { return len(f.names)+len(f.patterns) > 0 }

func (f *commFilter) pass(comm string) bool {
	return !f.any() || has(f.names, comm) || slices.ContainsFunc(f.patterns, func(pattern string) bool { return matches(pattern, comm) })
}

// note says which names no process can have.
func (f *commFilter) note() []string {
	var notes []string
	for _, name := range f.names {
		if len(name) > maxComm {
			notes = append(notes, fmt.Sprintf("no process is called %s: the kernel keeps %d bytes of a name, which are %s",
				identity.Safe(name), maxComm, identity.Safe(name[:maxComm])))
		}
	}
	return notes
}

// Note says what of the filter can match nothing, a sentence a line; "": nothing. Of units, containers
// and pods it says what runs instead, as Places.Note.
func (f *Filter) Note(cgroups *identity.Cgroups) string {
	notes := f.comm.note()
	if note := f.Places.Note(cgroups); note != "" {
		notes = append(notes, note)
	}
	return strings.Join(notes, "\n")
}
