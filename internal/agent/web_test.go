package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// writeCertificate writes cert.pem and key.pem.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "EC PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// The configuration file of exporters is obeyed: TLS, and a password.
func TestWebConfig(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir)
	config := filepath.Join(dir, "web.yml")
	// The password is "secret".
	const text = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n" +
		"basic_auth_users:\n  prom: $2a$04$kO9p667kHq3tbdTw/m0yhet26Ud2k3vogR/atftJsWTpV28PwcHR6\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	front, err := openWeb(Config{Listen: []string{"127.0.0.1:0", "127.0.0.1:0"}, WebConfig: config})
	if err != nil {
		t.Fatal(err)
	}
	defer front.close()
	log := slog.New(slog.DiscardHandler)
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	servers := front.servers(ok, log)
	ended := make(chan error, len(servers))
	for i, s := range servers {
		go func() { ended <- front.serve(i, s, log) }()
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	urls := front.urls()
	if len(urls) != 2 || !strings.HasPrefix(urls[0], "https://127.0.0.1:") || !strings.HasSuffix(urls[0], "/metrics") {
		t.Fatalf("the metrics are at %q", urls)
	}
	for _, url := range urls {
		for password, want := range map[string]int{"": 401, "wrong": 401, "secret": 200} {
			req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
			if err != nil {
				t.Fatal(err)
			}
			if password != "" {
				req.SetBasicAuth("prom", password)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("password %q: status %d, want %d", password, resp.StatusCode, want)
			}
		}
	}
	end(servers)
	for range servers {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}
}

// A handler's error is the answer, unless that had begun.
func TestAnswer(t *testing.T) {
	var log bytes.Buffer
	a := &agent{cfg: Config{Log: slog.New(slog.NewTextHandler(&log, nil))}}
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
	a := &agent{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	h := a.socketHandler(prometheus.NewRegistry())
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

// So many clients at once are answered; another gets its turn when one is done, or
// does not wait any longer.
func TestBounded(t *testing.T) {
	inside, done := make(chan struct{}, maxAnswers+1), make(chan struct{})
	h := bounded(func(http.ResponseWriter, *http.Request) error {
		inside <- struct{}{}
		<-done
		return nil
	})
	ask := func(ctx context.Context) error {
		return h(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	}
	answered := make(chan error)
	for range maxAnswers {
		go func() { answered <- ask(t.Context()) }()
		<-inside
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var refused *httpError
	if err := ask(gone); !errors.As(err, &refused) || refused.code != http.StatusServiceUnavailable {
		t.Errorf("one more: %v, want status 503", err)
	}
	go func() { answered <- ask(t.Context()) }()
	close(done)
	for range maxAnswers + 1 {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
}

// The table is not there before the first snapshot.
func TestReadyz(t *testing.T) {
	a := &agent{cfg: Config{Log: slog.New(slog.DiscardHandler)}}
	for _, want := range []int{503, 200} {
		w := httptest.NewRecorder()
		a.answer(a.readyz).ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		if w.Code != want {
			t.Errorf("status %d, want %d", w.Code, want)
		}
		a.ready.Store(true)
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
