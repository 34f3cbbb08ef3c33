package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v2"

	"github.com/porthole-dev/porthole/internal/api"
)

// apiFront is where other machines query the agent: over TLS, with a certificate of their own, and no
// other way.
type apiFront struct {
	listeners []net.Listener
	config    string
	log       *slog.Logger
	failing   atomic.Pointer[string] // what is wrong with the configuration by now, as the log says; nil: nothing
}

// ErrListenAPI is an error of listening for the API over TLS.
var ErrListenAPI = errors.New("listen for the API")

// openAPI listens, once the configuration is found to be right.
func openAPI(cfg Config) (*apiFront, error) {
	f := &apiFront{config: cfg.APIConfig, log: cfg.Log}
	if len(cfg.API) == 0 {
		return f, nil
	}
	if err := CheckAPIConfig(f.config); err != nil {
		return nil, err
	}
	for _, addr := range cfg.API {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			f.close()
			return nil, fmt.Errorf("%w: %w", ErrListenAPI, err)
		}
		f.listeners = append(f.listeners, api.Limit(l))
	}
	return f, nil
}

// urls are where the API is.
func (f *apiFront) urls() []string {
	var out []string
	for _, l := range f.listeners {
		out = append(out, "https://"+l.Addr().String())
	}
	return out
}

// server serves all listeners. HTTP/2 is left out: what bounds and ends an answer is of its connection.
func (f *apiFront) server(h http.Handler) *http.Server {
	s := api.NewHTTP(h, f.log)
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	s.TLSConfig = &tls.Config{GetConfigForClient: f.forClient}
	return s
}

// forClient reads the configuration anew for each connection, as that of /metrics is. If it says less than
// it has to by then, nobody is let in.
func (f *apiFront) forClient(*tls.ClientHelloInfo) (*tls.Config, error) {
	c, err := readAPIConfig(f.config)
	var why *string
	if err != nil {
		text := err.Error()
		why = &text
	}
	switch last := f.failing.Swap(why); {
	case why != nil && (last == nil || *last != *why):
		f.log.Error("the API answers nobody", "error", err)
	case why == nil && last != nil:
		f.log.Warn("the API answers again")
	}
	return c, err
}

// close frees the listeners; their server has closed them if there was one.
func (f *apiFront) close() {
	for _, l := range f.listeners {
		l.Close()
	}
}

// clientAuth is what the configuration of the API has to say of the certificates of clients.
const clientAuth = "RequireAndVerifyClientCert"

// CheckAPIConfig tells whether a file is a configuration of the API: one of exporter-toolkit whose
// tls_server_config wants a certificate of every client, signed by what client_ca_file has. The error names the
// file and what is wanted, on one line; a file that cannot be read is an *fs.PathError.
func CheckAPIConfig(path string) error {
	_, err := readAPIConfig(path)
	return err
}

// readAPIConfig reads a configuration of the API, and makes of it what a server goes by.
func readAPIConfig(path string) (*tls.Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--api.config.file: %w", err)
	}
	wrong := func(err error) error {
		return fmt.Errorf("--api.config.file %s: %s", path, strings.Join(strings.Fields(err.Error()), " "))
	}
	c := web.Config{TLSConfig: web.TLSConfig{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13}}
	if err := yaml.UnmarshalStrict(text, &c); err != nil {
		return nil, wrong(err)
	}
	c.TLSConfig.SetDirectory(filepath.Dir(path))
	clients, err := clientsOf(&c)
	if err != nil {
		return nil, wrong(err)
	}
	server, err := web.ConfigToTLSConfig(&c.TLSConfig)
	if err != nil {
		return nil, wrong(err)
	}
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, clients
	server.NextProtos = []string{"http/1.1"}
	server.SessionTicketsDisabled = true // a session would outlive a change of the authority
	return server, nil
}

// clientsOf is who signs the certificates of clients. The error says what of the configuration is not as
// it has to be.
func clientsOf(c *web.Config) (*x509.CertPool, error) {
	t := &c.TLSConfig
	switch {
	case !t.IsEnabled():
		return nil, errors.New("no tls_server_config: want one with cert_file, key_file, client_ca_file and client_auth_type: " + clientAuth)
	case t.ClientAuth != clientAuth:
		return nil, fmt.Errorf("client_auth_type: %q: want %s, with a client_ca_file", t.ClientAuth, clientAuth)
	case t.ClientCAs == "":
		return nil, errors.New("no client_ca_file: want a file with the certificates that sign those of clients")
	case len(c.Users) > 0, len(c.HTTPConfig.Header) > 0, c.RateLimiterConfig != (web.RateLimiterConfig{}):
		return nil, errors.New("basic_auth_users, rate_limit and headers: want tls_server_config alone, for the API knows clients by their certificates")
	}
	pem, err := os.ReadFile(t.ClientCAs)
	if err != nil {
		return nil, fmt.Errorf("client_ca_file: %w", err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("client_ca_file: %s: want certificates as PEM", t.ClientCAs)
	}
	return clients, nil
}
