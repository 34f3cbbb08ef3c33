package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// besideCost measures how much longer a connection takes while the agent watches, in
// each of some tiers, or a tool of bcc. They are not interleaved, for a tool of bcc
// takes minutes to start in a VM: this is for one whose clock counts instructions.
func (b *bench) besideCost(tiers, tools []string) error {
	// Before the kernel's random numbers are ready a connection takes twice as long.
	if _, err := unix.Getrandom(make([]byte, 1), 0); err != nil {
		return fmt.Errorf("wait for random numbers: %w", err)
	}
	l, err := b.warmListener()
	if err != nil {
		return err
	}
	defer l.close()
	b.row(fmt.Sprintf("a connection, %d a run, %d in a row", b.cycles, burst), "", "", "", "")
	goals := map[string]string{"fentry": "<= 1.05", "tracepoint": "<= 1.10"}
	for _, tier := range tiers {
		w := b.agent()
		w.name, w.argv = w.name+" --tier "+tier, append(w.argv, "--tier", tier)
		if err := b.besideRows(w, l, goals[tier]); err != nil {
			return err
		}
	}
	for _, tool := range tools {
		if !installed(tool) {
			b.row("  "+filepath.Base(tool)+": not here", "", "", "", "")
		} else if err := b.besideRows(bcc(tool), l, ""); err != nil {
			return err
		}
	}
	return nil
}

// bcc is a tool that compiles what it loads first, and makes the buffer of its events
// last. What it writes it keeps back.
func bcc(path string) watcher {
	return watcher{
		name: filepath.Base(path),
		argv: []string{path},
		ready: func(p *process) (bool, error) {
			time.Sleep(100 * time.Millisecond) // not to take the processor that compiles
			maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.cmd.Process.Pid))
			return bytes.Contains(maps, []byte("[perf_event]")), err
		},
		finish: func(p *process, from int64) (seen, error) {
			if err := p.interrupt(); err != nil {
				return seen{}, err
			}
			out, err := content(p.stdout, from)
			return seen{events: bytes.Count(out, []byte("127.0.0.1")) / 2}, err // each has two ends
		},
	}
}

// besideRows compares connections while a watcher watches with those before.
func (b *bench) besideRows(w watcher, l *listener, goal string) error {
	off, err := b.bursts(l)
	if err != nil {
		return err
	}
	var on []float64
	did, err := b.watch(w, func(*process) error {
		on, err = b.bursts(l)
		return err
	})
	if err != nil {
		return err
	}
	w.each *= b.runs
	b.check(w, did.seen, b.cycles)
	n := float64(b.runs * b.cycles)
	b.compare(w.name+" / nothing", on, off, b.short, goal)
	b.row("    CPU time of its process", b.short(float64(did.cpu)/n), "", "", "")
	b.row("    events", fmt.Sprintf("%.3g", float64(did.events)/n), "", "", "")
	return nil
}

// burst is how many connections are made before a watcher has its turn: the events of
// so many fit into the smallest buffer, the 32 KB of tcptracer.
const burst = 50

// bursts returns the nanoseconds that a connection takes, run by run. Where there is
// one processor alone a watcher must not take turns of it meanwhile, as it does not
// where there are more.
func (b *bench) bursts(l *listener) ([]float64, error) {
	var runs []float64
	for range b.runs {
		var took time.Duration
		if _, err := onLastCPU(b.cycles, func(n int) error {
			for ; n > 0; n -= burst {
				d, err := undisturbed(func() error { return l.cycles(min(n, burst)) })
				if err != nil {
					return err
				}
				took += d
				time.Sleep(20 * time.Millisecond)
			}
			return nil
		}); err != nil {
			return nil, err
		}
		runs = append(runs, float64(took)/float64(b.cycles))
	}
	return runs, nil
}

// undisturbed runs a short load before every other thread, and returns how long it
// took.
func undisturbed(load func() error) (time.Duration, error) {
	if err := setScheduler(unix.SCHED_FIFO, 1); err != nil {
		return 0, err
	}
	start := time.Now()
	err := load()
	took := time.Since(start)
	return took, errors.Join(err, setScheduler(unix.SCHED_NORMAL, 0))
}

func setScheduler(policy, priority uint32) error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority}
	if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
		return fmt.Errorf("set priority: %w", err)
	}
	return nil
}
