// Package export sends events to whatever takes OTLP logs over HTTP, at least once. Who reads events from
// the kernel never waits for it: what does not fit into a bounded queue is read from the history on disk
// later, where there is one, and else is counted as lost, and told upstream. docs/otlp.md has the records.
package export

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Settings are what a user has asked for. What is empty is taken from the variables of OpenTelemetry.
type Settings struct {
	Endpoint                  string   // URL; "" also in the variables: nothing is exported
	Headers                   []string // NAME=VALUE
	CAFile, CertFile, KeyFile string   // PEM
	Events                    []string // as Selection; none: the default
}

// Config says where to export to, and what.
type Config struct {
	url      *url.URL
	headers  http.Header
	tls      *tls.Config
	timeout  time.Duration // of a request
	gzip     bool
	selected selection
	resource []attribute
	version  string

	Dir string       // of the history on disk, where the export keeps how far it has got; "": there is none
	Log *slog.Logger // one line where trouble begins, one where it ends

	retryLeast, retryMost time.Duration // between attempts; 0: the usual
	room                  int           // bytes of the queue; 0: the usual
}

const (
	defaultTimeout = 10 * time.Second
	logsPath       = "/v1/logs"
)

// variables are those of OpenTelemetry, of which the first that is set counts.
type variables func(string) string

func (get variables) first(names ...string) (name, value string) {
	for _, name := range names {
		if v := strings.TrimSpace(get(name)); v != "" {
			return name, v
		}
	}
	return "", ""
}

// ofLogs is the variable of a name for logs, or for all that is exported.
func (get variables) ofLogs(what string) (name, value string) {
	return get.first("OTEL_EXPORTER_OTLP_LOGS_"+what, "OTEL_EXPORTER_OTLP_"+what)
}

// NewConfig checks what can be checked without asking anybody; nil: nothing is to be exported. getenv is
// os.Getenv, version that of porthole. The error names the flag or variable, the value, and what is accepted.
func NewConfig(s Settings, getenv func(string) string, version string) (*Config, error) {
	env := variables(getenv)
	c := &Config{version: version, gzip: true, timeout: defaultTimeout, headers: make(http.Header)}
	var err error
	if c.url, err = endpointOf(s.Endpoint, env); err != nil {
		return nil, err
	}
	if c.url == nil {
		if len(s.Headers)+len(s.Events) > 0 || s.CAFile+s.CertFile+s.KeyFile != "" {
			return nil, errors.New("--otlp.headers, --otlp.ca-file, --otlp.cert-file, --otlp.key-file and --otlp.events go with --otlp.endpoint")
		}
		return nil, nil
	}
	if c.selected, err = parseSelection(s.Events); err != nil {
		return nil, fmt.Errorf("--otlp.events: %w", err)
	}
	if err := c.setHeaders(s.Headers, env); err != nil {
		return nil, err
	}
	if name, v := env.ofLogs("TIMEOUT"); v != "" {
		ms, err := strconv.ParseUint(v, 10, 31)
		if err != nil || ms == 0 {
			return nil, fmt.Errorf("%s: %q: want a number of milliseconds", name, v)
		}
		c.timeout = time.Duration(ms) * time.Millisecond
	}
	if name, v := env.ofLogs("COMPRESSION"); v != "" {
		if v != "gzip" && v != "none" {
			return nil, fmt.Errorf("%s: %q: want gzip or none", name, v)
		}
		c.gzip = v == "gzip"
	}
	if c.tls, err = tlsOf(s, env, c.url.Scheme == "https"); err != nil {
		return nil, err
	}
	c.resource, err = resourceOf(env, version)
	return c, err
}

// Endpoint is where records are sent to, without a password.
func (c *Config) Endpoint() string { return c.url.Redacted() }

// endpointOf is where to send logs to; nil: nowhere. As of OpenTelemetry's SDKs the path of the signal is added, but
// to what is set for logs alone.
func endpointOf(flag string, env variables) (*url.URL, error) {
	name, value, whole := "--otlp.endpoint", flag, false
	if value == "" {
		if name, value = env.first("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"); value != "" {
			whole = true
		} else if name, value = env.first("OTEL_EXPORTER_OTLP_ENDPOINT"); value == "" {
			return nil, nil
		}
		if proto, p := env.ofLogs("PROTOCOL"); p != "" && p != "http/protobuf" {
			return nil, fmt.Errorf("%s: %q: want http/protobuf, the only one that porthole speaks; or give --otlp.endpoint", proto, p)
		}
	}
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%s: %q: want a URL, as http://HOST:4318 or https://HOST", name, value)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("%s: %q: port %q: want a number from 1 to 65535", name, value, port)
		}
	}
	if !whole && !strings.HasSuffix(strings.TrimSuffix(u.Path, "/"), logsPath) {
		u = u.JoinPath(logsPath)
	}
	return u, nil
}

// setHeaders reads those of the variables, whose values are escaped as in URLs, then those of flags.
func (c *Config) setHeaders(flags []string, env variables) error {
	set := func(where, pair string, unescape func(string) (string, error)) error {
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		value, err := unescape(strings.TrimSpace(value))
		if !ok || err != nil || name == "" || strings.ContainsAny(name, " \t\r\n:\"") || strings.ContainsAny(value, "\r\n\x00") {
			return fmt.Errorf("%s: want NAME=VALUE, several with commas between them; not %q", where, name) // a value may be a secret
		}
		c.headers.Set(name, value)
		return nil
	}
	if name, v := env.ofLogs("HEADERS"); v != "" {
		for _, pair := range strings.Split(v, ",") {
			if err := set(name, pair, url.PathUnescape); err != nil {
				return err
			}
		}
	}
	for _, pair := range flags {
		if err := set("--otlp.headers", pair, func(s string) (string, error) { return s, nil }); err != nil {
			return err
		}
	}
	return nil
}

// tlsOf reads certificates. Those of the client are read again for each connection, for they are renewed.
func tlsOf(s Settings, env variables, encrypted bool) (*tls.Config, error) {
	if !encrypted {
		if s.CAFile+s.CertFile+s.KeyFile != "" {
			return nil, errors.New("--otlp.ca-file, --otlp.cert-file and --otlp.key-file go with an endpoint of https")
		}
		return nil, nil
	}
	file := func(flag, given, variable string) (name, path string) {
		if given != "" {
			return flag, given
		}
		return env.ofLogs(variable)
	}
	caName, ca := file("--otlp.ca-file", s.CAFile, "CERTIFICATE")
	certName, cert := file("--otlp.cert-file", s.CertFile, "CLIENT_CERTIFICATE")
	keyName, key := file("--otlp.key-file", s.KeyFile, "CLIENT_KEY")
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", caName, err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: %s: want certificates as PEM", caName, ca)
		}
	}
	if (cert == "") != (key == "") {
		return nil, fmt.Errorf("%s: a certificate of the client and its key go together", cmp.Or(certName, keyName))
	}
	if cert != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", certName, keyName, err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return c, nil
}

// attribute is one of the resource.
type attribute struct{ name, value string }

// resourceOf is what all records have in common: whatever the variables say, and where they say nothing this machine.
func resourceOf(env variables, version string) ([]attribute, error) {
	var out []attribute
	has := func(name string) bool {
		for i := range out {
			if out[i].name == name {
				return true
			}
		}
		return false
	}
	put := func(name, value string) {
		if value = strings.TrimSpace(value); value != "" && !has(name) {
			out = append(out, attribute{name, strings.ToValidUTF8(value, "\uFFFD")})
		}
	}
	_, service := env.first("OTEL_SERVICE_NAME")
	put("service.name", service)
	if name, all := env.first("OTEL_RESOURCE_ATTRIBUTES"); all != "" {
		for _, pair := range strings.Split(all, ",") {
			key, value, ok := strings.Cut(pair, "=")
			value, err := url.PathUnescape(strings.TrimSpace(value))
			if key = strings.TrimSpace(key); !ok || err != nil || key == "" {
				return nil, fmt.Errorf("%s: %q: want NAME=VALUE, several with commas between them", name, pair)
			}
			put(key, value)
		}
	}
	put("service.name", "porthole")
	put("service.version", version)
	if id, err := os.ReadFile("/etc/machine-id"); err == nil {
		put("host.id", string(id))
	}
	if host, err := os.Hostname(); err == nil {
		put("host.name", host)
	}
	_, node := env.first("K8S_NODE_NAME", "NODE_NAME")
	put("k8s.node.name", node)
	return out, nil
}
