package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// A watcher is a program that follows connections: porthole, or what people use
// instead.
type watcher struct {
	name  string // in the table
	argv  []string
	ready func(*process) (bool, error)
	// finish ends the program and tells what it has seen; from is where its output
	// began to matter.
	finish func(p *process, from int64) (seen, error)
	each   int // what it must have seen of each connection, nothing lost; 0: whatever
	// first is what happens before it is measured; nil: nothing. It runs for months, not
	// from its start: what it takes once to grow its tables is not what a connection takes.
	first func() error
}

// seen is what a watcher counted.
type seen struct{ events, lost int }

// watched is how a watcher did.
type watched struct {
	seen
	start time.Duration // from exec until it was ready
	cpu   time.Duration // used for the load
}

// settled is when what porthole has to say about a load is said: it lets events
// wait for 100 ms.
const settled = 200 * time.Millisecond

// watch runs a load while a watcher watches.
func (b *bench) watch(w watcher, load func(*process) error) (watched, error) {
	var did watched
	begin := time.Now()
	p, err := b.start(w.argv)
	if err != nil {
		return did, err
	}
	if err := p.until(func() (bool, error) { return w.ready(p) }); err != nil {
		return did, errors.Join(err, p.stop())
	}
	did.start = time.Since(begin)
	err = b.loadWatched(w, p, load, &did)
	return did, errors.Join(err, p.stop())
}

func (b *bench) loadWatched(w watcher, p *process, load func(*process) error, did *watched) error {
	info, err := p.stdout.Stat()
	if err != nil {
		return err
	}
	if w.first != nil {
		if err := w.first(); err != nil {
			return err
		}
		time.Sleep(settled)
	}
	before, err := p.cpuTime()
	if err != nil {
		return err
	}
	if err := load(p); err != nil {
		return err
	}
	time.Sleep(settled)
	after, err := p.cpuTime()
	if err != nil {
		return err
	}
	did.cpu = after - before
	did.seen, err = w.finish(p, info.Size())
	return err
}

// check notes events that are missing, or too many, of so many connections.
func (b *bench) check(w watcher, s seen, connections int) {
	if want := w.each * connections; w.each != 0 && (s.events != want || s.lost != 0) {
		b.wrong = append(b.wrong, fmt.Sprintf("%s saw %d of %d, and says it lost %d", w.name, s.events, want, s.lost))
	}
}

// tail writes only what happens in the bench's namespace, for the machine has
// others too.
func (b *bench) tail(args ...string) watcher {
	return watcher{
		name:  "tail --json",
		argv:  append([]string{b.porthole, "tail", "--json", "--netns", strconv.Itoa(int(b.netns))}, args...),
		ready: func(p *process) (bool, error) { return p.says("attached: ") },
		finish: func(p *process, _ int64) (seen, error) {
			// It writes what the kernel has collected, then its counts.
			var s seen
			if err := p.interrupt(); err != nil {
				return s, err
			}
			last := p.lastWords()
			if _, err := fmt.Sscanf(strings.Replace(last, "event,", "events,", 1), "%d events, %d lost", &s.events, &s.lost); err != nil {
				return s, fmt.Errorf("read counts of %s in %q: %w", p.cmd, last, err)
			}
			return s, nil
		},
		each: 4, // connect, accept, and a close of each end
	}
}

// agent has both ends of each connection in its history.
func (b *bench) agent() watcher {
	return watcher{
		name: "agent",
		argv: []string{b.porthole, "agent", "--socket", b.socket, "--web.listen-address="},
		ready: func(*process) (bool, error) {
			status, err := b.status()
			return err == nil && status.Ready, nil // it does not listen yet
		},
		finish: func(*process, int64) (seen, error) { return b.history() },
		each:   2,
	}
}

// status is what the bench reads of /v1/status.
type status struct {
	Ready       bool `json:"ready"`
	Lost        int  `json:"lost"`
	OpenSockets int  `json:"open_sockets"`
	Tenancies   int  `json:"tenancies"`
}

func (b *bench) status() (status, error) {
	var s status
	body, err := b.get("/v1/status")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, fmt.Errorf("read status of the agent: %w", err)
	}
	return s, nil
}

// history counts the connections of this namespace in the agent's history.
func (b *bench) history() (seen, error) {
	s, err := b.status()
	if err != nil {
		return seen{}, err
	}
	lines, err := b.get("/v1/history")
	if err != nil {
		return seen{}, err
	}
	count := seen{lost: s.Lost}
	here := fmt.Appendf(nil, `"netns":%d,`, b.netns)
	for line := range bytes.Lines(lines) {
		if bytes.Contains(line, here) && bytes.Contains(line, []byte(`"remote_port":`)) {
			count.events++
		}
	}
	return count, nil
}

// get asks the agent.
func (b *bench) get(path string) ([]byte, error) {
	resp, err := b.client.Get("http://porthole" + path)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the agent for %s: %s", path, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// peer is a program that does not tell when it is ready: it is when it has written
// about a connection to the listener.
func peer(name string, l *listener, argv ...string) watcher {
	return watcher{
		name: name,
		argv: argv,
		ready: func(p *process) (bool, error) {
			if err := l.cycles(20); err != nil { // enough to fill what it keeps back
				return false, err
			}
			time.Sleep(10 * time.Millisecond)
			out, err := content(p.stdout, 0)
			return bytes.Contains(out, []byte(strconv.Itoa(l.addr.Port))), err
		},
		finish: func(p *process, from int64) (seen, error) {
			out, err := content(p.stdout, from)
			return seen{events: bytes.Count(out, []byte("\n"))}, err
		},
	}
}

// peers are what people follow connections with where there is no porthole.
func peers(l *listener) []watcher {
	const changes = `tracepoint:sock:inet_sock_set_state ` +
		`{ printf("%s %d %d %d %d\n", comm, args->sport, args->dport, args->oldstate, args->newstate); }`
	return []watcher{
		peer("bpftrace, changes of state", l, "bpftrace", "-e", changes),
		peer("ss -tnE", l, "ss", "-tnE"),
	}
}

// installed tells whether a command is there.
func installed(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}
