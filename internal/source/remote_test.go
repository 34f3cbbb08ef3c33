package source

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
)

// eventsFrom is the stream of an agent that sends what in has.
func eventsFrom(ctx context.Context, in io.ReadCloser) *remoteEvents {
	return &remoteEvents{ctx: ctx, body: in, in: bufio.NewReader(in), names: &identity.Names{Cgroups: identity.NewCgroups("")}}
}

// What was written is handed on before the stream waits; losses are told by whom and add up.
func TestRemoteEvents(t *testing.T) {
	in, agent := io.Pipe()
	s := eventsFrom(t.Context(), in)
	defer s.Close()
	go io.WriteString(agent, `{"event":"bind"}`+"\n"+`{"lost":3,"by":"client"}`+"\n"+`{"event":"close"}`+"\n"+`{"lost":4,"by":"kernel"}`+"\n")
	for i, want := range []Happened{Event, Loss, Event, Loss, Pause} {
		if got, err := s.Next(); err != nil || got != want {
			t.Fatalf("step %d: %v, %v; want %v", i, got, err, want)
		}
		var row render.Event
		if err := s.Row(&row); want == Event && (err != nil || row.Event == "") {
			t.Errorf("step %d: row %+v, %v", i, row, err)
		}
		if line, _ := s.AppendJSON(nil); want == Event && !strings.HasPrefix(string(line), `{"event":`) {
			t.Errorf("step %d: event %q", i, line)
		}
	}
	if s.Lost() != (api.Lost{Lost: 4, By: api.ByKernel}) {
		t.Errorf("lost last %+v", s.Lost())
	}
	agent.Close()
	if _, err := s.Next(); !errors.Is(err, ErrEnded) {
		t.Errorf("an agent that ends: %v, want %v", err, ErrEnded)
	}
	if lost, err := s.End(); lost != 7 || err != nil {
		t.Errorf("lost %d in all, %v; want 7", lost, err)
	}
}

// A line that does not fit into what is received at once is whole, and so is the next.
func TestRemoteEventsLong(t *testing.T) {
	comm := strings.Repeat("x", 10_000)
	line := `{"event":"bind","comm":"` + comm + `"}` + "\n"
	s := eventsFrom(t.Context(), io.NopCloser(strings.NewReader(line+`{"event":"close"}`+"\n"+line)))
	defer s.Close()
	for i, want := range []string{comm, "", comm} {
		happened, err := s.Next()
		var row render.Event
		if err == nil {
			err = s.Row(&row)
		}
		if err != nil || happened != Event || row.Comm != want {
			t.Errorf("line %d: %v, %v, %d bytes of %d", i, happened, err, len(row.Comm), len(want))
		}
	}
}

// A stream that is to end has ended, whatever stops it.
func TestRemoteEventsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	in, agent := io.Pipe()
	s := eventsFrom(ctx, in)
	defer s.Close()
	cancel()
	agent.CloseWithError(context.Canceled)
	if _, err := s.Next(); err != io.EOF {
		t.Errorf("%v, want %v", err, io.EOF)
	}
}

// Rows of sockets and of tenancies are those of an agent's answer; one that breaks off is an error.
func TestRemoteRows(t *testing.T) {
	path := t.TempDir() + "/s"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.RequestURI()
		switch r.URL.Path {
		case "/v1/history":
			fmt.Fprintln(w, `{"proto":"tcp","local_ip":"127.0.0.1","local_port":80,"netns":1,"comm":"a","until":"2026-01-01T00:00:00Z"}`)
		default:
			fmt.Fprintln(w, `{"proto":"tcp","role":"listener","local_ip":"127.0.0.1","local_port":80,"netns":1,"holders":[{"pid":1,"comm":"a","fd":3}]}`)
			fmt.Fprint(w, `{"proto":"udp","role":"bound","local_ip":"::`)
		}
	})}
	go server.Serve(l)
	defer server.Close()
	r := &Remote{client: newClient(path)}
	asks, err := query.ParseHistory(query.Values{"port": {"80"}, "limit": {"7"}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	answered, err := r.Past(t.Context(), asks)
	if err != nil {
		t.Fatal(err)
	}
	defer answered.Close()
	var past []render.Tenancy
	for row, rowErr := range answered.Rows {
		if err = rowErr; err != nil {
			break
		}
		past = append(past, *row)
	}
	if uri := <-asked; err != nil || len(past) != 1 || past[0].Comm != "a" || uri != "/v1/history?limit=7&port=80" {
		t.Errorf("%s: %+v, %v", uri, past, err)
	}
	q, err := query.ParseSockets(nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := r.Sockets(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Close()
	var rows []render.Socket
	err = answer.Each(func(s *render.Socket) { rows = append(rows, *s) })
	if err == nil || len(rows) != 1 || rows[0].LocalPort != 80 || len(rows[0].Holders) != 1 {
		t.Errorf("%+v, %v", rows, err)
	}
}

// Whatever words who answers in place of an agent sends, none of them gets to the terminal as it is.
func TestRemoteEscapes(t *testing.T) {
	path := t.TempDir() + "/s"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	const bad = "\x1b]0;title\a\u202e"
	socket := map[string]any{
		"proto": bad, "state": bad, "role": bad, "local_ip": "127.0.0.1", "local_port": 80, "netns": 1, "no_holder": bad, "origin": bad, "service": bad, "device": bad,
		"owner": map[string]any{"pid": 1, "comm": bad, "status": bad},
	}
	rows := map[string]any{
		"/v1/sockets": socket,
		"/v1/ports/80": map[string]any{
			"port": 80, "proto": bad, "range": bad, "service": bad, "nat_unread": bad, "sockets": []any{socket}, "more": []any{map[string]any{"role": bad, "proto": bad, "sockets": 2}},
			"history": []any{map[string]any{"proto": bad, "role": bad, "error": bad, "event": bad, "local_ip": "::1", "until": "2026-01-01T00:00:00Z", "comm": bad}},
		},
		"/v1/headroom": map[string]any{"proto": bad, "op": bad, "range_low": 1, "range_high": 9, "capacity": 9, "used": 9, "local_ip": "::1", "remote_ip": "::1", "remote_port": 1, "reserved_ports": bad},
		"/v1/history":  map[string]any{"proto": bad, "event": bad, "error": bad, "local_ip": "::1", "time": "2026-01-01T00:00:00Z", "held_by": []any{map[string]any{"state": bad, "role": bad}}},
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.NoteHeader, url.QueryEscape(bad))
		json.NewEncoder(w).Encode(rows[r.URL.Path])
	})}
	go server.Serve(l)
	defer server.Close()
	r := &Remote{client: newClient(path)}
	names := identity.Load(nil)
	defer names.Cgroups.Close()
	var out bytes.Buffer
	show := func(a Answer, err error, text func(io.Writer, render.Style) error) {
		t.Helper()
		if err == nil {
			out.WriteString(a.Note())
			err = text(&out, render.Style{})
		}
		if err != nil {
			t.Error(err)
		}
	}
	sockets, err := query.ParseSockets(nil)
	if err != nil {
		t.Fatal(err)
	}
	listed, err := r.Sockets(t.Context(), sockets)
	show(listed, err, listed.Text)
	port, err := query.ParsePort("80", nil)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := r.Port(t.Context(), port)
	show(whole, err, whole.Text)
	for _, word := range []string{"op", "proto"} {
		text := rows["/v1/headroom"].(map[string]any)
		text[word] = map[string]string{"op": "connect", "proto": "tcp"}[word] // as known, one after the other
		left, err := query.ParseHeadroom(nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := r.Headroom(t.Context(), left)
		if err != nil {
			t.Fatal(err)
		}
		if err := render.New(names).HeadroomText(&out, render.Style{}, answer.Rows, 0); err != nil {
			t.Error(err)
		}
	}
	asks, err := query.ParseHistory(nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	past, err := r.Past(t.Context(), asks)
	if err != nil {
		t.Fatal(err)
	}
	defer past.Close()
	for row, err := range past.Rows {
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(strings.Join(slices.Concat([]string{row.Event, row.Error, row.Proto, row.HeldBy[0].State, row.HeldBy[0].Role}), " "))
	}
	event, err := json.Marshal(map[string]any{"event": bad, "proto": bad, "error": bad, "held_by": []any{socket}})
	if err != nil {
		t.Fatal(err)
	}
	s := eventsFrom(t.Context(), io.NopCloser(bytes.NewReader(append(event, '\n'))))
	s.from, s.names = r, names
	defer s.Close()
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	text, err := s.AppendText(nil, render.Style{})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)
	if got := out.String(); strings.ContainsAny(got, "\x1b\a\u202e") {
		t.Errorf("%q", got)
	}
}

// Who is asked again and again says once that the agent has no answer, and says so again only after it
// had one.
func TestPreferredTellsOnce(t *testing.T) {
	var told []string
	p := &preferred{tell: func(note string) { told = append(told, note) }}
	gone := errors.New("it is gone")
	for i, c := range []struct {
		err  error
		told int
	}{{nil, 0}, {gone, 1}, {gone, 1}, {nil, 1}, {gone, 2}} {
		if instead := p.instead(t.Context(), c.err); instead != (c.err != nil) || len(told) != c.told {
			t.Errorf("step %d: instead %v, told %q; want told %d times", i, instead, told, c.told)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p.instead(ctx, gone) || len(told) != 2 {
		t.Errorf("the kernel is queried for who has gone: %q", told)
	}
}

// What an agent refuses is of who asks where it says so, else not.
func TestRemoteRefuses(t *testing.T) {
	path := t.TempDir() + "/s"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code := http.StatusBadRequest
		if r.URL.Path != "/v1/sockets" {
			code = http.StatusServiceUnavailable
		}
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"error":"not %s"}`, r.URL.Path)
	})}
	go server.Serve(l)
	defer server.Close()
	r := &Remote{client: newClient(path)}
	q, err := query.ParseSockets(nil)
	if err != nil {
		t.Fatal(err)
	}
	var wrong *query.Wrong
	if _, err := r.Sockets(t.Context(), q); !errors.As(err, &wrong) || wrong.Param || err.Error() != "the agent: not /v1/sockets" {
		t.Errorf("status 400: %v", err)
	}
	if _, err := r.Port(t.Context(), query.Port{Number: 7}); err == nil || errors.As(err, &wrong) || err.Error() != "the agent: not /v1/ports/7" {
		t.Errorf("status 503: %v", err)
	}
}

// Whether anybody has the port is seen however the answer is cut into writes.
func TestHeld(t *testing.T) {
	for text, want := range map[string]bool{
		`{"port":80,"sockets":[],"history":[]}`:                                        false,
		`{"port":80,"sockets":[{"proto":"tcp"}],"history":[]}`:                         true,
		`{"port":80,"service":"\"sockets\":[{","sockets":[],"history":[{"comm":"x"}]}`: false,
	} {
		for part := 1; part <= len(text); part++ {
			h := held{w: io.Discard}
			for rest := text; rest != ""; rest = rest[min(part, len(rest)):] {
				if _, err := h.Write([]byte(rest[:min(part, len(rest))])); err != nil {
					t.Fatal(err)
				}
			}
			if h.Held() != want {
				t.Errorf("%s in parts of %d: %v, want %v", text, part, h.Held(), want)
			}
		}
	}
}
