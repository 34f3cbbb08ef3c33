// Package api answers requests to an agent: what is asked through its socket, the stream of
// events, and metrics. What client and agent have to agree on is here too.
package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/tracer"
)

// The kinds of answers.
const (
	oneObject = "application/json"
	lines     = "application/x-ndjson" // one object a line
)

// UnfinishedHeader is tracer.Snapshot.Unfinished, where it is not 0.
const UnfinishedHeader = "Porthole-Unfinished"

// NoteHeader is what query.Filter.Note says of the filters, escaped as in a URL's query, where it says
// anything.
const NoteHeader = "Porthole-Note"

// UndatedTrailer follows an answer to since: how many sockets it left out because it is not known when
// they took their port.
const UndatedTrailer = "Porthole-Undated"

// note tells who asks what his filters can match nothing of.
func (a *Server) note(h http.Header, p interface {
	Note(*identity.Cgroups) string
}) {
	if note := p.Note(a.cfg.Names.Cgroups); note != "" {
		h.Set(NoteHeader, url.QueryEscape(note))
	}
}

// handler answers a request. An error before it has begun to is told to the client.
type handler func(http.ResponseWriter, *http.Request) error

// httpError is an error with its status code; any other has 500.
type httpError struct {
	code int
	err  error
}

func (e *httpError) Error() string { return e.err.Error() }
func (e *httpError) Unwrap() error { return e.err }

// badRequest is what the client did wrong.
func badRequest(err error) error { return &httpError{http.StatusBadRequest, err} }

// sentError came after the answer had begun: the client has gone, or sees it end
// early.
type sentError struct{ error }

// Config is what a Server answers from.
type Config struct {
	Tracer  *tracer.Tracer
	History *store.Feed // nil: none is kept on disk
	Names   *identity.Names
	Report  *doctor.Report
	Metrics prometheus.Gatherer
	Version string
	Since   time.Time // when the agent was started
	Log     *slog.Logger
}

// Server answers requests. Its handlers may be used at once.
type Server struct {
	cfg  Config
	feed *feed

	mu      sync.Mutex
	verbose int // how many streams want handshakes
}

// New returns a Server, which begins nothing before it is asked.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, feed: &feed{tracer: cfg.Tracer, names: cfg.Names}}
}

// ready tells whether the table has every socket.
func (a *Server) ready() bool {
	select {
	case <-a.cfg.Tracer.Ready():
		return true
	default:
		return false
	}
}

// WebHandler is what Prometheus has over TCP.
func (a *Server) WebHandler() http.Handler { return a.mux(nil) }

// APIHandler is what the unix socket has, and who shows a certificate. Answers of all that it serves share their
// bounds.
func (a *Server) APIHandler() http.Handler {
	lists := newAnswers(answerBytes)
	return a.mux(map[string]handler{
		"/v1/events":       a.events,
		"/v1/sockets":      lists.inTurn(a.sockets),
		"/v1/ports/{port}": lists.inTurn(a.port),
		"/v1/headroom":     lists.inTurn(a.headroom),
		"/v1/history":      lists.inTurn(a.history),
		"/v1/namespaces":   lists.inTurn(a.namespaces),
		"/v1/status":       a.status,
	})
}

func (a *Server) mux(routes map[string]handler) http.Handler {
	mux := http.NewServeMux()
	for path, h := range routes {
		mux.Handle(path, a.answer(h))
	}
	mux.Handle("/healthz", a.answer(healthz))
	mux.Handle("/readyz", a.answer(a.readyz))
	mux.Handle("/metrics", a.answer(a.scrapes()))
	mux.Handle("/", a.answer(func(_ http.ResponseWriter, r *http.Request) error {
		return &httpError{http.StatusNotFound, fmt.Errorf("nothing is at %s", r.URL.Path)}
	}))
	return mux
}

// answer makes every error a JSON object with a status code.
func (a *Server) answer(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := errors.New("want GET")
		code := http.StatusMethodNotAllowed
		hasBody := r.ContentLength != 0
		if hasBody { // which is neither read nor waited for
			w.Header().Set("Connection", "close")
			_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // tests have none
		}
		switch {
		case r.Method != http.MethodGet:
			w.Header().Set("Allow", http.MethodGet)
		case hasBody:
			err, code = errors.New("the request has a body: want none"), http.StatusBadRequest
		default:
			err, code = h(w, r), http.StatusInternalServerError
		}
		var sent sentError
		if err == nil || errors.As(err, &sent) {
			return
		}
		var known *httpError
		var wrong *query.Wrong
		if errors.As(err, &known) {
			code = known.code
		} else if errors.As(err, &wrong) {
			code = http.StatusBadRequest
		}
		if code == http.StatusInternalServerError {
			a.cfg.Log.Error("request failed", "path", r.URL.Path, "error", err)
		}
		writeError(w, code, err)
	})
}

// Refusal is every error the agent answers with, in JSON.
type Refusal struct {
	Error string `json:"error"`
}

func writeError(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", oneObject)
	w.WriteHeader(code)
	_ = render.WriteJSON(w, Refusal{err.Error()}) // fails when the client has gone
}

func writeObject(w http.ResponseWriter, object any) error {
	w.Header().Set("Content-Type", oneObject)
	if err := render.WriteJSON(w, object); err != nil {
		return sentError{err}
	}
	return nil
}

// values reads the parameters of a request.
func values(r *http.Request) (query.Values, error) {
	params, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest(fmt.Errorf("query %q: %w", r.URL.RawQuery, err))
	}
	v, err := query.Decode(params)
	if err != nil {
		return nil, badRequest(err)
	}
	return v, nil
}

func healthz(w http.ResponseWriter, _ *http.Request) error {
	_, err := io.WriteString(w, "ok\n")
	if err != nil {
		return sentError{err}
	}
	return nil
}

// readyz tells whether the table has every socket.
func (a *Server) readyz(w http.ResponseWriter, r *http.Request) error {
	if !a.ready() {
		return &httpError{http.StatusServiceUnavailable, errors.New("the first snapshot is not there yet")}
	}
	return healthz(w, r)
}

// sockets answers as ls does.
func (a *Server) sockets(t *turn, r *http.Request) error {
	v, err := values(r)
	if err != nil {
		return err
	}
	q, err := query.ParseSockets(v)
	if err != nil {
		return err
	}
	if err := q.Locate(a.cfg.Names.NetNS); err != nil {
		return err
	}
	rows, err := a.rows(t, q.LocalPort(), query.Unlimited)
	if err == nil && q.Exposed() {
		q.Reach, err = a.cfg.Tracer.Reach()
	}
	if err != nil {
		return err
	}
	q.NameDevices(rows.Devices.Name)
	some := render.SocketsOfRows(rows, func(s *tracer.Socket) bool { return q.Socket(a.cfg.Names.Cgroups, s) })
	t.Header().Set("Content-Type", lines)
	a.note(t.Header(), q)
	if q.Dated() {
		t.Header().Set("Trailer", UndatedTrailer)
	}
	if err := render.New(a.cfg.Names).SocketsJSON(t, some); err != nil {
		return sentError{err}
	}
	if q.Dated() {
		t.Header().Set(UndatedTrailer, strconv.Itoa(q.Undated()))
	}
	return nil
}

// rows reads the sockets of a port, 0: of all, of which so many are wanted.
func (a *Server) rows(t *turn, port uint16, limit int) (*tracer.Rows, error) {
	if err := t.begin(rowsBytes(a.cfg.Tracer.Table().Count(port), limit)); err != nil {
		return nil, err
	}
	rows, err := a.cfg.Tracer.Rows(port)
	if err != nil {
		return nil, fmt.Errorf("read sockets: %w", err)
	}
	t.made(rowsBytes(rows.Len(), limit))
	if rows.Unfinished > 0 {
		t.Header().Set(UnfinishedHeader, strconv.Itoa(rows.Unfinished))
	}
	return rows, nil
}

// port answers as who does.
func (a *Server) port(t *turn, r *http.Request) error {
	v, err := values(r)
	if err != nil {
		return err
	}
	q, err := query.ParsePort(r.PathValue("port"), v)
	if err != nil {
		return err
	}
	if err := q.Locate(a.cfg.Names.NetNS); err != nil {
		return err
	}
	rows, err := a.rows(t, q.Number, q.Limit)
	if err != nil {
		return err
	}
	at, names, err := a.portPlace(r.Context(), &q)
	if err != nil {
		return err
	}
	owners := tracer.NewOwnerLookup()
	all := render.SocketsOfRows(rows, func(s *tracer.Socket) bool {
		owners.Set(s)
		return true
	})
	var out io.Writer = t
	var few bytes.Buffer
	if q.Limit <= render.MaxShown { // then the rows need not be kept until it is read
		out = &few
	}
	t.Header().Set("Content-Type", oneObject)
	a.note(t.Header(), &q)
	if err := a.writePort(render.New(names), out, q, at, all); err != nil {
		return sentError{err}
	}
	t.resize(max(few.Len(), leastAnswer))
	if _, err := few.WriteTo(t); err != nil {
		return sentError{err}
	}
	return nil
}

// portPlace is what is known of the port in the namespace that is asked about, or the agent's
// own, and names that know the ephemeral ranges of the others, read when the first is asked for.
func (a *Server) portPlace(ctx context.Context, q *query.Port) (*render.PortPlace, *identity.Names, error) {
	own, err := identity.NetNSOfThread()
	if err != nil {
		return nil, nil, err
	}
	ranges := sync.OnceValue(func() map[tracer.NetNS]*tracer.Range {
		all, err := a.cfg.Tracer.Ranges()
		if err != nil {
			a.cfg.Log.Error("read ephemeral ranges", "error", err)
		}
		return all
	})
	at := &render.PortPlace{NetNS: identity.NetNS{Inode: own}}
	if wanted, ok := q.Place(); ok {
		at.NetNS = wanted
	}
	if at.NetNS.Inode == own {
		at.Pool, err = identity.ReadPool()
	} else {
		at.Pool, err = identity.PoolIn(ranges(), at.NetNS)
	}
	if err != nil {
		return nil, nil, err
	}
	at.NAT, at.NATUnread = identity.NAT(ctx, at.NetNS.Inode, q.Number, q.Protos...)
	names := *a.cfg.Names
	names.Range = func(ns tracer.NetNS) *tracer.Range { return render.OtherRange(ranges()[ns], at.Pool) }
	names.Behind = identity.BehindRows(a.cfg.Tracer.Rows)
	if q.NoArgs && names.Processes != nil {
		names.Processes = identity.NewProcesses(false)
	}
	return at, &names, nil
}
