package api

import (
	"bufio"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// A stream begins with what happens once it is there, although the reader has older events
// still to read.
func TestKernelEventsBegin(t *testing.T) {
	testutil.RequireRoot(t)
	tr, err := tracer.Open(tracer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	held, ended := make(chan struct{}), make(chan error, 1)
	letGo := sync.OnceFunc(func() { close(held) })
	ready := make(chan struct{})
	go func() { ended <- tr.Run(ctx, func(*tracer.Snapshot) { close(ready); <-held }) }() // reads no event yet
	t.Cleanup(func() {
		letGo()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	<-ready
	listen := func() (port int) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l.Addr().(*net.TCPAddr).Port
	}
	names := identity.Load(tr.NetNamespaces)
	t.Cleanup(func() { names.Cgroups.Close() })
	server := httptest.NewServer(New(Config{Tracer: tr, Names: names, Log: slog.New(slog.DiscardHandler)}).APIHandler())
	defer server.Close()
	listen()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/v1/events?event=listen&pid="+strconv.Itoa(os.Getpid()), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	port := listen()
	letGo()
	line, err := bufio.NewReader(answer.Body).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var first struct {
		Port int `json:"local_port"`
	}
	if err := json.Unmarshal(line, &first); err != nil || first.Port != port {
		t.Errorf("the stream begins with %s (%v), want the listener on %d", line, err, port)
	}
}
