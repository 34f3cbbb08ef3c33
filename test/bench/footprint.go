package main

import (
	"fmt"
	"os"
	"time"
)

// remembered is how many closed sockets the agent remembers.
const remembered = 65536

// startUp times what there is to wait for where there are few sockets.
func (b *bench) startUp() error {
	b.row("few sockets: the time to start", "", "", "", "")
	for _, w := range []struct {
		watcher
		until string
	}{{b.agent(), "until it knows every socket"}, {b.tail(), "until all hooks are attached"}} {
		var start []float64
		for range b.runs {
			did, err := b.watch(w.watcher, func(*process) error { return nil })
			if err != nil {
				return err
			}
			start = append(start, did.start.Seconds()*1e3)
		}
		b.row(fmt.Sprintf("  %s, %s", w.name, w.until), ms(median(start)), "", "", "")
	}
	return b.races([]race{
		{"ls -tunap", "ss -tunap", ""}, {fmt.Sprintf("who %d", freePort), fmt.Sprintf("lsof -nP -i :%d", freePort), ""},
		{"headroom", "ss -tan", ""},
	})
}

// footprint tells the size of the binary and of the agent.
func (b *bench) footprint() error {
	binary, err := os.Stat(b.porthole)
	if err != nil {
		return err
	}
	b.row("few sockets: size", "", "", "", "")
	b.row("  binary", mb(float64(binary.Size())/(1<<20)), "", "", "")
	if err := b.agentMemory("", "", func() error { return nil }); err != nil {
		return err
	}
	const sockets = 100_000
	stop, err := b.holdSockets(sockets, 1)
	if err != nil {
		return err
	}
	defer stop()
	b.row(fmt.Sprintf("%d TCP sockets", sockets), "", "", "", "")
	if err := b.scrapes("/metrics of the agent"); err != nil {
		return err
	}
	l, err := b.warmListener() // it takes most of the ports away
	if err != nil {
		return err
	}
	defer l.close()
	return b.agentMemory(fmt.Sprintf(", %d closed in its history", remembered), "<= 64 MB", func() error {
		if err := l.cycles(remembered/2 + 100); err != nil {
			return err
		}
		time.Sleep(settled)
		s, err := b.status()
		if err == nil && (s.OpenSockets < sockets || s.Tenancies != remembered) {
			b.wrong = append(b.wrong, fmt.Sprintf("the agent knows %d sockets and %d closed, there are %d and %d",
				s.OpenSockets, s.Tenancies, sockets, remembered))
		}
		return err
	})
}

// agentMemory tells what memory the agent has after a load.
func (b *bench) agentMemory(when, goal string, load func() error) error {
	return b.memoryOf(b.agent(), when, goal, load)
}

// memoryOf is agentMemory of another agent.
func (b *bench) memoryOf(agent watcher, when, goal string, load func() error) error {
	var resident, anonymous []float64
	for range b.runs {
		if _, err := b.watch(agent, func(p *process) error {
			if err := load(); err != nil {
				return err
			}
			m, err := p.memory()
			resident, anonymous = append(resident, m.resident), append(anonymous, m.anonymous)
			return err
		}); err != nil {
			return err
		}
	}
	b.row("  memory of the agent"+when, mb(median(resident)), "", "", goal)
	b.row("    of it anonymous", mb(median(anonymous)), "", "", "")
	return nil
}
