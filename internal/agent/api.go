package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/porthole-dev/porthole/internal/filter"
	"github.com/porthole-dev/porthole/internal/netns"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// The kinds of answers.
const (
	oneObject = "application/json"
	lines     = "application/x-ndjson" // one object a line
)

// unfinishedHeader is Snapshot.Unfinished, where it is not 0.
const unfinishedHeader = "Porthole-Unfinished"

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

// webHandler is what TCP has.
func (a *agent) webHandler(metrics *prometheus.Registry) http.Handler {
	return a.mux(metrics, nil)
}

// socketHandler is what the unix socket has.
func (a *agent) socketHandler(metrics *prometheus.Registry) http.Handler {
	return a.mux(metrics, map[string]handler{
		"/v1/events":       a.events,
		"/v1/sockets":      bounded(a.sockets),
		"/v1/ports/{port}": bounded(a.port),
		"/v1/headroom":     bounded(a.headroom),
		"/v1/history":      bounded(a.history),
		"/v1/status":       a.status,
	})
}

func (a *agent) mux(metrics *prometheus.Registry, routes map[string]handler) http.Handler {
	mux := http.NewServeMux()
	for path, h := range routes {
		mux.Handle(path, a.answer(h))
	}
	mux.Handle("/healthz", a.answer(healthz))
	mux.Handle("/readyz", a.answer(a.readyz))
	scrape := promhttp.HandlerFor(metrics, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(a.cfg.Log.Handler(), slog.LevelError), MaxRequestsInFlight: 8,
	})
	mux.Handle("/metrics", a.answer(func(w http.ResponseWriter, r *http.Request) error {
		scrape.ServeHTTP(w, r)
		return nil
	}))
	mux.Handle("/", a.answer(func(_ http.ResponseWriter, r *http.Request) error {
		return &httpError{http.StatusNotFound, fmt.Errorf("nothing is at %s", r.URL.Path)}
	}))
	return mux
}

const (
	// maxAnswers is how many answers of one kind are made and read at once: each keeps
	// all it has to tell until it is read. turnWithin is how long others wait.
	maxAnswers = 3
	turnWithin = 10 * time.Second
)

// bounded lets maxAnswers of a handler run at once.
func bounded(h handler) handler {
	turns := make(chan struct{}, maxAnswers)
	return func(w http.ResponseWriter, r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), turnWithin)
		defer cancel()
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return &httpError{http.StatusServiceUnavailable, fmt.Errorf("%d clients read such an answer already", maxAnswers)}
		}
		defer func() { <-turns }()
		return h(w, r)
	}
}

// answer makes every error a JSON object with a status code.
func (a *agent) answer(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := errors.New("want GET")
		code := http.StatusMethodNotAllowed
		if r.Method == http.MethodGet {
			err, code = h(w, r), http.StatusInternalServerError
		} else {
			w.Header().Set("Allow", http.MethodGet)
		}
		var sent sentError
		if err == nil || errors.As(err, &sent) {
			return
		}
		var known *httpError
		if errors.As(err, &known) {
			code = known.code
		}
		if code == http.StatusInternalServerError {
			a.cfg.Log.Error("request failed", "path", r.URL.Path, "error", err)
		}
		writeError(w, code, err)
	})
}

// errorBody is every error the agent answers with.
type errorBody struct {
	Error string `json:"error"`
}

func writeError(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", oneObject)
	w.WriteHeader(code)
	_ = render.WriteJSON(w, errorBody{err.Error()}) // fails when the client has gone
}

func writeObject(w http.ResponseWriter, object any) error {
	w.Header().Set("Content-Type", oneObject)
	if err := render.WriteJSON(w, object); err != nil {
		return sentError{err}
	}
	return nil
}

// values reads the parameters of a request.
func values(r *http.Request) (map[string][]string, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest(fmt.Errorf("query %q: %w", r.URL.RawQuery, err))
	}
	v, err := filter.FromQuery(query)
	if err != nil {
		return nil, badRequest(err)
	}
	return v, nil
}

// onlyValues reads parameters that have one of these names.
func onlyValues(r *http.Request, want ...string) (map[string][]string, error) {
	v, err := values(r)
	for name := range v {
		if !slices.Contains(want, name) {
			return nil, badRequest(fmt.Errorf("parameter %q: want %s", name, cmp.Or(strings.Join(want, ", "), "none")))
		}
	}
	return v, err
}

func healthz(w http.ResponseWriter, _ *http.Request) error {
	_, err := io.WriteString(w, "ok\n")
	if err != nil {
		return sentError{err}
	}
	return nil
}

// readyz tells whether the table has every socket.
func (a *agent) readyz(w http.ResponseWriter, r *http.Request) error {
	if !a.ready.Load() {
		return &httpError{http.StatusServiceUnavailable, errors.New("the first snapshot is not there yet")}
	}
	return healthz(w, r)
}

// sockets answers as ls does.
func (a *agent) sockets(w http.ResponseWriter, r *http.Request) error {
	v, err := values(r)
	if err != nil {
		return err
	}
	f, err := filter.Parse(filter.Sockets, v)
	if err != nil {
		return badRequest(err)
	}
	if err := a.locate(f); err != nil {
		return err
	}
	snap, err := a.snapshot(w, f.LocalPort())
	if err != nil {
		return err
	}
	some := render.SocketsOf(snap.Sockets, func(s *tracer.Socket) bool { return f.Socket(a.names.Cgroups, s) })
	w.Header().Set("Content-Type", lines)
	if err := a.names.SocketsJSON(w, some); err != nil {
		return sentError{err}
	}
	return nil
}

// locate looks for the network namespaces of a filter on this machine.
func (a *agent) locate(f *filter.Filter) error {
	err := f.Locate(a.names.NetNS)
	if errors.Is(err, netns.ErrNone) || errors.Is(err, netns.ErrNotPermitted) {
		return badRequest(err)
	}
	return err
}

// snapshot reads the sockets of a port, 0: of all.
func (a *agent) snapshot(w http.ResponseWriter, port uint16) (*tracer.Snapshot, error) {
	snap, err := a.tracer.Snapshot(port)
	if err != nil {
		return nil, fmt.Errorf("read sockets: %w", err)
	}
	if snap.Unfinished > 0 {
		w.Header().Set(unfinishedHeader, strconv.Itoa(snap.Unfinished))
	}
	return snap, nil
}

// port answers as who does.
func (a *agent) port(w http.ResponseWriter, r *http.Request) error {
	v, err := onlyValues(r, "proto")
	if err != nil {
		return err
	}
	q := render.Question{}
	if q.Port, err = filter.ParsePort(r.PathValue("port")); err != nil {
		return badRequest(err)
	}
	if q.Protos, err = parseProtos(v["proto"]); err != nil {
		return badRequest(err)
	}
	pool, err := netns.ReadPool()
	if err != nil {
		return err
	}
	snap, err := a.snapshot(w, q.Port)
	if err != nil {
		return err
	}
	snap.LookUpOwners()
	return writeObject(w, a.names.Port(q, pool, snap.Sockets, a.tracer.History().Port(q.Port)))
}

// parseProtos returns the protocols given, each once; of none given all.
func parseProtos(given []string) ([]tracer.Proto, error) {
	var out []tracer.Proto
	for _, s := range given {
		p, err := filter.ParseProto(s)
		if err != nil {
			return nil, fmt.Errorf("proto: %w", err)
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return filter.Protos(), nil
	}
	return out, nil
}

// history answers with the tenancies that ended, the latest first.
func (a *agent) history(w http.ResponseWriter, r *http.Request) error {
	v, err := onlyValues(r, "port")
	if err != nil {
		return err
	}
	var port uint16
	if given := v["port"]; len(given) > 1 {
		return badRequest(fmt.Errorf("port: %q: want one", strings.Join(given, ",")))
	} else if len(given) == 1 {
		if port, err = filter.ParsePort(given[0]); err != nil {
			return badRequest(fmt.Errorf("port: %w", err))
		}
	}
	w.Header().Set("Content-Type", lines)
	past := a.tracer.History().Port(port)
	for i := range past {
		if err := render.WriteJSON(w, a.names.Tenancy(&past[i])); err != nil {
			return sentError{err}
		}
	}
	return nil
}
