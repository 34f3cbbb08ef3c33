package source

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
)

// Remote asks an agent.
type Remote struct {
	client      *client
	partialView []string
}

// PartialView implements Source: it is what the agent does not see.
func (r *Remote) PartialView() []string { return r.partialView }

// PIDs implements Source.
func (r *Remote) PIDs() string {
	if r.client.far != nil {
		return ""
	}
	return doctor.PIDs()
}

// Elsewhere implements Source.
func (r *Remote) Elsewhere() string {
	if r.client.far != nil {
		return r.client.far.machine()
	}
	return ""
}

// Names implements Source.
func (r *Remote) Names(ctx context.Context) (*identity.Names, error) {
	if r.client.far != nil {
		return r.client.far.namesOf(ctx, r.client)
	}
	return identity.Load(nil), nil
}

// Partial implements Source.
func (r *Remote) Partial() bool { return false }

// badAnswer is an answer that is not understood.
func badAnswer(err error) error { return fmt.Errorf("read the agent's answer: %w", err) }

// decodeRows reads objects a line each.
func decodeRows[T any](from io.Reader) (rows []T, err error) {
	err = eachRow(from, func(row *T) { rows = append(rows, *row) })
	return rows, err
}

// eachRow reads objects a line each, and calls each with every one.
func eachRow[T any](from io.Reader, each func(*T)) error {
	for dec := json.NewDecoder(from); ; {
		var row T
		if err := dec.Decode(&row); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return badAnswer(err)
		}
		if words, ok := any(&row).(interface{ Quote() }); ok {
			words.Quote()
		}
		each(&row)
	}
}

// Unfinished implements Answer.
func (a *response) Unfinished() int { return a.unfinished }

// Note implements Answer.
func (a *response) Note() string { return a.note }

// Sockets implements Source.
func (r *Remote) Sockets(ctx context.Context, q *query.Sockets) (SocketsAnswer, error) {
	r.renew(ctx)
	a, err := r.client.get(ctx, "/v1/sockets", q.Values())
	if err != nil {
		return nil, err
	}
	return remoteSockets{a, r, ctx}, nil
}

type remoteSockets struct {
	*response
	from *Remote
	ctx  context.Context
}

// Undated implements SocketsAnswer.
func (a remoteSockets) Undated() int {
	n, err := strconv.Atoi(a.trailer.Get(api.UndatedTrailer))
	if err != nil {
		return 0 // not there
	}
	return n
}

// Rows implements SocketsAnswer.
func (a remoteSockets) Rows() ([]render.Socket, error) { return decodeRows[render.Socket](a.response) }

func (a remoteSockets) JSON(w io.Writer) error {
	_, err := io.Copy(w, a.response)
	return err
}

// Each implements SocketsAnswer.
func (a remoteSockets) Each(f func(*render.Socket)) error { return eachRow(a.response, f) }

func (a remoteSockets) Text(w io.Writer, style render.Style) error {
	rows, err := a.Rows()
	if err != nil {
		return err
	}
	names, err := a.from.Names(a.ctx)
	if err != nil {
		return err
	}
	defer names.Cgroups.Close()
	return render.New(names).RowsText(w, style, rows)
}

// Port implements Source.
func (r *Remote) Port(ctx context.Context, q query.Port) (PortAnswer, error) {
	a, err := r.client.get(ctx, fmt.Sprintf("/v1/ports/%d", q.Number), q.Values())
	if err != nil {
		return nil, err
	}
	return &remotePort{response: a, q: q, from: r, ctx: ctx}, nil
}

type remotePort struct {
	*response
	held
	q    query.Port
	from *Remote
	ctx  context.Context
}

func (a *remotePort) JSON(w io.Writer) error {
	a.w = w
	_, err := io.Copy(&a.held, a.response)
	return err
}

func (a *remotePort) Text(w io.Writer, style render.Style) error {
	var answer render.Port
	if err := json.NewDecoder(a.response).Decode(&answer); err != nil {
		return badAnswer(err)
	}
	answer.Quote()
	answer.Where, answer.OnHost = a.q.Where(), a.from.PIDs() != ""
	if a.from.client.far == nil {
		a.readNAT(&answer)
	}
	a.is = answer.Held()
	names, err := a.from.Names(a.ctx)
	if err != nil {
		return err
	}
	defer names.Cgroups.Close()
	return render.New(names).PortText(w, style, &answer)
}

// readNAT reads the rules of NAT where the agent, which keeps few privileges, could not, if this
// process may.
func (a *remotePort) readNAT(answer *render.Port) {
	if answer.NATUnread == "" {
		return
	}
	targets, err := identity.NAT(context.Background(), answer.NetNS, a.q.Number, a.q.Protos...)
	if err != nil {
		return // as the agent has said
	}
	answer.NATUnread = ""
	for i := range targets {
		answer.ForwardsTo = append(answer.ForwardsTo, render.NATForward(&targets[i]))
	}
}

// Headroom implements Source.
func (r *Remote) Headroom(ctx context.Context, q *query.Headroom) (*Headroom, error) {
	values, err := q.Values(r.client.far == nil)
	if err != nil {
		return nil, err
	}
	r.renew(ctx)
	a, err := r.client.get(ctx, "/v1/headroom", values)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	rows, err := decodeRows[render.Headroom](a)
	if err != nil {
		return nil, err
	}
	return &Headroom{rows, a.note}, nil
}

// status asks for the agent's status, and returns it also as it was sent.
func (r *Remote) status(ctx context.Context) (*remoteReport, error) {
	a, err := r.client.get(ctx, "/v1/status", nil)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	var text bytes.Buffer
	report := &remoteReport{elsewhere: r.Elsewhere()}
	if err := json.NewDecoder(io.TeeReader(a, &text)).Decode(&report.status); err != nil {
		return nil, badAnswer(err)
	}
	report.text = text.Bytes()
	return report, nil
}

// Report implements Source: it tells what the agent sees, and how it is.
func (r *Remote) Report(ctx context.Context) (MachineReport, error) {
	report, err := r.status(ctx)
	if err != nil {
		return nil, err // no Report that holds a nil
	}
	return report, nil
}

type remoteReport struct {
	status    api.Status
	text      []byte
	elsewhere string // as of a Source
}

func (r *remoteReport) JSON(w io.Writer) error {
	_, err := w.Write(r.text)
	return err
}

func (r *remoteReport) Text(w io.Writer, style render.Style) error {
	s := &r.status
	if r.elsewhere != "" {
		if _, err := fmt.Fprintf(w, "on %s:\n", r.elsewhere); err != nil {
			return err
		}
	}
	if err := s.Text(w, style); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nagent %s since %s: %d events, %d lost, %d clients\n", s.Version,
		s.Since.Local().Format("2006-01-02 15:04:05"), s.Events, s.Lost, s.Clients)
	return err
}

func (r *remoteReport) HooksText(w io.Writer, style render.Style) error {
	return r.status.HooksText(w, style)
}

// ErrEnded tells that the agent ended while its events were followed.
var ErrEnded = errors.New("the agent ended")

// Events implements Source.
func (r *Remote) Events(ctx context.Context, q *query.Events) (Events, error) {
	report, err := r.status(ctx)
	if err != nil {
		return nil, err
	}
	names, err := r.Names(ctx)
	if err != nil {
		return nil, err
	}
	a, err := r.client.get(ctx, "/v1/events", q.Values())
	if err != nil {
		return nil, errors.Join(err, names.Cgroups.Close())
	}
	return &remoteEvents{
		ctx: ctx, body: a, in: bufio.NewReaderSize(a, 1<<16), names: names, from: r,
		begun: Begun{Tier: report.status.Tier, Hooks: report.status.CountAttached(), PartialView: r.partialView, PIDs: r.PIDs(), Note: a.note},
	}, nil
}

// remoteEvents is an agent's stream of events.
type remoteEvents struct {
	ctx   context.Context
	body  io.Closer
	in    *bufio.Reader
	names *identity.Names
	from  *Remote
	begun Begun

	line    []byte // valid until the next is read
	long    []byte // memory for one that does not fit into that of in
	written bool   // something since the last Pause
	lost    api.Lost
	all     uint64 // lost so far
}

// Begun implements Events.
func (s *remoteEvents) Begun() Begun { return s.begun }

// Sockets implements Events: an agent cannot tell them without a gap or a double.
func (s *remoteEvents) Sockets() Answer { return nil }

// badEvent is a line of the stream that is not understood, or does not come.
func badEvent(err error) error { return fmt.Errorf("read the agent's events: %w", err) }

// Next implements Events. The error is ErrEnded where the agent ends before the context.
func (s *remoteEvents) Next() (Happened, error) {
	if s.written && s.in.Buffered() == 0 {
		s.written = false
		return Pause, nil
	}
	err := s.readLine()
	switch {
	case err != nil && s.ctx.Err() != nil:
		return Pause, io.EOF
	case errors.Is(err, io.EOF):
		return Pause, ErrEnded
	case err != nil:
		return Pause, badEvent(err)
	}
	if !bytes.HasPrefix(s.line, []byte(`{"lost":`)) {
		s.written = true
		return Event, nil
	}
	s.lost = api.Lost{}
	if err := json.Unmarshal(s.line, &s.lost); err != nil {
		return Loss, badEvent(err)
	}
	s.all += s.lost.Lost
	return Loss, nil
}

// readLine reads a line into memory that the next is read into, too: most lines stay where they were
// received.
func (s *remoteEvents) readLine() (err error) {
	s.line, err = s.in.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return err
	}
	s.long = append(s.long[:0], s.line...)
	rest, err := s.in.ReadBytes('\n')
	s.long = append(s.long, rest...)
	s.line = s.long
	return err
}

// Lost implements Events.
func (s *remoteEvents) Lost() api.Lost { return s.lost }

// Row implements Events.
func (s *remoteEvents) Row(row *render.Event) error {
	*row = render.Event{}
	if err := json.Unmarshal(s.line, row); err != nil {
		return badEvent(err)
	}
	row.Quote()
	return nil
}

// AppendJSON implements Events: as the agent has sent it.
func (s *remoteEvents) AppendJSON(b []byte) ([]byte, error) { return append(b, s.line...), nil }

// AppendText implements Events.
func (s *remoteEvents) AppendText(b []byte, style render.Style) ([]byte, error) {
	var row render.Event
	if err := s.Row(&row); err != nil {
		return b, err
	}
	s.nameNetNS(&row)
	return append(append(b, render.New(s.names).EventLine(style, &row)...), '\n'), nil
}

// nameNetNS has the name of a namespace asked for that an agent elsewhere has not told of: it may be new.
func (s *remoteEvents) nameNetNS(row *render.Event) {
	id := identity.NetNS{Inode: row.NetNS, Cookie: row.Cookie}
	if s.from.client.far == nil || s.names.NetNS.Known(id) {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, lookWithin)
	defer cancel()
	s.from.renew(ctx)
}

// End implements Events.
func (s *remoteEvents) End() (lost uint64, err error) { return s.all, nil }

// Close implements Events.
func (s *remoteEvents) Close() error { return errors.Join(s.names.Cgroups.Close(), s.body.Close()) }
