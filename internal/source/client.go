// Package source is where answers come from.
package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
)

// client asks an agent.
type client struct {
	where string // it is, of errors
	base  string // of URLs
	far   *far   // which it is; nil: that on a socket of this machine
	http  http.Client
}

// response is what the agent says: an object, or objects a line each. The caller
// closes it.
type response struct {
	io.ReadCloser
	unfinished int // as of tracer.Snapshot
	note       string
	trailer    http.Header // there once the body was read
}

const (
	// aliveWithin is how long an agent may take to accept a connection and to say that
	// it lives; firstByteWithin how long for the beginning of an answer, which may wait
	// for its turn (turnWithin). What follows has no limit.
	aliveWithin     = 5 * time.Second
	firstByteWithin = 30 * time.Second
)

// ErrSilent is an agent that has the socket, and does not answer on it.
var ErrSilent = errors.New("it does not answer")

// Dial returns the source that is the agent which answers on the socket. The error wraps
// ErrSilent where there is one that does not within 5 s.
func Dial(socket string) (*Remote, error) { return dial(socket, aliveWithin) }

// dial is Dial of an agent that has some other time to answer.
func dial(socket string, within time.Duration) (*Remote, error) {
	c := newClient(socket)
	status, _, err := c.alive(within)
	if err != nil {
		return nil, err
	}
	return &Remote{client: c, partialView: status.PartialView}, nil // if it has none, the next request says what is wrong
}

// alive asks for the status, which an agent tells at once. It is zero if what answers has none; answered is the
// status of HTTP.
func (c *client) alive(within time.Duration) (status api.Status, answered string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	resp, err := c.do(ctx, "/v1/status")
	if err != nil && ctx.Err() != nil {
		return status, "", fmt.Errorf("ask the agent %s: %w within %v", c.where, c.silent(), within)
	} else if err != nil {
		return status, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // to its end: the connection is used again
	if err != nil || resp.StatusCode != http.StatusOK || json.Unmarshal(body, &status) != nil {
		return api.Status{}, resp.Status, nil
	}
	return status, resp.Status, nil
}

// readAtOnce is how much of an answer is received with one system call: events can come at 70 MB/s.
const readAtOnce = 64 << 10

func newClient(socket string) *client {
	return &client{where: "on " + socket, base: "http://porthole", http: http.Client{Transport: &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return connect(ctx, socket) },
		DisableCompression:    true,
		ResponseHeaderTimeout: firstByteWithin,
		ReadBufferSize:        readAtOnce,
	}}}
}

// connect waits while the queue of the socket is full: the kernel refuses that with
// EAGAIN.
func connect(ctx context.Context, socket string) (net.Conn, error) {
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", socket)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// do sends a request: what is path and query.
func (c *client) do(ctx context.Context, what string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+what, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	resp, err := c.http.Do(req)
	var failed *url.Error
	if errors.As(err, &failed) { // its text has an address that means nothing
		err = failed.Err
	}
	var names *net.OpError
	switch {
	case err == nil:
		return resp, nil
	case c.far != nil && ctx.Err() == nil:
		err = c.far.explain(ctx, err)
	case errors.As(err, &names): // the socket
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	return nil, fmt.Errorf("ask the agent %s: %w", c.where, err)
}

// silent is the error of an agent that does not answer.
func (c *client) silent() error {
	if c.far != nil {
		return errNoAnswer
	}
	return ErrSilent
}

// get asks for a path with parameters. What the agent does not accept is a *query.Wrong.
func (c *client) get(ctx context.Context, path string, values query.Values) (*response, error) {
	resp, err := c.do(ctx, path+"?"+query.Encode(values).Encode())
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() && ctx.Err() == nil {
		return nil, fmt.Errorf("ask the agent %s: %w within %v", c.where, c.silent(), firstByteWithin)
	} else if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		var refused api.Refusal
		if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&refused); err != nil {
			return nil, fmt.Errorf("ask the agent %s: %s: %w", c.where, resp.Status, err)
		}
		err := fmt.Errorf("the agent: %s", refused.Error)
		if resp.StatusCode == http.StatusBadRequest {
			return nil, &query.Wrong{Err: err}
		}
		return nil, err
	}
	unfinished, err := strconv.Atoi(resp.Header.Get(api.UnfinishedHeader))
	if err != nil {
		unfinished = 0 // not there
	}
	note, err := url.QueryUnescape(resp.Header.Get(api.NoteHeader))
	if err != nil {
		note = ""
	}
	note = identity.Safe(note)
	return &response{resp.Body, unfinished, note, resp.Trailer}, nil
}
