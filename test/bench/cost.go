package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	worstPrograms = 3 // shown one by one
	fewCalls      = 200_000
	atRest        = 3 * time.Second
)

// followed is what became of connections while a watcher watched.
type followed struct {
	watcher
	us, off, cpu, events []float64 // for each connection, off without it
	rest                 float64   // part of a CPU it uses when nothing happens
	failed               int       // runs it did not live to the end of
}

// connectionCost measures what it costs a connection to be followed.
func (b *bench) connectionCost() error {
	l, err := b.warmListener()
	if err != nil {
		return err
	}
	defer l.close()
	all := []*followed{{watcher: b.agent()}, {watcher: b.tail()}}
	for _, w := range peers(l) {
		all = append(all, &followed{watcher: w})
	}
	for _, f := range all {
		if err := b.rest(f); err != nil {
			return err
		}
		f.first = func() error { return l.cycles(b.before()) }
	}
	for range b.shortRuns() {
		off, err := onLastCPU(b.cycles, l.cycles)
		if err != nil {
			return err
		}
		for _, f := range all {
			if err := b.follow(f, l, off); err != nil {
				return err
			}
		}
	}
	b.connectionRows(all)
	return b.programCost(l, b.agent(), "<= 3 us")
}

// before is how many connections a watcher has seen before it is measured. The agent
// remembers them and those of a run.
func (b *bench) before() int { return b.cycles / 2 }

// rest sees what a watcher does when nothing happens.
func (b *bench) rest(f *followed) error {
	did, err := b.watchPeer(f, func(*process) error {
		time.Sleep(atRest)
		return nil
	})
	f.rest = did.cpu.Seconds() / (atRest + settled).Seconds()
	return err
}

// follow makes connections while a watcher watches; without it one took off.
func (b *bench) follow(f *followed, l *listener, off float64) error {
	var ns float64
	failed := f.failed
	did, err := b.watchPeer(f, func(*process) (err error) {
		ns, err = onLastCPU(b.cycles, l.cycles)
		return err
	})
	if err != nil || f.failed > failed {
		return err
	}
	b.check(f.watcher, did.seen, b.before()+b.cycles)
	n := float64(b.cycles)
	rest := f.rest * (ns*n + float64(settled))
	f.us, f.off = append(f.us, ns/1e3), append(f.off, off/1e3)
	f.cpu = append(f.cpu, (float64(did.cpu)-rest)/n/1e3)
	f.events = append(f.events, float64(did.events)/float64(b.before()+b.cycles))
	return nil
}

// watchPeer is watch, where it is no error of a program other than porthole not to
// be there, to be refused by the kernel, or to give up.
func (b *bench) watchPeer(f *followed, load func(*process) error) (watched, error) {
	if !installed(f.argv[0]) || f.failed > 1 && len(f.us) == 0 {
		f.failed++
		return watched{}, nil
	}
	did, err := b.watch(f.watcher, load)
	if err == nil || f.each != 0 || b.ctx.Err() != nil {
		return did, err
	}
	if f.failed == 0 {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
	}
	f.failed++
	return did, nil
}

func (b *bench) connectionRows(all []*followed) {
	goal := func(f *followed, ours string) string {
		if f.each == 0 {
			return ""
		}
		return ours
	}
	most := map[string]string{"fentry": "<= 1.05", "tracepoint": "<= 1.10"}[b.tier]
	b.row("connections a second; RATIO: how much longer one takes", "", "", "", "")
	var worked []*followed
	for _, f := range all {
		switch {
		case !installed(f.argv[0]):
			b.row("  "+f.name+": not installed", "", "", "", "")
			continue
		case len(f.us) == 0:
			b.row("  "+f.name+": does not work here", "", "", "", "")
			continue
		case f.failed > 0:
			f.name += fmt.Sprintf(" (failed in %d runs)", f.failed)
		}
		b.compare(f.name+" / nothing", f.us, f.off, perSecond, goal(f, most))
		worked = append(worked, f)
	}
	b.row("for each connection", "", "", "", "")
	for _, f := range worked {
		b.row("  CPU time of "+f.name, us(median(f.cpu)), "", "", goal(f, "<= 2 us"))
	}
	for _, f := range worked {
		b.row("  events of "+f.name, fmt.Sprintf("%.3g", median(f.events)), "", "", goal(f, fmt.Sprint(f.each)))
	}
}

// warmListener is a listener for connections that find TIME_WAIT full.
func (b *bench) warmListener() (*listener, error) {
	if err := fewPorts(); err != nil {
		return nil, err
	}
	l, err := listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), heldPort))
	if err != nil {
		return nil, err
	}
	if err := l.cycles(max(b.cycles, ports)); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// programCost asks the kernel how long each BPF program of a watcher ran. Counting
// that costs time of its own, so no other figure is taken from these runs.
func (b *bench) programCost(l *listener, w watcher, goal string) error {
	var total []float64
	all := make(map[string]usage)
	for range b.runs {
		var used map[string]usage
		did, err := b.watch(w, func(p *process) (err error) {
			used, err = p.programs(func() error {
				_, err := onLastCPU(b.cycles, l.cycles)
				return err
			})
			return err
		})
		if err != nil {
			return err
		}
		b.check(w, did.seen, b.cycles)
		ns := 0.0
		for name, u := range used {
			ns += float64(u.time.Nanoseconds()) / float64(b.cycles)
			all[name] = usage{all[name].time + u.time, all[name].count + u.count}
		}
		total = append(total, ns)
	}
	b.row("  BPF programs of "+w.name, b.short(median(total)), "", "", goal)
	names := slices.SortedFunc(maps.Keys(all), func(x, y string) int { return cmp.Compare(all[y].time, all[x].time) })
	for _, name := range names[:min(worstPrograms, len(names))] {
		u, n := all[name], float64(b.cycles*b.runs)
		b.row(fmt.Sprintf("    %s, %.3g runs", name, float64(u.count)/n), b.short(float64(u.time.Nanoseconds())/n), "", "", "")
	}
	return nil
}

// hooksCost measures what the hooks of some tiers cost a connection, and a system
// call that has nothing to do with sockets.
func (b *bench) hooksCost(tiers []string) error {
	l, err := b.warmListener()
	if err != nil {
		return err
	}
	defer l.close()
	b.row(fmt.Sprintf("for each connection, %d a run", b.cycles), "", "", "", "")
	var watchers []watcher
	for _, tier := range tiers {
		w := b.tail("--tier", tier)
		w.name = "tail --tier " + tier
		if err := b.programCost(l, w, ""); err != nil {
			return err
		}
		watchers = append(watchers, w)
	}
	return b.callCost(b.runs, fewCalls, watchers)
}

// systemCallCost measures what it costs a system call that has nothing to do with
// sockets that porthole is there.
func (b *bench) systemCallCost() error {
	const calls = 500_000
	without := b.tail("--no-syscall-hooks")
	without.name += " --no-syscall-hooks"
	return b.callCost(b.shortRuns(), calls, []watcher{b.tail(), without})
}

func (b *bench) callCost(runs, calls int, watchers []watcher) error {
	for _, load := range []struct {
		name string
		run  func(n int) error
	}{
		{"a getppid()", getppid},
		{"a request of io_uring that does nothing", nops},
	} {
		if err := load.run(1); err != nil { // io_uring may be switched off
			b.row(load.name+": "+err.Error(), "", "", "", "")
			continue
		}
		var off []float64
		on := make([][]float64, len(watchers))
		for range runs {
			ns, err := onLastCPU(calls, load.run)
			if err != nil {
				return err
			}
			off = append(off, ns)
			for i, w := range watchers {
				if _, err := b.watch(w, func(*process) (err error) {
					ns, err = onLastCPU(calls, load.run)
					return err
				}); err != nil {
					return err
				}
				on[i] = append(on[i], ns)
			}
		}
		b.row(load.name, "", "", "", "")
		for i, w := range watchers {
			b.compare(w.name+" / nothing", on[i], off, b.short, "")
		}
	}
	return nil
}

// decodeCost takes the tracer's own benchmark into the table.
func (b *bench) decodeCost() error {
	if b.decode == "" {
		return nil
	}
	ns, allocs, err := b.goBench(b.decode, "DecodeApply$", "0.3s")
	if err != nil {
		return fmt.Errorf("run benchmark of the tracer: %w", err)
	}
	b.row("for each event", "", "", "", "")
	b.row("  to decode and apply it", b.short(median(ns)), "", "", "<= 250 ns")
	b.row("  allocations", fmt.Sprint(median(allocs)), "", "", "0")
	return nil
}

// goBench runs a benchmark of a test binary, once a run.
func (b *bench) goBench(binary, name, long string) (ns, allocs []float64, err error) {
	out, err := b.command(binary, "-test.run=^$", "-test.bench="+name, "-test.benchtime="+long, fmt.Sprintf("-test.count=%d", b.runs)).Output()
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(out)) {
		var name string
		var n int
		var took, size, made float64
		if got, _ := fmt.Sscanf(line, "%s %d %g ns/op %g B/op %g allocs/op", &name, &n, &took, &size, &made); got == 5 {
			ns, allocs = append(ns, took), append(allocs, made)
		}
	}
	if len(ns) != b.runs {
		return nil, nil, fmt.Errorf("%d results, want %d:\n%s", len(ns), b.runs, out)
	}
	return ns, allocs, nil
}

// storeCost is what the history on disk costs for each tenancy, and how fast it answers.
func (b *bench) storeCost() error {
	if b.store == "" {
		return nil
	}
	b.row("history on disk", "", "", "", "")
	for _, of := range []struct{ what, name, goal string }{
		{"to keep a tenancy, of 48 bytes", "Add$", "<= 200 ns"},
		{"the last 20 of a common port, of 256 MiB", "Past$/^Common$", "<= 50 ms"},
		{"a port that nobody ever had", "Past$/^Never$", "<= 5 ms"},
	} {
		ns, allocs, err := b.goBench(b.store, of.name, "0.3s")
		if err != nil {
			return fmt.Errorf("run benchmark of the history: %w", err)
		}
		b.row("  "+of.what, b.short(median(ns)), "", "", of.goal)
		if of.name == "Add$" {
			b.row("    allocations", fmt.Sprint(median(allocs)), "", "", "0")
		}
	}
	return b.storeSize()
}

// storeSize is what the history writes of so many connections a second. It is counted, so once is enough.
func (b *bench) storeSize() error {
	out, err := b.command(b.store, "-test.run=^$", "-test.bench=Written$", "-test.benchtime=1x").Output()
	if err != nil {
		return fmt.Errorf("run benchmark of the history: %w", err)
	}
	for _, rate := range []string{"10", "1000", "20000"} {
		figures := make(map[string]float64) // by unit
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			if len(f) < 2 || !strings.HasPrefix(f[0], "BenchmarkWritten/"+rate+"-") && f[0] != "BenchmarkWritten/"+rate {
				continue
			}
			for i := 2; i+1 < len(f); i += 2 {
				if figures[f[i+1]], err = strconv.ParseFloat(f[i], 64); err != nil {
					return fmt.Errorf("read benchmark of the history: %w", err)
				}
			}
		}
		if figures["MB/day"] == 0 {
			return fmt.Errorf("no figures of %s connections a second:\n%s", rate, out)
		}
		b.row("  "+rate+" connections a second: written for each", fmt.Sprintf("%.1f B", figures["B/connection"]), "", "", "")
		b.row("    in a day", fmt.Sprintf("%.0f MB", figures["MB/day"]), "", "", "")
	}
	return nil
}

// pastMemory is what memory an agent has that keeps its history on disk, with many sockets, after connections.
func (b *bench) pastMemory() error {
	dir, err := os.MkdirTemp("", "porthole-bench-history-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	const sockets = 100_000
	stop, err := b.holdSockets(sockets, 1)
	if err != nil {
		return err
	}
	defer stop()
	l, err := b.warmListener()
	if err != nil {
		return err
	}
	defer l.close()
	keeping := b.agent()
	keeping.argv = append(keeping.argv, "--history.dir", dir)
	return b.memoryOf(keeping, fmt.Sprintf(", its history on disk, %d TCP sockets", sockets), "<= 64 MB", func() error {
		if err := l.cycles(remembered / 2); err != nil {
			return err
		}
		time.Sleep(settled)
		return nil
	})
}
