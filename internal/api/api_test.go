package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// A handler's error is the answer, unless that had begun.
func TestAnswer(t *testing.T) {
	var log bytes.Buffer
	a := &Server{cfg: Config{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	for _, c := range []struct {
		method string
		err    error
		code   int
		want   string
	}{
		{"GET", nil, 200, ""},
		{"GET", sentError{io.ErrClosedPipe}, 200, ""},
		{"GET", fmt.Errorf("read: %w", os.ErrClosed), 500, `{"error":"read: file already closed"}`},
		{"GET", badRequest(errors.New(`no "x"`)), 400, `{"error":"no \"x\""}`},
		{"PUT", nil, 405, `{"error":"want GET"}`},
		{"HEAD", nil, 405, `{"error":"want GET"}`},
	} {
		w := httptest.NewRecorder()
		a.answer(func(http.ResponseWriter, *http.Request) error { return c.err }).ServeHTTP(w, httptest.NewRequest(c.method, "/x", nil))
		if got := strings.TrimSpace(w.Body.String()); w.Code != c.code || got != c.want {
			t.Errorf("%s, %v: %d %s, want %d %s", c.method, c.err, w.Code, got, c.code, c.want)
		}
	}
	if got := strings.Count(log.String(), "request failed"); got != 1 {
		t.Errorf("%d failures in the log, want 1:\n%s", got, log.String())
	}
}

// Nothing can be asked for but to read.
func TestOnlyGet(t *testing.T) {
	a := &Server{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	h := a.APIHandler()
	for _, path := range []string{
		"/", "/metrics", "/healthz", "/readyz", "/v1/events", "/v1/sockets", "/v1/ports/80", "/v1/headroom", "/v1/history", "/v1/status",
	} {
		for _, method := range []string{"HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
			if w.Code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: status %d, want 405", method, path, w.Code)
			}
		}
	}
}

// slowClient takes a while for each part of its answer, until it is cut off.
type slowClient struct {
	*httptest.ResponseRecorder
	forEach time.Duration
	writing chan struct{} // holds a token once it has begun
	cut     chan struct{}
}

func (c *slowClient) Write(b []byte) (int, error) {
	select {
	case c.writing <- struct{}{}:
	default:
	}
	select {
	case <-time.After(c.forEach):
		return len(b), nil
	case <-c.cut:
		return 0, os.ErrDeadlineExceeded
	}
}

func (c *slowClient) SetWriteDeadline(time.Time) error {
	close(c.cut)
	return nil
}

// As many answers are read as there is room for. A small one is answered while there is
// none for a large one; who hardly reads is cut off when another waits, and not before;
// who reads slowly is not.
func TestAnswersInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const room, parts = 8 * leastAnswer, 10
		all := newAnswers(room)
		begin := func(bytes int, forEach time.Duration) chan error {
			c := &slowClient{httptest.NewRecorder(), forEach, make(chan struct{}, 1), make(chan struct{})}
			answered := make(chan error, 1)
			go func() {
				answered <- all.inTurn(func(t *turn, _ *http.Request) error {
					if err := t.begin(bytes); err != nil {
						return err
					}
					t.made(bytes)
					for range parts {
						if _, err := t.Write([]byte("answer")); err != nil {
							return err
						}
					}
					return nil
				})(c, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
			}()
			synctest.Wait()
			return answered
		}
		stalled := begin(100*room, 2*stalledFor) // as much as there is for one
		time.Sleep(parts * stalledFor)
		if len(stalled) > 0 {
			t.Fatalf("who keeps nobody waiting is cut off: %v", <-stalled)
		}
		start := time.Now()
		large, small := begin(room/2, 0), begin(1, 0) // there is no room for the first
		if err := <-small; err != nil || time.Since(start) > 0 {
			t.Errorf("a small answer: %v after %v", err, time.Since(start))
		}
		if err := <-large; err != nil || time.Since(start) > 2*stalledFor {
			t.Errorf("a large answer: %v after %v", err, time.Since(start))
		}
		if err := <-stalled; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("who keeps another waiting: error %v", err)
		}
		var slow []chan error
		for range room / leastAnswer {
			slow = append(slow, begin(1, stalledFor*2/3))
		}
		var busy *httpError
		if err := <-begin(1, 0); !errors.As(err, &busy) || busy.code != http.StatusServiceUnavailable {
			t.Errorf("one more than there is room for: error %v, want status 503", err)
		}
		for _, c := range slow {
			if err := <-c; err != nil {
				t.Errorf("who reads slowly: %v", err)
			}
		}
		if all.used != 0 || len(all.turns) != 0 || len(all.making) != 0 {
			t.Errorf("%d bytes are in use, %d answers are read, %d made, after all have ended", all.used, len(all.turns), len(all.making))
		}
	})
}

// Over the loopback only names are answered that may mean the machine to itself.
func TestGuard(t *testing.T) {
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	addrs := []string{"metrics.example:9655", ":9655"}
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	status := func(h http.Handler, local, host string) int {
		addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(local))
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, net.Addr(addr)), "GET", "/metrics", nil)
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	for _, host := range []string{
		"127.0.0.1:9655", "127.0.0.1", "10.0.0.1:80", "[::1]:9655", "[::1]", "localhost", "LOCALHOST:9655", "localhost.", "a.localhost:1",
		own, strings.ToUpper(own) + ":9655", own + ".", "metrics.example:9655", "Metrics.Example", "",
	} {
		for _, local := range []string{"127.0.0.1:9655", "[::1]:9655", "[::ffff:127.0.0.9]:9655", "10.0.0.1:9655"} {
			if got := status(Guard(addrs, ok), local, host); got != 200 {
				t.Errorf("%s at %s: status %d, want 200", host, local, got)
			}
		}
	}
	for _, host := range []string{"evil.example", "evil.example:9655", "localhost.evil.example", "127.0.0.1.evil.example:9655", "x" + own + ".example"} {
		for local, want := range map[string]int{"127.0.0.1:9655": 421, "[::1]:9655": 421, "10.0.0.1:9655": 200, "[2001:db8::1]:9655": 200} {
			if got := status(Guard(addrs, ok), local, host); got != want {
				t.Errorf("%s at %s: status %d, want %d", host, local, got, want)
			}
		}
	}
}

// What any client can have logged as often as he likes is logged once in a while.
func TestServerLog(t *testing.T) {
	var out bytes.Buffer
	l := &serverLog{to: slog.New(slog.NewTextHandler(&out, nil))}
	for i := range 100 {
		fmt.Fprintf(l, "http: TLS handshake error from 10.0.0.1:%d: EOF\n", i)
	}
	fmt.Fprintf(l, "http: Accept error: too many open files\n")
	l.said = l.said.Add(-sayEvery)
	fmt.Fprintf(l, "http: TLS handshake error from 10.0.0.1:100: EOF\n")
	if got := out.String(); strings.Count(got, "\n") != 3 || !strings.Contains(got, "not_told_before=99") || !strings.Contains(got, "Accept error") {
		t.Errorf("the log has\n%s", got)
	}
}

// Whoever asks while metrics are gathered gets those that are gathered next, together
// with all others who wait.
func TestTogether(t *testing.T) {
	begun, goOn := make(chan int), make(chan struct{})
	n := 0
	g := &together{from: prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		n++
		begun <- n
		<-goOn
		return nil, fmt.Errorf("number %d", n)
	})}
	got := make(chan string, 64)
	ask := func() {
		_, err := g.Gather()
		got <- err.Error()
	}
	go ask()
	<-begun
	const waiting = 20
	var all sync.WaitGroup
	for range waiting {
		all.Go(ask)
	}
	for ; ; time.Sleep(time.Millisecond) { // until one waits, whom all others join
		g.mu.Lock()
		ready := g.next != nil
		g.mu.Unlock()
		if ready {
			break
		}
	}
	goOn <- struct{}{}
	if first := <-got; first != "number 1" {
		t.Errorf("who asked first has %s", first)
	}
	for len(got) < waiting {
		select {
		case <-begun:
			goOn <- struct{}{}
		case <-time.After(time.Millisecond):
		}
	}
	all.Wait()
	if n > waiting/2 { // not all need have asked by then
		t.Errorf("gathered %d times for %d who asked at once", n, waiting+1)
	}
}

// The table is not there before the first snapshot.
func TestKernelReadyz(t *testing.T) {
	testutil.RequireRoot(t)
	tr, err := tracer.Open(tracer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	a := &Server{cfg: Config{Tracer: tr, Log: slog.New(slog.DiscardHandler)}}
	ask := func(want int) {
		t.Helper()
		w := httptest.NewRecorder()
		a.answer(a.readyz).ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		if w.Code != want {
			t.Errorf("status %d, want %d", w.Code, want)
		}
	}
	ask(503)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- tr.Run(ctx, nil) }()
	select {
	case <-tr.Ready():
		ask(200)
	case err := <-ended:
		ended <- err
		t.Error("Run has ended")
	}
	cancel()
	if err := errors.Join(<-ended, tr.Close()); err != nil {
		t.Error(err)
	}
}

func TestLostLine(t *testing.T) {
	var s stream
	s.appendLost(7, ByKernel)
	want, err := json.Marshal(Lost{7, ByKernel})
	if err != nil || string(s.buf) != string(want)+"\n" {
		t.Errorf("%s, want %s, %v", s.buf, want, err)
	}
}
