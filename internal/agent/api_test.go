package agent

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// patience is how long a busy machine may take for what a test waits for.
const patience = time.Minute

// apiConfig is a configuration of the API.
type apiConfig struct {
	file      string
	cert, key string
	clients   string // who signs their certificates
}

func newAPIConfig(t *testing.T, ca *testutil.CA) apiConfig {
	t.Helper()
	c := apiConfig{file: filepath.Join(t.TempDir(), "api.yml"), clients: ca.File}
	c.cert, c.key = ca.Server(t, nil)
	c.write(t, c.right())
	return c
}

func (c *apiConfig) server() string {
	return fmt.Sprintf("tls_server_config:\n  cert_file: %s\n  key_file: %s\n", c.cert, c.key)
}

func (c *apiConfig) right() string {
	return c.server() + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: " + c.clients + "\n"
}

// write replaces the file, as who edits it does.
func (c *apiConfig) write(t *testing.T, text string) {
	t.Helper()
	if err := errors.Join(os.WriteFile(c.file+".new", []byte(text), 0o600), os.Rename(c.file+".new", c.file)); err != nil {
		t.Fatal(err)
	}
}

// weak are configurations that would let others in than who has a certificate of the authority, with what the
// error says of each.
func (c *apiConfig) weak() map[string]string {
	const ca = "  client_ca_file: "
	return map[string]string{
		"": "no tls_server_config: want one with",
		"basic_auth_users:\n  prom: $2a$04$kO9p667kHq3tbdTw/m0yhet26Ud2k3vogR/atftJsWTpV28PwcHR6\n": "no tls_server_config: want one with",
		c.server(): `client_auth_type: "": want RequireAndVerifyClientCert`,
		c.server() + "  client_auth_type: NoClientCert\n":                                                    `client_auth_type: "NoClientCert": want RequireAndVerifyClientCert`,
		c.server() + "  client_auth_type: NoClientCert\n" + ca + c.clients + "\n":                            `client_auth_type: "NoClientCert": want RequireAndVerifyClientCert`,
		c.server() + "  client_auth_type: RequestClientCert\n" + ca + c.clients + "\n":                       `client_auth_type: "RequestClientCert": want RequireAndVerifyClientCert`,
		c.server() + "  client_auth_type: RequireAnyClientCert\n" + ca + c.clients + "\n":                    `client_auth_type: "RequireAnyClientCert": want RequireAndVerifyClientCert`,
		c.server() + "  client_auth_type: VerifyClientCertIfGiven\n" + ca + c.clients + "\n":                 `client_auth_type: "VerifyClientCertIfGiven": want RequireAndVerifyClientCert`,
		c.server() + "  client_auth_type: RequireAndVerifyClientCert\n":                                      "no client_ca_file: want a file", // else the system's authorities count
		c.server() + "  client_auth_type: RequireAndVerifyClientCert\n" + ca + c.file + "\n":                 "client_ca_file: " + c.file + ": want certificates as PEM",
		c.server() + "  client_auth_type: RequireAndVerifyClientCert\n" + ca + c.file + "x\n":                "no such file",
		c.right() + "basic_auth_users:\n  a: $2a$04$kO9p667kHq3tbdTw/m0yhet26Ud2k3vogR/atftJsWTpV28PwcHR6\n": "want tls_server_config alone",
		c.right() + "rate_limit:\n  burst: 1\n  interval: 1s\n":                                              "want tls_server_config alone",
		c.right() + "  client_certificates: no\n":                                                            "client_certificates",
		"tls_server_config: [":                          "yaml",
		strings.Replace(c.right(), c.key, c.key+"x", 1): "no such file",
	}
}

// Whatever would let others in is refused before anything is listened on, in one line that names the file and says
// what is wanted.
func TestAPIConfigWeak(t *testing.T) {
	c := newAPIConfig(t, testutil.NewCA(t))
	if err := CheckAPIConfig(c.file); err != nil {
		t.Errorf("the right one: %v", err)
	}
	for text, want := range c.weak() {
		c.write(t, text)
		err := CheckAPIConfig(c.file)
		if err == nil || !strings.HasPrefix(err.Error(), "--api.config.file "+c.file+": ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s\nerror %v, want one line that names the file, with %q", text, err, want)
		}
		if f, err := openAPI(Config{API: []string{"127.0.0.1:0"}, APIConfig: c.file, Log: quiet}); err == nil {
			f.close()
			t.Errorf("%s\nit is listened", text)
		}
	}
	if err := CheckAPIConfig(c.file + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// serveAPI answers "ok" to whoever is let in, until the test ends.
func serveAPI(t *testing.T, c apiConfig, out io.Writer) (addr string) {
	t.Helper()
	f, err := openAPI(Config{API: []string{"127.0.0.1:0"}, APIConfig: c.file, Log: slog.New(slog.NewTextHandler(out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	server := f.server(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(f.listeners[0], "", "") }()
	t.Cleanup(func() {
		end([]*http.Server{server})
		select {
		case err := <-ended:
			if !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the API does not end")
		}
	})
	return strings.TrimPrefix(f.urls()[0], "https://")
}

// clientOf is who shows a certificate, none where the file is "", whoever the server says that it trusts.
func clientOf(t *testing.T, ca *testutil.CA, cert, key string) *http.Client {
	t.Helper()
	text, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	config.RootCAs.AppendCertsFromPEM(text)
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: config}}
}

// ask tells whether a client is let in.
func ask(c *http.Client, addr string) (bool, error) {
	resp, err := c.Get("https://" + addr + "/v1/status")
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body) == "ok", err
}

// Who has a certificate of the authority is let in, and nobody else: neither without one, nor with another's, nor
// with one that is over, or for servers.
func TestAPICertificates(t *testing.T) {
	ca, other := testutil.NewCA(t), testutil.NewCA(t)
	addr := serveAPI(t, newAPIConfig(t, ca), io.Discard)
	past := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	future := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }
	server := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	pair := func(cert, key string) *http.Client { return clientOf(t, ca, cert, key) }
	for _, c := range []struct {
		what   string
		client *http.Client
		in     bool
	}{
		{"a certificate of the authority", pair(ca.Client(t, "alice", nil)), true},
		{"none", pair("", ""), false},
		{"one of another authority", pair(other.Client(t, "alice", nil)), false},
		{"one that has expired", pair(ca.Client(t, "past", past)), false},
		{"one that is not valid yet", pair(ca.Client(t, "future", future)), false},
		{"one for servers", pair(ca.Client(t, "server2", server)), false},
	} {
		if in, err := ask(c.client, addr); in != c.in || in != (err == nil) {
			t.Errorf("%s: let in %v, %v", c.what, in, err)
		}
	}
	if resp, err := http.Get("http://" + addr + "/v1/status"); err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("without TLS: status %d", resp.StatusCode)
		}
	}
}

// A configuration that is weakened while the agent runs closes the API: nobody is let in until it is right
// again. The log says so once. An authority that is replaced lets nobody of the old one in, also who has a session.
func TestAPIConfigReload(t *testing.T) {
	ca, next := testutil.NewCA(t), testutil.NewCA(t)
	c := newAPIConfig(t, ca)
	var out syncBuffer
	addr := serveAPI(t, c, &out)
	cert, key := ca.Client(t, "alice", nil)
	alice, nobody := clientOf(t, ca, cert, key), clientOf(t, ca, "", "")
	told := 0
	for text := range c.weak() {
		c.write(t, text)
		for who, client := range map[string]*http.Client{"alice": alice, "nobody": nobody} {
			if in, err := ask(client, addr); in || err == nil {
				t.Errorf("%s\nlets %s in", text, who)
			}
		}
		told++
		c.write(t, c.right())
		if in, err := ask(alice, addr); !in {
			t.Errorf("after\n%s\nthe right one lets nobody in: %v", text, err)
		}
		if closed, open := strings.Count(out.String(), "the API answers nobody"), strings.Count(out.String(), "the API answers again"); closed != told || open != told {
			t.Errorf("the log says %d times that the API is closed, %d times that it is open again; want %d", closed, open, told)
		}
	}
	if err := os.Remove(c.file); err != nil {
		t.Fatal(err)
	}
	if in, err := ask(alice, addr); in || err == nil {
		t.Error("without the file alice is let in")
	}
	c.clients = next.File
	c.write(t, c.right())
	if in, err := ask(alice, addr); in || err == nil {
		t.Error("alice is let in by another authority than hers")
	}
	cert, key = next.Client(t, "bob", nil)
	if in, err := ask(clientOf(t, ca, cert, key), addr); !in {
		t.Errorf("bob, of the new authority, is not let in: %v", err)
	}
}

// Who connects and says nothing, or never ends his request, is cut off; however many do, others come in afterwards;
// and of handshakes that fail the log tells once, with how many.
func TestAPIStalled(t *testing.T) {
	ca := testutil.NewCA(t)
	var out syncBuffer
	addr := serveAPI(t, newAPIConfig(t, ca), &out)
	cert, key := ca.Client(t, "alice", nil)
	alice := clientOf(t, ca, cert, key)
	var stalled []net.Conn
	for i := range 200 { // more than are served at once
		c, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			io.WriteString(c, "\x16\x03\x01") // the beginning of a handshake
		}
		stalled = append(stalled, c)
	}
	if in, err := ask(alice, addr); !in {
		t.Errorf("behind those who say nothing nobody is let in: %v", err)
	}
	for i, c := range stalled {
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d is still open", i)
		}
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	unfinished, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	defer unfinished.Close()
	if _, err := io.WriteString(unfinished, "GET /v1/status HTTP/1.1\r\nHost:"); err != nil {
		t.Fatal(err)
	}
	if err := unfinished.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, unfinished); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a request that is never finished is waited for")
	}
	if n := strings.Count(out.String(), "\n"); n == 0 || n > 3 {
		t.Errorf("of %d handshakes that failed the log has %d lines:\n%s", len(stalled), n, out.String())
	}
}
