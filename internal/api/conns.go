package api

import (
	"context"
	"crypto/tls"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxConns is how many connections a listener has at once; others wait. Memory and
// descriptors are bounded by it: any user of the machine can ask for metrics.
const maxConns = 128

// limited is a listener of so many connections at once.
type limited struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	once   sync.Once
}

// Limit returns l with at most maxConns connections at once; others wait.
func Limit(l net.Listener) net.Listener {
	return &limited{Listener: l, places: make(chan struct{}, maxConns), closed: make(chan struct{})}
}

// Accept waits for a place, then for a connection.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &conn{Conn: c, left: sync.OnceFunc(func() { <-l.places })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// conn is a connection that has a place.
type conn struct {
	net.Conn
	left func()
}

func (c *conn) Close() error {
	defer c.left()
	return c.Conn.Close()
}

// connKey finds the connection of a request in its context.
type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// hungUp tells whether the client has closed its end. The server sees that too, but not
// of one that has sent more than its request.
func hungUp(r *http.Request) bool {
	c, _ := r.Context().Value(connKey{}).(net.Conn)
	if over, ok := c.(*tls.Conn); ok {
		c = over.NetConn()
	}
	if placed, ok := c.(*conn); ok {
		c = placed.Conn
	}
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return true
	}
	poll := []unix.PollFd{{Events: unix.POLLRDHUP}}
	err = raw.Control(func(fd uintptr) {
		poll[0].Fd = int32(fd)
		_, _ = unix.Poll(poll, 0) // fails only where it is interrupted
	})
	return err != nil || poll[0].Revents != 0
}

const (
	// requestWithin is how long a client has for its request, bodies included, which
	// nothing wants.
	requestWithin = 5 * time.Second
	// answerWithin is how long it has to read the answer, but of streams.
	answerWithin = time.Minute
)

// NewHTTP returns a server that bounds what a client can make the agent wait for, or keep.
func NewHTTP(h http.Handler, out *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadTimeout: requestWithin, WriteTimeout: answerWithin, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ConnContext: withConn, ErrorLog: log.New(&serverLog{to: out}, "", 0),
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 8, MaxReceiveBufferPerConnection: 64 << 10, MaxReceiveBufferPerStream: 64 << 10},
	}
}

// sayEvery is how often the log tells of connections that are of no protocol.
const sayEvery = time.Minute

// serverLog is what a server has to say. What any client can make it say as often as he
// likes, that his connection is no TLS, it says at most every minute.
type serverLog struct {
	to *slog.Logger

	mu     sync.Mutex
	said   time.Time
	unsaid int
}

// Write takes one line.
func (l *serverLog) Write(line []byte) (int, error) {
	text := strings.TrimSuffix(string(line), "\n")
	if !strings.HasPrefix(text, "http: TLS handshake error") {
		l.to.Warn(text)
		return len(line), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.said) < sayEvery {
		l.unsaid++
		return len(line), nil
	}
	l.to.Warn(text, "not_told_before", l.unsaid)
	l.said, l.unsaid = time.Now(), 0
	return len(line), nil
}
