package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// quietFor is how long nothing happens before an event: the agent sleeps by then.
const quietFor = 150 * time.Millisecond

// latency tells how long an event takes to a client of the agent, and how often the
// agent wakes up for many.
func (b *bench) latency() error {
	l, err := b.warmListener()
	if err != nil {
		return err
	}
	defer l.close()
	var late, woken []float64
	if _, err := b.watch(b.agent(), func(p *process) error {
		if late, err = b.lateness(b.shortRuns()); err != nil {
			return err
		}
		for range b.runs {
			before, err := p.switches()
			if err != nil {
				return err
			}
			ns, err := onLastCPU(b.cycles, l.cycles)
			if err != nil {
				return err
			}
			after, err := p.switches()
			if err != nil {
				return err
			}
			woken = append(woken, float64(after-before)/(ns*float64(b.cycles)/1e9))
		}
		return nil
	}); err != nil {
		return err
	}
	b.row("agent", "", "", "", "")
	b.row("  from a bind to the line of a client, nothing else happening", ms(median(late)), "", "", "")
	b.row("    at most", ms(slices.Max(late)), "", "", "<= 100 ms")
	b.row("  its threads wake up in a second, connections as above", fmt.Sprintf("%.0f", median(woken)), "", "", "")
	return nil
}

// lateness binds a socket again and again, when all is quiet, and tells after how many
// milliseconds a client of the agent has read of it.
func (b *bench) lateness(n int) ([]float64, error) {
	resp, err := b.client.Get(fmt.Sprintf("http://porthole/v1/events?event=bind&netns=%d", b.netns))
	if err != nil {
		return nil, fmt.Errorf("ask the agent for events: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the agent for events: %s", resp.Status)
	}
	lines := bufio.NewReader(resp.Body)
	var out []float64
	for range n {
		time.Sleep(quietFor)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("make a socket: %w", err)
		}
		begin := time.Now()
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		if err == nil {
			_, err = lines.ReadString('\n')
		}
		out = append(out, time.Since(begin).Seconds()*1e3)
		unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("read of a bind: %w", err)
		}
	}
	return out, nil
}

// switches is how often the threads of the process have gone to sleep.
func (p *process) switches() (n int, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err != nil {
			return 0, fmt.Errorf("read context switches: %w", err)
		}
		for line := range strings.Lines(string(status)) {
			var more int
			if found, _ := fmt.Sscanf(line, "voluntary_ctxt_switches: %d", &more); found == 1 {
				n += more
			}
		}
	}
	return n, nil
}
