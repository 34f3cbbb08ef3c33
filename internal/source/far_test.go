package source

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// farAgent is a server over TLS that wants certificates of ca, and who may ask it.
func farAgent(t *testing.T, ca *testutil.CA, edit func(*x509.Certificate), h http.Handler) Far {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	pair, err := tls.LoadX509KeyPair(ca.Server(t, edit))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(text)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	s.StartTLS()
	t.Cleanup(s.Close)
	to := Far{URL: s.URL, CAFile: ca.File}
	to.CertFile, to.KeyFile = ca.Client(t, "alice", nil)
	return to
}

// agentWith answers as an agent does: the paths of answers with those, /v1/status by itself.
func agentWith(answers map[string]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/status" {
			io.WriteString(w, `{"version":"1","ok":true,"partial_view":["mount something"]}`)
			return
		}
		answer, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"error":"nothing is at %s"}`, r.URL.Path)
			return
		}
		io.WriteString(w, answer)
	})
}

// listens returns the address of a listener that accept serves.
func listens(t *testing.T, accept func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go accept(c)
		}
	}()
	return "https://" + l.Addr().String()
}

// Whatever keeps an agent elsewhere from being asked is said in one line that names the agent, or the file, and what
// is wrong.
func TestFarErrors(t *testing.T) {
	ca, other := testutil.NewCA(t), testutil.NewCA(t)
	agent := agentWith(nil)
	good := farAgent(t, ca, nil, agent)
	if _, err := DialFar(good); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	with := func(edit func(*Far)) Far {
		f := good
		edit(&f)
		return f
	}
	shows := func(cert, key string) Far { return with(func(f *Far) { f.CertFile, f.KeyFile = cert, key }) }
	past := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC), time.Date(2021, 1, 2, 0, 0, 0, 0, time.UTC)
	}
	ofWeb1 := func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{"web1"}, nil }
	no := func(status int, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://localhost:1/")
			w.WriteHeader(status)
			io.WriteString(w, body)
		})
	}
	plain := httptest.NewServer(agent)
	defer plain.Close()
	closed := listens(t, func(net.Conn) {})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "https://" + l.Addr().String()
	l.Close()
	notPEM := with(func(f *Far) { f.CAFile = f.KeyFile })
	for _, c := range []struct {
		what string
		to   Far
		want string // HOST is that of the URL
	}{
		{"no URL", with(func(f *Far) { f.URL = "web1:9656" }), `--agent.url: "web1:9656": want https://HOST:PORT`},
		{"http", with(func(f *Far) { f.URL = "http://web1:9656" }), `--agent.url: "http://web1:9656": want https://HOST:PORT`},
		{"a path", with(func(f *Far) { f.URL = "https://web1/v1" }), `--agent.url: "https://web1/v1": want https://HOST:PORT`},
		{"no port", with(func(f *Far) { f.URL = "https://web1:0" }), `--agent.url: "https://web1:0": port "0": want a number from 1 to 65535`},
		{"no CA file", with(func(f *Far) { f.CAFile = "/nowhere/ca.pem" }), "--agent.ca-file: open /nowhere/ca.pem: no such file or directory"},
		{"no CA", notPEM, "--agent.ca-file: " + notPEM.CAFile + ": want certificates as PEM"},
		{"no key", with(func(f *Far) { f.KeyFile = f.CertFile }), "--agent.cert-file, --agent.key-file: tls: "},
		{"another CA", with(func(f *Far) { f.CAFile = other.File }), "ask the agent at https://HOST: its certificate is not signed by " + other.File},
		{"the system's CAs", with(func(f *Far) { f.CAFile = "" }), "ask the agent at https://HOST: its certificate is signed by no authority of the system's: --agent.ca-file names another"},
		{"expired", farAgent(t, ca, past, agent), "ask the agent at https://HOST: its certificate counts from 2020-01-02 00:00 UTC to 2021-01-02 00:00 UTC"},
		{"another name", farAgent(t, ca, ofWeb1, agent), "ask the agent at https://HOST: its certificate does not count: x509: "},
		{"a client of another CA", shows(other.Client(t, "bob", nil)), "ask the agent at https://HOST: it refuses the certificate CERT (unknown certificate authority)"},
		{"a client that has expired", shows(ca.Client(t, "carol", past)), "ask the agent at https://HOST: it refuses the certificate CERT (expired certificate)"},
		{"a server's certificate", shows(ca.Server(t, nil)), "ask the agent at https://HOST: it refuses the certificate CERT (bad certificate)"},
		{"no TLS", with(func(f *Far) { f.URL = strings.Replace(plain.URL, "http:", "https:", 1) }), "ask the agent at https://HOST: it does not speak TLS"},
		{"nobody listens", with(func(f *Far) { f.URL = nobody }), "ask the agent at https://HOST: connection refused: nothing listens there"},
		{"no such host", with(func(f *Far) { f.URL = "https://no-such-host.invalid:1" }), "ask the agent at https://HOST: look up no-such-host.invalid: "},
		{"it says nothing", with(func(f *Far) { f.URL = closed }), "ask the agent at https://HOST: it does not answer within 500ms"},
		{"it hangs up", with(func(f *Far) { f.URL = listens(t, func(c net.Conn) { c.Close() }) }), "ask the agent at https://HOST: it hangs up: "},
		{"metrics", farAgent(t, ca, nil, no(404, `{"error":"nothing is at /v1/status"}`)), "ask the agent at https://HOST: who answers there is no agent, or does not serve the API on that port (404 Not Found)"},
		{"a page", farAgent(t, ca, nil, no(200, `<html>`)), "ask the agent at https://HOST: who answers there is no agent, or does not serve the API on that port (200 OK)"},
		{"another's JSON", farAgent(t, ca, nil, no(200, `{}`)), "ask the agent at https://HOST: who answers there is no agent, or does not serve the API on that port (200 OK)"},
		{"a redirect", farAgent(t, ca, nil, no(302, ``)), "ask the agent at https://HOST: who answers there is no agent, or does not serve the API on that port (302 Found)"},
	} {
		within := patience
		if c.what == "it says nothing" {
			within = 500 * time.Millisecond
		}
		_, err := dialFar(c.to, within)
		want := strings.NewReplacer("HOST", strings.TrimPrefix(c.to.URL, "https://"), "CERT", c.to.CertFile).Replace(c.want)
		if c.what == "no URL" || c.what == "http" || c.what == "a path" || c.what == "no port" {
			want = c.want
		}
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error\n%v\nwant\n%s", c.what, err, want)
		}
		t.Logf("%s: %v", c.what, err)
		if errors.Is(err, ErrSilent) {
			t.Errorf("%s: it is taken for an agent of this machine", c.what)
		}
	}
}

// patience is how long a busy machine may take for what a test waits for.
const patience = time.Minute

// An agent that lets nobody in says so, also where what was sent to it makes the kernel forget what it said.
func TestFarClosed(t *testing.T) {
	ca := testutil.NewCA(t)
	to := farAgent(t, ca, nil, agentWith(nil))
	pair, err := tls.LoadX509KeyPair(ca.Server(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, errors.New("no") }}
	to.URL = listens(t, func(c net.Conn) {
		defer c.Close()
		_ = tls.Server(c, config).Handshake() // as an agent whose configuration is wrong
	})
	_, err = DialFar(to)
	if err == nil || !strings.Contains(err.Error(), "it lets nobody in, its log says why (internal error)") {
		t.Errorf("error %v", err)
	}
}

// Nothing of this machine is told as if it were of another: no name of a namespace, a user, or a service,
// and no rule of NAT; and where to stop a process is said.
func TestFarNothingLocal(t *testing.T) {
	var own uint32
	if names, err := (&Local{}).Names(t.Context()); err != nil {
		t.Fatal(err)
	} else {
		defer names.Cgroups.Close()
		host, err := names.NetNS.Want("host")
		if err != nil {
			t.Fatal(err)
		}
		id, err := host.ID()
		if err != nil {
			t.Fatal(err)
		}
		own = id.Inode
	}
	const row = `{"proto":"tcp","state":"LISTEN","role":"listener","local_ip":"127.0.0.1","local_port":22,"netns":NS,"netns_cookie":7,"uid":0,` +
		`"holders":[{"pid":1,"comm":"init","fd":3,"uid":0}],"origin":"snapshot"}`
	socket := strings.Replace(row, "NS", strconv.Itoa(int(own)), 1)
	to := farAgent(t, testutil.NewCA(t), nil, agentWith(map[string]string{
		"/v1/namespaces": `{"netns":1,"netns_cookie":1,"name":"host"}` + "\n" + `{"netns":2,"netns_cookie":2,"name":"blue"}` + "\n" + `{"netns":3,"name":"red"}` + "\n",
		"/v1/sockets":    socket + "\n" + strings.Replace(strings.Replace(row, "NS", "2", 1), `:7`, `:2`, 1) + "\n" + strings.Replace(strings.Replace(row, "NS", "3", 1), `:7`, `:0`, 1) + "\n",
		"/v1/ports/22": `{"port":22,"range":"system","service":"theirs","in_ephemeral_range":false,"range_low":1,"range_high":2,"reserved":false,"netns":1,` +
			`"nat_unread":"NAT was not looked at","sockets":[` + socket + `],"history":[]}`,
		"/v1/events": `{"time":"2026-01-01T00:00:00Z","event":"listen","proto":"tcp","local_ip":"127.0.0.1","local_port":22,"netns":` + strconv.Itoa(int(own)) + `,"netns_cookie":7}` + "\n",
	}))
	src, err := Open(Choice{Far: &to})
	if err != nil {
		t.Fatal(err)
	}
	machine := "the agent's machine (" + strings.TrimPrefix(to.URL, "https://") + ")"
	if there := src.Elsewhere(); there != machine || src.PIDs() != "" {
		t.Errorf("it is %q, pids are %q", there, src.PIDs())
	}
	if view := src.PartialView(); len(view) != 1 || view[0] != machine+": mount something" {
		t.Errorf("what is not seen there: %q", view)
	}
	report, err := src.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := report.Text(&text, render.Style{}); err != nil || !strings.HasPrefix(text.String(), "on "+machine+":\nporthole works here") {
		t.Errorf("%v:\n%s", err, text.String())
	}
	text.Reset()
	q, err := query.ParseSockets(nil)
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := src.Sockets(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	defer sockets.Close()
	if err := sockets.Text(&text, render.Style{}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{strconv.Itoa(int(own)), "blue", "3"} { // a number without a cookie may be another's
		line := strings.Split(text.String(), "\n")[i+1]
		if fields := strings.Fields(line); fields[7] != want {
			t.Errorf("namespace %s, want %s: %s", fields[7], want, line)
		}
	}
	port, err := src.Port(t.Context(), query.Port{Number: 22, Limit: render.MaxShown})
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	text.Reset()
	if err := port.Text(&text, render.Style{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"user 0)", "in network namespace " + strconv.Itoa(int(own)), "NAT was not looked at", "22: system (0-1023); theirs/tcp; ssh/udp", "outside that machine's ephemeral range 1-2",
		"stop it, on the agent's machine (" + strings.TrimPrefix(to.URL, "https://") + "): kill 1\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("not %q in\n%s", want, text.String())
		}
	}
	if strings.Contains(text.String(), "root") || strings.Contains(text.String(), "this machine") || !port.Held() {
		t.Errorf("of this machine, or nobody has it:\n%s", text.String())
	}
	eq, err := query.ParseEvents(nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events, err := src.Events(ctx, eq)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	if what, err := events.Next(); what != Event || err != nil {
		t.Fatalf("%v, %v", what, err)
	}
	if line, err := events.AppendText(nil, render.Style{}); err != nil || !strings.Contains(string(line), "netns="+strconv.Itoa(int(own))) || events.Begun().PIDs != "" {
		t.Errorf("%s, %v", line, err)
	}
}
