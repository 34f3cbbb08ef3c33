package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

const (
	eventsPerCycle = 4 // connect, accept, and a close of each end
	worstPrograms  = 3 // shown one by one
	fewCalls       = 200_000
)

// connectionCost measures what tracing costs a connection.
func (b *bench) connectionCost() error {
	l, err := b.warmListener()
	if err != nil {
		return err
	}
	defer l.close()
	if err := b.readerCost(l); err != nil {
		return err
	}
	return b.programCost(l, "BPF programs of tail", "<= 4 us")
}

// warmListener is a listener for connections that find TIME_WAIT full.
func (b *bench) warmListener() (*listener, error) {
	if err := fewPorts(); err != nil {
		return nil, err
	}
	l, err := listen(netip.MustParseAddrPort("127.0.0.1:7070"))
	if err != nil {
		return nil, err
	}
	if err := l.cycles(max(b.cycles, ports)); err != nil {
		l.close()
		return nil, err
	}
	b.row(fmt.Sprintf("a connection, connect to closes, %d a run", b.cycles), "", "", "", "")
	return l, nil
}

// hooksCost measures what the hooks of some tiers cost a connection, and a system
// call that has nothing to do with sockets.
func (b *bench) hooksCost(tiers []string) error {
	l, err := b.warmListener()
	if err != nil {
		return err
	}
	defer l.close()
	for _, tier := range tiers {
		if err := b.programCost(l, "BPF programs, "+tier+" tier", "", "--tier", tier); err != nil {
			return err
		}
	}
	sides := map[string][]float64{"": nil}
	for range b.runs {
		for _, tier := range append([]string{""}, tiers...) {
			ns, err := 0.0, error(nil)
			load := func(*tail) error {
				ns, err = onLastCPU(fewCalls, getppid)
				return err
			}
			if tier == "" {
				err = load(nil)
			} else {
				_, err = b.whileTailing(load, "--tier", tier)
			}
			if err != nil {
				return err
			}
			sides[tier] = append(sides[tier], ns)
		}
	}
	b.row("a getppid()", "", "", "", "")
	for _, tier := range tiers {
		b.compare(tier+" tier; other: nothing attached", sides[tier], sides[""], "ns", "")
	}
	return nil
}

// readerCost compares connections with and without tail, and sees what the
// process of tail did for them.
func (b *bench) readerCost(l *listener) error {
	var off, on, cpu, idle []float64
	events, lost := 0, 0
	for range b.shortRuns() {
		ns, err := onLastCPU(b.cycles, l.cycles)
		if err != nil {
			return err
		}
		off = append(off, ns/1e3)
		end, err := b.whileTailing(func(*tail) (err error) {
			ns, err = onLastCPU(b.cycles, l.cycles)
			return err
		})
		if err != nil {
			return err
		}
		on = append(on, ns/1e3)
		b.checkCounts("tail", end)
		events, lost = events+end.events, lost+end.lost
		cpu = append(cpu, float64(end.cpu.Microseconds())/float64(b.cycles))
		// Detaching is no connection's cost: it is measured alone and taken off.
		if end, err = b.whileTailing(func(*tail) error { return nil }); err != nil {
			return err
		}
		idle = append(idle, float64(end.cpu.Microseconds())/float64(b.cycles))
	}
	b.compare("tail --json; other: nothing attached", on, off, "us", "<= 1.150")
	b.row("  CPU of the process of tail", fmt.Sprintf("%.3g us", median(cpu)-median(idle)), "", "", "")
	b.row("  events written", fmt.Sprint(events), "", "", fmt.Sprint(eventsPerCycle*b.cycles*b.shortRuns()))
	b.row("  events lost", fmt.Sprint(lost), "", "", "0")
	return nil
}

// checkCounts notes events that are missing, or too many.
func (b *bench) checkCounts(what string, end tailEnd) {
	if want := eventsPerCycle * b.cycles; end.events != want || end.lost != 0 {
		b.wrong = append(b.wrong, fmt.Sprintf("%s wrote %d events of %d, and says it lost %d", what, end.events, want, end.lost))
	}
}

// programCost asks the kernel how long each BPF program of tail ran. Counting
// that costs time of its own, so no other figure is taken from these runs.
func (b *bench) programCost(l *listener, what, goal string, args ...string) error {
	var total []float64
	all := make(map[string]usage)
	for range b.runs {
		var used map[string]usage
		end, err := b.whileTailing(func(t *tail) (err error) {
			used, err = t.programs(func() error {
				_, err := onLastCPU(b.cycles, l.cycles)
				return err
			})
			return err
		}, args...)
		if err != nil {
			return err
		}
		b.checkCounts("tail with BPF statistics", end)
		ns := 0.0
		for name, u := range used {
			ns += float64(u.time.Nanoseconds()) / float64(b.cycles)
			all[name] = usage{all[name].time + u.time, all[name].count + u.count}
		}
		total = append(total, ns)
	}
	b.row("  "+what, b.short(median(total)), "", "", goal)
	names := slices.SortedFunc(maps.Keys(all), func(x, y string) int { return cmp.Compare(all[y].time, all[x].time) })
	for _, name := range names[:min(worstPrograms, len(names))] {
		u, n := all[name], float64(b.cycles*b.runs)
		b.row("    "+name, fmt.Sprintf("%s in %.3g runs", b.short(float64(u.time.Nanoseconds())/n), float64(u.count)/n), "", "", "")
	}
	return nil
}

// systemCallCost measures what tracing costs a system call that has nothing to
// do with sockets.
func (b *bench) systemCallCost() error {
	const calls = 500_000
	var off, on, without []float64
	for range b.shortRuns() {
		ns, err := onLastCPU(calls, getppid)
		if err != nil {
			return err
		}
		off = append(off, ns)
		for _, side := range []struct {
			ns   *[]float64
			args []string
		}{{&on, nil}, {&without, []string{"--no-syscall-hooks"}}} {
			if _, err := b.whileTailing(func(*tail) (err error) {
				ns, err = onLastCPU(calls, getppid)
				return err
			}, side.args...); err != nil {
				return err
			}
			*side.ns = append(*side.ns, ns)
		}
	}
	b.row("a getppid()", "", "", "", "")
	b.compare("tail; other: nothing attached", on, off, "ns", "")
	b.compare("tail --no-syscall-hooks; other: nothing", without, off, "ns", "1")
	return nil
}
