// Command bench measures what porthole costs and how fast it answers, beside
// the tools it replaces. Every figure is a median of interleaved runs, so that
// the ratios mean something on any machine; the times are this machine's.
//
// It needs root, ss and lsof. All load stays in a network namespace that it
// makes itself and that ends with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/netns"
)

// bench is one run of everything.
type bench struct {
	ctx      context.Context
	porthole string // path of the binary
	counting bool   // the clock counts instructions
	runs     int    // of everything, interleaved; thrice as many of what is short
	cycles   int    // connections a run
	netns    uint32
	table    *tabwriter.Writer
	wrong    []string // counts that must be exact and are not
}

// atMost bounds everything, also a load that hangs in a system call.
const atMost = 8 * time.Minute

func main() {
	// The namespace, the CPU of the load and the death signal of the children
	// belong to a thread; all that needs them runs in this goroutine.
	runtime.LockOSThread()
	run := measure
	switch {
	case len(os.Args) == 3 && os.Args[1] == "hold":
		run = func() error { return hold(os.Args[2]) }
	case len(os.Args) == 5 && os.Args[1] == "spread":
		run = func() error { return spread(os.Args[2], os.Args[3], os.Args[4]) }
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func measure() error {
	b := &bench{table: tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)}
	flag.StringVar(&b.porthole, "porthole", "./porthole", "the `binary` to measure")
	flag.IntVar(&b.runs, "runs", 7, "runs of each side, interleaved, at least 5; thrice as many where a run is short")
	flag.IntVar(&b.cycles, "cycles", 20000, "connections a run")
	hooks := flag.String("hooks", "", "only what the hooks of these `tiers`, as fentry,tracepoint, cost in the kernel")
	flag.BoolVar(&b.counting, "counting", false, "the machine is one whose clock counts instructions")
	flag.Parse()
	if flag.NArg() > 0 || b.runs < 5 || b.cycles < 1 {
		return errors.New("want no arguments, at least 5 runs and 1 cycle")
	}
	time.AfterFunc(atMost, func() {
		fmt.Fprintf(os.Stderr, "bench: not done after %v\n", atMost)
		os.Exit(1) // children end with us
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b.ctx = ctx
	if err := b.enterNetNS(); err != nil {
		return err
	}
	if err := b.head(); err != nil {
		return err
	}
	b.row("", "PORTHOLE", "OTHER", "RATIO", "GOAL")
	var failed error
	parts := []func() error{b.manySockets, b.scrapeCost, b.connectionCost, b.systemCallCost}
	if *hooks != "" {
		parts = []func() error{func() error { return b.hooksCost(strings.Split(*hooks, ",")) }}
	}
	for _, part := range parts {
		if failed = part(); failed != nil {
			break
		}
	}
	if len(b.wrong) > 0 {
		failed = errors.Join(failed, fmt.Errorf("WRONG COUNTS, the figures above are worth nothing:\n  %s", strings.Join(b.wrong, "\n  ")))
	}
	return errors.Join(b.table.Flush(), failed)
}

// enterNetNS moves this thread, and the children it starts, to a network
// namespace with nothing but lo.
func (b *bench) enterNetNS() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make network namespace (it needs root): %w", err)
	}
	if err := netns.UpLoopback(); err != nil {
		return err
	}
	var err error
	b.netns, err = netns.OfThread()
	return err
}

// head says what was measured where.
func (b *bench) head() error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	others, err := othersTrace()
	if err != nil {
		return err
	}
	if others {
		fmt.Fprintln(os.Stderr, "bench: another porthole is tracing: stop it first, or compare with nothing")
	}
	_, err = fmt.Printf("%d x %s, Linux %s %s, %s; medians of %d or %d interleaved runs\n", runtime.NumCPU(), cpuModel(),
		unix.ByteSliceToString(uts.Release[:]), unix.ByteSliceToString(uts.Machine[:]), runtime.Version(),
		b.runs, b.shortRuns())
	return err
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "CPU"
	}
	for line := range strings.Lines(string(info)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "CPU" // arm64 has no name there
}

// row adds a line to the table: what, porthole's figure, the other's, their
// ratio and its goal. A line of fewer cells would end the columns.
func (b *bench) row(what, porthole, other, ratio, goal string) {
	fmt.Fprintln(b.table, strings.Join([]string{what, porthole, other, ratio, goal}, "\t"))
}

// compare adds a line of two medians. Its ratio is the median of the ratios of
// neighbouring runs: a machine that slows down for a while slows both.
func (b *bench) compare(what string, porthole, other []float64, unit, goal string) {
	ratios := make([]float64, len(porthole))
	for i := range porthole {
		ratios[i] = porthole[i] / other[i]
	}
	if b.counting && unit == "ns" {
		unit = "instr"
	}
	figure := func(v []float64) string { return fmt.Sprintf("%.4g %s", median(v), unit) }
	b.row("  "+what, figure(porthole), figure(other), fmt.Sprintf("%.3f", median(ratios)), goal)
}

// short is a time of nanoseconds or microseconds, or what a machine whose clock
// counts them makes of it: instructions.
func (b *bench) short(ns float64) string {
	switch {
	case b.counting:
		return fmt.Sprintf("%.0f instr", ns)
	case ns < 1000:
		return fmt.Sprintf("%.3g ns", ns)
	}
	return fmt.Sprintf("%.3g us", ns/1e3)
}

// shortRuns is how many runs there are of what takes under a second: the shorter
// a run, the more it is disturbed.
func (b *bench) shortRuns() int { return 3 * b.runs }

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
