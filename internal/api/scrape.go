package api

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// scrapeWithin is how long a client has to read the metrics.
const scrapeWithin = 10 * time.Second

// scrapes answers at /metrics. Who reads slowly, or not at all, costs the memory of one
// answer for a while, and no other client its turn.
func (a *Server) scrapes() handler {
	text := promhttp.HandlerFor(&together{from: a.cfg.Metrics}, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(a.cfg.Log.Handler(), slog.LevelError),
	})
	return newAnswers(scrapeBytes).inTurn(func(t *turn, r *http.Request) error {
		if err := t.begin(usualScrape); err != nil {
			return err
		}
		t.made(usualScrape) // those who come meanwhile are gathered for together
		got := whole{header: t.Header(), code: http.StatusOK}
		text.ServeHTTP(&got, r)
		t.resize(max(got.body.Cap(), leastAnswer))
		_ = http.NewResponseController(t).SetWriteDeadline(time.Now().Add(scrapeWithin)) // tests have none
		t.WriteHeader(got.code)
		if _, err := t.Write(got.body.Bytes()); err != nil {
			return sentError{err}
		}
		return nil
	})
}

const (
	// scrapeBytes is answerBytes of metrics.
	scrapeBytes = 4 << 20
	// usualScrape is what one takes: bounded are the series that there can be.
	usualScrape = 96 << 10
)

// whole is an answer that is kept until there is all of it.
type whole struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (k *whole) Header() http.Header         { return k.header }
func (k *whole) WriteHeader(code int)        { k.code = code }
func (k *whole) Write(b []byte) (int, error) { return k.body.Write(b) }

// together gathers once for all who ask before it begins.
type together struct {
	from prometheus.Gatherer

	mu   sync.Mutex
	next *gathered  // not begun yet; nil: nobody waits
	busy sync.Mutex // one at a time
}

type gathered struct {
	done chan struct{}
	got  []*dto.MetricFamily
	err  error
}

// Gather implements prometheus.Gatherer.
func (t *together) Gather() ([]*dto.MetricFamily, error) {
	t.mu.Lock()
	g, first := t.next, t.next == nil
	if first {
		g = &gathered{done: make(chan struct{})}
		t.next = g
	}
	t.mu.Unlock()
	if first {
		t.gather(g)
	}
	<-g.done
	return g.got, g.err
}

func (t *together) gather(g *gathered) {
	t.busy.Lock()
	defer t.busy.Unlock()
	t.mu.Lock()
	t.next = nil
	t.mu.Unlock()
	g.err = errGather // should it panic
	defer close(g.done)
	g.got, g.err = t.from.Gather()
}

var errGather = errors.New("the metrics could not be gathered")
