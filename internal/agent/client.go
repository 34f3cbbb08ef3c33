package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"

	"github.com/porthole-dev/porthole/internal/filter"
)

// Client asks the agent on a socket.
type Client struct {
	socket string
	http   http.Client
}

// Answer is what the agent says: an object, or objects a line each. The caller
// closes it.
type Answer struct {
	io.ReadCloser
	Unfinished int // as of tracer.Snapshot
}

// Error is how the agent refuses a request.
type Error struct {
	Code int // HTTP status
	Text string
}

func (e *Error) Error() string { return e.Text }

// Dial returns a client for an agent that answers on the socket.
func Dial(socket string) (*Client, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	conn.Close()
	var d net.Dialer
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
		DisableCompression: true,
	}}}, nil
}

// Get asks for a path with the parameters of filters. The error wraps an *Error
// where the agent refused.
func (c *Client) Get(ctx context.Context, path string, values map[string][]string) (*Answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://porthole"+path+"?"+filter.Query(values).Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the agent on %s: %w", c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		refused := &Error{Code: resp.StatusCode}
		var body errorBody
		if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&body); err != nil {
			return nil, fmt.Errorf("ask the agent on %s: %s: %w", c.socket, resp.Status, err)
		}
		refused.Text = body.Error
		return nil, fmt.Errorf("the agent: %w", refused)
	}
	unfinished, err := strconv.Atoi(resp.Header.Get(unfinishedHeader))
	if err != nil {
		unfinished = 0 // not there
	}
	return &Answer{resp.Body, unfinished}, nil
}
