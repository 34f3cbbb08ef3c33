// Package source is where answers come from: this machine's kernel, or an agent that has been
// watching it. What asks needs not know which.
package source

import (
	"bytes"
	"context"
	"io"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// Source answers questions about the sockets of a machine. An error that is a *query.Wrong is
// of who asks. Methods wait for the kernel, or for the agent.
type Source interface {
	// PartialView is what of the machine is not seen, one sentence each.
	PartialView() []string
	// PIDs says whose process numbers are in answers, "" where they are those that this process
	// has for them, or those of the machine elsewhere.
	PIDs() string
	// Elsewhere is the machine that answers are about, in words, where that is not this one; "": it is. Nothing of this
	// machine is to be taken for that one's: no process, no name, no setting.
	Elsewhere() string
	// Names are what things are called on the machine that answers are about, from then on or, of one elsewhere, as
	// of the last answer. The caller closes their Cgroups.
	Names(ctx context.Context) (*identity.Names, error)
	// Partial tells whether answers have only what an ordinary user may know.
	Partial() bool
	// Sockets answers with the sockets there are.
	Sockets(ctx context.Context, q *query.Sockets) (SocketsAnswer, error)
	// Port answers who has a port and, where that is known, had it before.
	Port(ctx context.Context, q query.Port) (PortAnswer, error)
	// Headroom answers how many more ports there are.
	Headroom(ctx context.Context, q *query.Headroom) (*Headroom, error)
	// Events follows what happens, until ctx ends.
	Events(ctx context.Context, q *query.Events) (Events, error)
	// Report tells what can be seen, and why not more. There is one beside an error that
	// tells why nothing can be followed.
	Report(ctx context.Context) (MachineReport, error)
}

// MachineReport is a Report on this machine; its text is without the hooks.
type MachineReport interface {
	Report
	HooksText(w io.Writer, style render.Style) error
}

// Report is what a machine lets porthole see. It is written once.
type Report interface {
	JSON(w io.Writer) error
	Text(w io.Writer, style render.Style) error
}

// Answer is written once, as objects of JSON or in words. The caller closes it.
type Answer interface {
	Report
	// Unfinished is how many slots of the kernel's tables did not hold still: sockets may be
	// missing.
	Unfinished() int
	// Note says what a filter asks for that is not there; "": nothing.
	Note() string
	Close() error
}

// Headroom is how many more ports there are.
type Headroom struct {
	Rows []render.Headroom // the fullest first
	Note string            // as that of an Answer
}

// SocketsAnswer is a list of sockets.
type SocketsAnswer interface {
	Answer
	// Rows returns them, instead of writing them.
	Rows() ([]render.Socket, error)
	// Each calls f with every row, which is valid until the next, instead of writing them.
	Each(f func(*render.Socket)) error
	// Undated is, once they were written, how many were left out because it is not known when
	// they took their port, as of query.Sockets.
	Undated() int
}

// PortAnswer is an answer about a port.
type PortAnswer interface {
	Answer
	// Held tells, once it was written, whether any socket has the port.
	Held() bool
}

// Events is a stream of events. It is used by one goroutine.
type Events interface {
	// Begun tells what is attached since the stream began, and what is not seen.
	Begun() Begun
	// Sockets are those there were when it began, without a gap or a double; nil: they are
	// not known.
	Sockets() Answer
	// Next waits for what happens next. The error is io.EOF once the context has ended.
	Next() (Happened, error)
	// Lost tells, after a Loss, how many events were lost and by whom.
	Lost() api.Lost
	// Row makes the row of the event.
	Row(row *render.Event) error
	// AppendJSON appends the event as a line of JSON.
	AppendJSON(b []byte) ([]byte, error)
	// AppendText appends the event as a line of text.
	AppendText(b []byte, style render.Style) ([]byte, error)
	// End ends the stream once its context has ended, and tells how many events were lost in
	// all.
	End() (lost uint64, err error)
	// Close frees it.
	Close() error
}

// Happened is what Next has waited for.
type Happened uint8

// What can happen.
const (
	Event Happened = iota // Row, AppendJSON and AppendText tell which
	Loss                  // of events
	Pause                 // there is nothing more yet: what was written can be handed on
)

// Begun is what a stream of events is made from.
type Begun struct {
	Tier        tracer.Tier
	Hooks       int // attached
	PartialView []string
	PIDs        string // as of a Source
	Note        string // as that of an Answer
}

// held hands an answer in JSON on, and sees whether anybody has the port.
type held struct {
	w    io.Writer
	head []byte // up to the first socket
	is   bool
}

// listBegins is what comes before the first socket. It is in no string, which has quotes
// escaped.
const listBegins = `"sockets":[`

// Write implements io.Writer.
func (h *held) Write(b []byte) (int, error) {
	if !h.is && len(h.head) < 8192 {
		h.head = append(h.head, b[:min(len(b), 4096)]...)
		if _, list, ok := bytes.Cut(h.head, []byte(listBegins)); ok && len(list) > 0 {
			h.is = list[0] != ']'
		}
	}
	return h.w.Write(b)
}

// Held implements PortAnswer.
func (h *held) Held() bool { return h.is }
