package export

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	colpb "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	logspb "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// sink is an endpoint that keeps what it takes.
type sink struct {
	mu      sync.Mutex
	records []*logspb.LogRecord
	answer  http.HandlerFunc // instead of taking it; nil: it is taken
	asked   int
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.answer != nil {
		s.answer(w, r)
		return
	}
	req, err := requestOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.records = append(s.records, req.ResourceLogs[0].ScopeLogs[0].LogRecords...)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func requestOf(r *http.Request) (*colpb.ExportLogsServiceRequest, error) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		zip, err := gzip.NewReader(body)
		if err != nil {
			return nil, err
		}
		body = zip
	}
	raw, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	req := &colpb.ExportLogsServiceRequest{}
	return req, proto.Unmarshal(raw, req)
}

func (s *sink) set(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records)
}

// log collects lines.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *log) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.buf.String()), "\n")
}

// sender is an Exporter of which only the sending is of interest.
func sender(t *testing.T, s Settings, l *log) *Exporter {
	t.Helper()
	cfg, err := NewConfig(s, func(string) string { return "" }, "v1")
	if err != nil {
		t.Fatal(err)
	}
	cfg.retryLeast, cfg.retryMost = time.Millisecond, 5*time.Millisecond
	return exporterOf(t, cfg, l, [16]byte{1})
}

// exporterOf is an Exporter without a tracer.
func exporterOf(t *testing.T, cfg *Config, l *log, boot [16]byte) *Exporter {
	t.Helper()
	cfg.Log = slog.New(slog.NewTextHandler(l, nil))
	x := &Exporter{cfg: cfg, client: newClient(cfg), wake: make(chan struct{}, 1), boot: boot}
	for _, b := range []**builder{&x.build, &x.again} {
		var err error
		if *b, err = newBuilder(cfg, boot); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

// batchOf has so many records.
func batchOf(t *testing.T, x *Exporter, n int) *batch {
	t.Helper()
	for i := range n {
		f := fact{ev: tracer.Event{Time: time.Now(), Type: tracer.EventBind, Proto: tracer.TCP, Local: netip.MustParseAddrPort("127.0.0.1:80")}, boot: time.Duration(i + 1)}
		if err := x.build.add(&f); err != nil {
			t.Fatal(err)
		}
	}
	return x.build.build()
}

func deliver(t *testing.T, x *Exporter, b *batch) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if !x.deliver(ctx, b) {
		t.Fatal("not delivered within a minute")
	}
}

// An endpoint that cannot be used is told in one line, and used once it can be.
func TestEndpointTrouble(t *testing.T) {
	answers := func(code int, headers ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.WriteHeader(code)
			fmt.Fprintln(w, "no such thing")
		}
	}
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		why    Retry
		says   string
	}{
		{"redirect", answers(http.StatusPermanentRedirect, "Location", "https://elsewhere/v1/logs"), RetryEndpoint, "redirects to https://elsewhere/v1/logs, which is not followed"},
		{"denied", answers(http.StatusUnauthorized), RetryDenied, "answers 401 Unauthorized: no such thing"},
		{"not there", answers(http.StatusNotFound), RetryEndpoint, "answers 404 Not Found: no such thing"},
		{"throttled", answers(http.StatusTooManyRequests), RetryThrottled, "answers 429"},
		{"unavailable", answers(http.StatusServiceUnavailable), RetryUnavailable, "answers 503"},
		{"gRPC", answers(http.StatusOK, "Content-Type", "application/grpc"), RetryEndpoint, "it speaks gRPC"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &sink{}
			s.set(c.answer)
			server := httptest.NewServer(s)
			defer server.Close()
			var l log
			x := sender(t, Settings{Endpoint: server.URL}, &l)
			done := make(chan struct{})
			go func() {
				defer close(done)
				deliver(t, x, batchOf(t, x, 3))
			}()
			testutil.Await(t, "several attempts", func() bool { return x.Stats().Retried[c.why] >= 9 })
			s.set(nil)
			<-done
			lines := l.lines()
			if len(lines) != 2 || !strings.Contains(lines[0], c.says) || !strings.Contains(lines[1], "events are exported again") {
				t.Errorf("log:\n%s\nwant a line with %q, and one that it is over", strings.Join(lines, "\n"), c.says)
			}
			if st := x.Stats(); st.Sent != 3 || s.count() != 3 || st.Retried[c.why]%3 != 0 {
				t.Errorf("sent %d, taken %d, retried %v", st.Sent, s.count(), st.Retried)
			}
		})
	}
}

// firstLine is what the log says of an endpoint, before anything is taken.
func firstLine(t *testing.T, s Settings) (string, Retry) {
	t.Helper()
	var l log
	x := sender(t, s, &l)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { x.deliver(ctx, batchOf(t, x, 1)) })
	var why Retry
	testutil.Await(t, "an attempt that failed twice", func() bool {
		for _, r := range Retries() {
			if x.Stats().Retried[r] >= 2 {
				why = r
				return true
			}
		}
		return false
	})
	cancel()
	running.Wait()
	if n := len(l.lines()); n != 1 {
		t.Errorf("%d lines: %s", n, strings.Join(l.lines(), "\n"))
	}
	return l.lines()[0], why
}

// What is wrong before there is an answer.
func TestEndpointUnreachable(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	encrypted := httptest.NewTLSServer(http.NotFoundHandler())
	defer encrypted.Close()
	encrypted.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	grpc := &http.Server{Handler: http.NotFoundHandler(), Protocols: new(http.Protocols)}
	grpc.Protocols.SetUnencryptedHTTP2(true)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go grpc.Serve(listener)
	defer grpc.Close()
	for _, c := range []struct {
		name, url, says string
		why             Retry
	}{
		{"refused", "http://" + closed.Addr().String(), "connect: connection refused", RetryNetwork},
		{"no name", "http://nothing.invalid", "nothing.invalid", RetryNetwork},
		{"unknown CA", encrypted.URL, "signed by an authority that is not known here: --otlp.ca-file names others", RetryTLS},
		{"no TLS", strings.Replace(plain.URL, "http:", "https:", 1), "speaks no TLS: give it as http://", RetryTLS},
		{"TLS", strings.Replace(encrypted.URL, "https:", "http:", 1), "wants TLS: give it as https://", RetryTLS},
		{"gRPC", "http://" + listener.Addr().String(), "it speaks gRPC: want the port that takes OTLP over HTTP, as 4318", RetryEndpoint},
	} {
		t.Run(c.name, func(t *testing.T) {
			line, why := firstLine(t, Settings{Endpoint: c.url})
			if !strings.Contains(line, c.says) || why != c.why {
				t.Errorf("%v: %s\nwant %v, and a line with %q", why, line, c.why, c.says)
			}
		})
	}
}

// A batch that is too large is sent in parts; one that is wrong is given up, and counted.
func TestEndpointRefuses(t *testing.T) {
	s := &sink{}
	server := httptest.NewServer(s)
	defer server.Close()
	var l log
	x := sender(t, Settings{Endpoint: server.URL}, &l)
	s.set(func(w http.ResponseWriter, r *http.Request) {
		req, err := requestOf(r)
		if err != nil || len(req.ResourceLogs[0].ScopeLogs[0].LogRecords) > 2 {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		s.records = append(s.records, req.ResourceLogs[0].ScopeLogs[0].LogRecords...)
	})
	deliver(t, x, batchOf(t, x, 7))
	if st := x.Stats(); st.Sent != 7 || s.count() != 7 || st.Lost[LostRefused] != 0 {
		t.Errorf("sent %d, taken %d, lost %v", st.Sent, s.count(), st.Lost)
	}
	s.set(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "bad record", http.StatusBadRequest) })
	deliver(t, x, batchOf(t, x, 4))
	if st := x.Stats(); st.Lost[LostRefused] != 4 || x.waiting[LostRefused].count != 4 {
		t.Errorf("lost %v, to be told upstream %v", st.Lost, x.waiting)
	}
	s.set(func(w http.ResponseWriter, _ *http.Request) {
		answer, err := proto.Marshal(&colpb.ExportLogsServiceResponse{PartialSuccess: &colpb.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: "too old"}})
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
		w.Write(answer)
	})
	deliver(t, x, batchOf(t, x, 5))
	if st := x.Stats(); st.Lost[LostRejected] != 1 || st.Sent != 7+4 {
		t.Errorf("sent %d, lost %v; one of five was rejected", st.Sent, st.Lost)
	}
	if text := strings.Join(l.lines(), "\n"); !strings.Contains(text, "bad record") || !strings.Contains(text, "too old") {
		t.Errorf("log:\n%s", text)
	}
}

// An endpoint that says when it wants to be asked again is not asked before.
func TestEndpointRetryAfter(t *testing.T) {
	s := &sink{}
	server := httptest.NewServer(s)
	defer server.Close()
	s.set(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		s.answer = nil
	})
	x := sender(t, Settings{Endpoint: server.URL}, new(log))
	begun := time.Now()
	deliver(t, x, batchOf(t, x, 1))
	if took := time.Since(begun); took < time.Second || s.asked != 2 {
		t.Errorf("asked %d times within %v, want twice, a second apart", s.asked, took)
	}
}

// selfSigned writes a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	one := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, one, one, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(file, kind string, der []byte) string {
		path := filepath.Join(dir, name+file)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write(".crt", "CERTIFICATE", der), write(".key", "PRIVATE KEY", secret)
}

// Certificates of both ends, and headers, are those of the files and flags.
func TestEndpointMutualTLS(t *testing.T) {
	dir := t.TempDir()
	serverCert, serverKey := selfSigned(t, dir, "server")
	clientCert, clientKey := selfSigned(t, dir, "client")
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	text, err := os.ReadFile(clientCert)
	if err != nil {
		t.Fatal(err)
	}
	clients.AppendCertsFromPEM(text)
	s := &sink{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer x" {
			http.Error(w, "no token", http.StatusUnauthorized)
			return
		}
		s.ServeHTTP(w, r)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.StartTLS()
	defer server.Close()
	set := Settings{Endpoint: server.URL, CAFile: serverCert, Headers: []string{"Authorization=Bearer x"}}
	if line, why := firstLine(t, set); why != RetryTLS || !strings.Contains(line, "certificate") {
		t.Errorf("without a certificate: %v: %s", why, line)
	}
	set.CertFile, set.KeyFile = clientCert, clientKey
	x := sender(t, set, new(log))
	deliver(t, x, batchOf(t, x, 2))
	if s.count() != 2 {
		t.Errorf("%d records taken, want 2", s.count())
	}
}

// What does not fit into the queue is counted, and told upstream once there is room.
func TestQueueFull(t *testing.T) {
	s := &sink{}
	server := httptest.NewServer(s)
	defer server.Close()
	x := sender(t, Settings{Endpoint: server.URL}, new(log))
	x.cfg.room = 1000
	for range 10 {
		b := batchOf(t, x, 20)
		b.live = true
		f := fact{ev: tracer.Event{Time: time.Now(), Type: tracer.EventBind, Proto: tracer.TCP, Errno: syscall.EADDRINUSE}, boot: 1}
		if err := x.build.add(&f); err != nil {
			t.Fatal(err)
		}
		x.seal()
	}
	st := x.Stats()
	queued := uint64(len(x.queue))
	if queued == 0 || st.QueueBytes > 1000 || st.Lost[LostQueue] != 10-queued || x.waiting[LostQueue].count != 10-queued {
		t.Errorf("%d queued, %d bytes, lost %v, to be told %v", queued, st.QueueBytes, st.Lost, x.waiting[LostQueue])
	}
}
