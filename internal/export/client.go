package export

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	colpb "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Retry says why records are sent again. It is a label of a metric.
type Retry uint8

// The reasons.
const (
	RetryNetwork     Retry = iota // no connection, or it broke
	RetryTimeout                  // no answer in time
	RetryTLS                      // a certificate, or no TLS at all
	RetryThrottled                // 429
	RetryUnavailable              // 502, 503, 504
	RetryDenied                   // 401, 403
	RetryEndpoint                 // whatever answers takes no OTLP: 404, 405, a redirect, gRPC
	RetryOther                    // any other status
	retries
)

var retryNames = [retries]string{"network", "timeout", "tls", "throttled", "unavailable", "denied", "endpoint", "other"}

func (r Retry) String() string { return retryNames[r] }

// Retries returns every reason there is.
func Retries() []Retry {
	return []Retry{RetryNetwork, RetryTimeout, RetryTLS, RetryThrottled, RetryUnavailable, RetryDenied, RetryEndpoint, RetryOther}
}

// sendError is why a batch was not taken.
type sendError struct {
	why   Retry
	after time.Duration // not to be tried again before; 0: the endpoint does not say
	// few: it is tried a few times more: what was sent may be the cause. Else it is for as long as it takes.
	few   bool
	large bool // less at once may be taken
	err   error
}

func (e *sendError) Error() string { return e.err.Error() }
func (e *sendError) Unwrap() error { return e.err }

// client posts batches.
type client struct {
	http http.Client
	cfg  *Config
}

// maxAnswer is how much of an answer is read.
const maxAnswer = 64 << 10

func newClient(cfg *Config) *client {
	return &client{cfg: cfg, http: http.Client{
		Timeout: cfg.timeout,
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg.tls, ForceAttemptHTTP2: true, MaxIdleConns: 1, IdleConnTimeout: 90 * time.Second,
			DialContext: (&net.Dialer{Timeout: cfg.timeout}).DialContext, TLSHandshakeTimeout: cfg.timeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // who sends secrets goes nowhere else
	}}
}

// post sends a batch. rejected is how many of its records were refused for good, and why. The error is a *sendError.
func (c *client) post(ctx context.Context, b *batch) (rejected int, why string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.cfg.url.String(), bytes.NewReader(b.body))
	if err != nil {
		return 0, "", &sendError{why: RetryEndpoint, err: err}
	}
	for name, values := range c.cfg.headers {
		req.Header[name] = values
		if name == "Host" {
			req.Host = values[0]
		}
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("User-Agent", "porthole/"+c.cfg.version)
	if c.cfg.gzip {
		req.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, "", c.explain(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, "", c.explain(ctx, err)
	}
	if err := c.refusal(resp, body); err != nil {
		return 0, "", err
	}
	var answer colpb.ExportLogsServiceResponse
	if len(body) > 0 && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-protobuf") && proto.Unmarshal(body, &answer) == nil {
		if p := answer.GetPartialSuccess(); p != nil {
			return int(min(max(p.RejectedLogRecords, 0), int64(b.records))), p.ErrorMessage, nil
		}
	}
	return 0, "", nil
}

// What there is to say of an endpoint that speaks something else.
const (
	speaksGRPC = "it speaks gRPC: want the port that takes OTLP over HTTP, as 4318"
	wantsTLS   = "wants TLS: give it as https://"
)

// refusal is why an answer is none that takes the batch; nil: it does.
func (c *client) refusal(resp *http.Response, body []byte) error {
	code := resp.StatusCode
	e := &sendError{why: RetryOther, after: retryAfter(resp.Header.Get("Retry-After"), time.Now())}
	what := resp.Status
	if text := told(resp, body); text != "" {
		what += ": " + text
	}
	e.err = fmt.Errorf("%s answers %s", c.cfg.Endpoint(), what)
	switch {
	case strings.HasPrefix(resp.Header.Get("Content-Type"), "application/grpc"):
		e.why, e.err = RetryEndpoint, fmt.Errorf("%s: %s", c.cfg.Endpoint(), speaksGRPC)
	case code >= 200 && code < 300:
		return nil
	case code >= 300 && code < 400:
		e.why, e.err = RetryEndpoint, fmt.Errorf("%s redirects to %s, which is not followed: give that as the endpoint", c.cfg.Endpoint(), printable(resp.Header.Get("Location")))
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		e.why = RetryDenied
	case code == http.StatusNotFound || code == http.StatusMethodNotAllowed:
		e.why = RetryEndpoint
	case code == http.StatusTooManyRequests:
		e.why = RetryThrottled
	case code == http.StatusBadGateway || code == http.StatusServiceUnavailable || code == http.StatusGatewayTimeout:
		e.why = RetryUnavailable
	case code == http.StatusRequestTimeout:
		e.why = RetryTimeout
	case code == http.StatusBadRequest && strings.Contains(string(body), "HTTP request to an HTTPS server"):
		e.why, e.err = RetryTLS, fmt.Errorf("%s %s", c.cfg.Endpoint(), wantsTLS)
	case code == http.StatusRequestEntityTooLarge:
		e.large, e.few = true, true
	default:
		e.few = true
	}
	return e
}

// explain says what went wrong before there was an answer.
func (c *client) explain(ctx context.Context, err error) *sendError {
	var asked *url.Error
	if errors.As(err, &asked) {
		err = asked.Err
	}
	at := c.cfg.Endpoint()
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var alert tls.AlertError
	var record tls.RecordHeaderError
	var timeout net.Error
	text := err.Error()
	e := &sendError{why: RetryNetwork}
	switch {
	case errors.As(err, &authority):
		e.why, e.err = RetryTLS, fmt.Errorf("%s: its certificate is signed by an authority that is not known here: --otlp.ca-file names others: %w", at, err)
	case errors.As(err, &host), errors.As(err, &invalid):
		e.why, e.err = RetryTLS, fmt.Errorf("%s: its certificate is not accepted: %w", at, err)
	case errors.As(err, &record), strings.Contains(text, "server gave HTTP response to HTTPS client"):
		e.why, e.err = RetryTLS, fmt.Errorf("%s speaks no TLS: give it as http://", at)
	case strings.Contains(text, "malformed HTTP response \"\\x00\\x00"), strings.Contains(text, "no application protocol"):
		e.why, e.err = RetryEndpoint, fmt.Errorf("%s: %s", at, speaksGRPC) // a frame of HTTP/2
	case errors.As(err, &alert), strings.Contains(text, "tls: "):
		e.why, e.err = RetryTLS, fmt.Errorf("%s: %w", at, err)
	case errors.As(err, &timeout) && timeout.Timeout():
		e.why, e.err = RetryTimeout, fmt.Errorf("%s: no answer within %v", at, c.cfg.timeout)
	case c.cfg.url.Scheme == "http" && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)):
		if e.why, e.err = c.probe(ctx); e.err == nil {
			e.why, e.err = RetryNetwork, fmt.Errorf("%s: %w", at, err)
		}
	default:
		e.err = fmt.Errorf("%s: %w", at, err)
	}
	return e
}

// probeWithin is how long it may take to find out what an endpoint speaks.
const probeWithin = 2 * time.Second

// probe finds out what an endpoint speaks that hangs up on HTTP/1: what it sent may be lost with the connection.
func (c *client) probe(ctx context.Context) (Retry, error) {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	addr := c.cfg.url.Host
	if c.cfg.url.Port() == "" {
		addr = net.JoinHostPort(c.cfg.url.Hostname(), "80")
	}
	secure := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // nothing is sent
	if conn, err := secure.DialContext(ctx, "tcp", addr); err == nil {
		_ = conn.Close()
		return RetryTLS, fmt.Errorf("%s %s", c.cfg.Endpoint(), wantsTLS)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, nil
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	const settings = 4 // the frame of HTTP/2 that either side begins with
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return 0, nil
	}
	var frame [9]byte
	if _, err := io.ReadFull(conn, frame[:]); err == nil && frame[3] == settings {
		return RetryEndpoint, fmt.Errorf("%s: %s", c.cfg.Endpoint(), speaksGRPC)
	}
	return 0, nil
}

// told is the first line of what an answer says, cut.
func told(resp *http.Response, body []byte) string {
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-protobuf") {
		body = statusMessage(body)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	if strings.HasPrefix(line, "<") {
		return "" // a page
	}
	return printable(line)
}

// statusMessage is the message of a google.rpc.Status.
func statusMessage(b []byte) []byte {
	const message = 2
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		b = b[n:]
		if number == message && kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b)
			return v
		}
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return nil
		}
		b = b[n:]
	}
	return nil
}

// printable is what somebody else says, as it can stand in a line of the log.
func printable(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// retryAfter reads the header: seconds, or a date.
func retryAfter(value string, now time.Time) time.Duration {
	if value == "" {
		return 0
	}
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
