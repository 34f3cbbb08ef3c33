package source

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/identity"
)

// Far is an agent that answers over TLS, on another machine or wherever its URL leads.
type Far struct {
	URL               string // as CheckURL wants it
	CAFile            string // the certificates, as PEM, that the agent's is to be signed by; "": the system's
	CertFile, KeyFile string // what is shown to the agent
}

// CheckURL tells whether a word is the URL of an agent.
func CheckURL(word string) error {
	u, err := url.Parse(word)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return fmt.Errorf("%q: want https://HOST:PORT", word)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%q: port %q: want a number from 1 to 65535", word, port)
		}
	}
	return nil
}

// far is an agent elsewhere, and what its machine calls things. Nothing of this machine is true there.
type far struct {
	Far
	host string // of the URL, with its port
	tls  *tls.Config

	mu    sync.Mutex
	names *identity.NetNSNames // as last told; nil: never yet
	told  time.Time
}

// newFar reads the certificates.
func newFar(f Far) (*far, error) {
	if err := CheckURL(f.URL); err != nil {
		return nil, fmt.Errorf("--agent.url: %w", err)
	}
	u, err := url.Parse(f.URL)
	if err != nil {
		return nil, err
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	to := &far{Far: f, host: net.JoinHostPort(u.Hostname(), port), tls: &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}}
	if f.CAFile != "" {
		text, err := os.ReadFile(f.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--agent.ca-file: %w", err)
		}
		to.tls.RootCAs = x509.NewCertPool()
		if !to.tls.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--agent.ca-file: %s: want certificates as PEM", f.CAFile)
		}
	}
	pair, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("--agent.cert-file, --agent.key-file: %w", err)
	}
	// It is shown whatever the agent asks for: why it is refused says more than that none was shown.
	to.tls.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return to, nil
}

// String names the agent.
func (f *far) String() string { return "at https://" + f.host }

// dial connects, and finds out whether the agent is who it is to be.
func (f *far) dial(ctx context.Context) (*tls.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", f.host)
	if err != nil {
		return nil, err
	}
	over := tls.Client(conn, f.tls)
	if err := over.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return over, nil
}

// client asks over TLS, through no proxy.
func (f *far) client() *client {
	return &client{where: f.String(), base: (&url.URL{Scheme: "https", Host: f.host}).String(), far: f, http: http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialTLSContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return f.dial(ctx) },
			DisableCompression:    true,
			ResponseHeaderTimeout: firstByteWithin,
			ReadBufferSize:        readAtOnce,
		},
	}}
}

// errNoAnswer is ErrSilent of an agent elsewhere.
var errNoAnswer = errors.New("it does not answer")

// DialFar returns the source that is an agent elsewhere. The error says in one line what is wrong: with the
// URL, with the files, with either certificate, or with who answers there.
func DialFar(f Far) (*Remote, error) { return dialFar(f, aliveWithin) }

func dialFar(to Far, within time.Duration) (*Remote, error) {
	f, err := newFar(to)
	if err != nil {
		return nil, err
	}
	c := f.client()
	status, answered, err := c.alive(within)
	if err != nil {
		return nil, err
	}
	if status.Version == "" {
		return nil, fmt.Errorf("ask the agent %s: who answers there is no agent, or does not serve the API on that port (%s)", f, answered)
	}
	r := &Remote{client: c}
	for _, sentence := range status.PartialView { // which may say what is to be done there
		r.partialView = append(r.partialView, f.machine()+": "+sentence)
	}
	return r, nil
}

// explain says why an agent elsewhere cannot be asked.
func (f *far) explain(ctx context.Context, err error) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var plain tls.RecordHeaderError
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.As(err, &unknown) && f.CAFile == "":
		return errors.New("its certificate is signed by no authority of the system's: --agent.ca-file names another")
	case errors.As(err, &unknown):
		return fmt.Errorf("its certificate is not signed by %s", f.CAFile)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("its certificate counts from %s to %s", day(invalid.Cert.NotBefore), day(invalid.Cert.NotAfter))
	case errors.As(err, &host):
		return fmt.Errorf("its certificate does not count: %w", host)
	case errors.As(err, &invalid):
		return fmt.Errorf("its certificate does not count: %w", invalid)
	case errors.As(err, &plain):
		return errors.New("it does not speak TLS")
	case errors.As(err, &op) && op.Op == "remote error":
		return f.refused(op.Err.Error())
	case errors.As(err, &dns): // its text has the host as it is
		return fmt.Errorf("look up %s: %s", identity.Safe(dns.Name), identity.Safe(dns.Err))
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nothing listens there", syscall.ECONNREFUSED)
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF):
		return f.lookAgain(ctx, err)
	}
	return err
}

// lookAgain connects once more and waits, to hear what the agent says before it hangs up: what was sent to it
// meanwhile can have the kernel throw that away.
func (f *far) lookAgain(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	conn, dialErr := f.dial(ctx)
	if dialErr == nil {
		defer conn.Close()
		if dialErr = conn.SetReadDeadline(time.Now().Add(lookWithin)); dialErr == nil {
			_, dialErr = conn.Read(make([]byte, 1))
		}
	}
	var op *net.OpError
	if errors.As(dialErr, &op) && op.Op == "remote error" {
		return f.refused(op.Err.Error())
	}
	return fmt.Errorf("it hangs up: %w", err)
}

const lookWithin = 2 * time.Second

// refused says what an alert of TLS means here.
func (f *far) refused(alert string) error {
	alert = strings.TrimPrefix(alert, "tls: ")
	switch alert {
	case "internal error":
		return fmt.Errorf("it lets nobody in, its log says why (%s)", alert)
	case "handshake failure", "protocol version not supported":
		return fmt.Errorf("it speaks another TLS (%s)", alert)
	}
	return fmt.Errorf("it refuses the certificate %s (%s)", f.CertFile, alert)
}

// day is a time as a certificate has it.
func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// machine is the machine of the agent in words.
func (f *far) machine() string { return "the agent's machine (" + f.host + ")" }

// namesOf returns the names that things have on the machine of the agent, as far as it tells them: those of
// network namespaces. Of users there are numbers, of services IANA's names. They stay what they were
// unless they are asked for again.
func (f *far) namesOf(ctx context.Context, c *client) (*identity.Names, error) {
	spaces, err := f.look(ctx, c)
	if err != nil {
		return nil, err
	}
	return &identity.Names{
		Cgroups: identity.NewCgroups(""), NetNS: spaces, Elsewhere: f.machine(),
		User: func(uid uint32) string { return strconv.FormatUint(uint64(uid), 10) },
	}, nil
}

// namesAge is how old names are at most that are not asked for again.
const namesAge = time.Second

// look asks for the names of namespaces, unless that was just done.
func (f *far) look(ctx context.Context, c *client) (*identity.NetNSNames, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names != nil && time.Since(f.told) < namesAge {
		return f.names, nil
	}
	f.told = time.Now() // also where it fails: it is not tried for each event
	a, err := c.get(ctx, "/v1/namespaces", nil)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	host := uint32(0)
	byID := make(map[identity.NetNS]string)
	err = eachRow(bufio.NewReader(a), func(ns *api.NetNS) {
		switch {
		case ns.Name == identity.HostName:
			host = ns.NetNS
		case ns.Cookie == 0: // its number may be another's by the time of an answer
			ns.Name = ""
		}
		byID[identity.NetNS{Inode: ns.NetNS, Cookie: ns.Cookie}] = ns.Name
	})
	if err != nil {
		return nil, err
	}
	if f.names == nil {
		f.names = identity.FixedNetNSNames(host, byID)
	} else {
		f.names.Tell(byID)
	}
	return f.names, nil
}

// renew asks for the names again if anybody has any. Where that fails they stay as they are: what they say
// is true of namespaces that are gone, too.
func (r *Remote) renew(ctx context.Context) {
	f := r.client.far
	if f == nil {
		return
	}
	f.mu.Lock()
	used := f.names != nil
	f.mu.Unlock()
	if used {
		_, _ = f.look(ctx, r.client)
	}
}
