// Command bench measures what porthole costs and how fast it answers, beside
// nothing and beside the tools it replaces, those that are installed. Every figure
// is a median of interleaved runs, so that the ratios mean something on any machine;
// the times are this machine's.
//
// It needs root. All load stays in network namespaces that it makes itself and that
// end with it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// bench is one run of everything.
type bench struct {
	ctx      context.Context
	porthole string // path of the binary
	decode   string // test binary of the tracer
	store    string // test binary of the history on disk
	counting bool   // the clock counts instructions
	runs     int    // of everything, interleaved; thrice as many of what is short
	cycles   int    // connections a run
	tier     string // what porthole uses here
	socket   string // of the agent
	client   *http.Client
	netns    uint32 // of this part
	table    *tabwriter.Writer
	wrong    []string // counts that must be exact and are not
}

// atMost bounds everything, also a load that hangs in a system call.
const atMost = 15 * time.Minute

func main() {
	// The namespace, the CPU of the load and the death signal of the children
	// belong to a thread; all that needs them runs in this goroutine.
	runtime.LockOSThread()
	run := measure
	if len(os.Args) == 5 && os.Args[1] == "hold" {
		run = func() error { return hold(os.Args[2], os.Args[3], os.Args[4]) }
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func measure() error {
	var b bench
	flag.StringVar(&b.porthole, "porthole", "./porthole", "the `binary` to measure")
	flag.StringVar(&b.decode, "decode", "", "the test `binary` of the tracer; empty: its benchmark is left out")
	flag.StringVar(&b.store, "store", "", "the test `binary` of the history on disk; empty: its benchmarks are left out")
	flag.IntVar(&b.runs, "runs", 7, "runs of each side, interleaved, at least 5; thrice as many where a run is short")
	flag.IntVar(&b.cycles, "cycles", 20000, "connections a run")
	hooks := flag.String("hooks", "", "only what the hooks of these `tiers`, as fentry,tracepoint, cost in the kernel")
	beside := flag.String("beside", "", "with -hooks and -counting, `programs` of bcc to measure beside the agent")
	flag.BoolVar(&b.counting, "counting", false, "the machine is one whose clock counts instructions")
	top := flag.Bool("top", false, "only what porthole top takes")
	list := flag.Bool("list", false, "only what lists sockets")
	history := flag.Bool("history", false, "only what the history on disk takes")
	flag.Parse()
	if flag.NArg() > 0 || b.runs < 5 || b.cycles < 1 || b.cycles > remembered/3 {
		return fmt.Errorf("want no arguments, at least 5 runs, and from 1 to %d cycles", remembered/3)
	}
	time.AfterFunc(atMost, func() {
		fmt.Fprintf(os.Stderr, "bench: not done after %v\n", atMost)
		os.Exit(1) // children end with us
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b.ctx = ctx
	dir, err := os.MkdirTemp("", "porthole-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.useSocket(filepath.Join(dir, "socket"))
	if *hooks != "" {
		tiers := strings.Split(*hooks, ",")
		parts := []func() error{func() error { return b.hooksCost(tiers) }}
		if b.counting {
			parts = append(parts, func() error { return b.besideCost(tiers, strings.Fields(*beside)) })
		}
		return b.print(parts...)
	}
	if *list {
		return b.print(b.listSockets)
	}
	if *history {
		return b.print(b.storeCost, b.pastMemory)
	}
	if *top {
		return b.print(b.topCost, b.topMany)
	}
	return b.print(b.connectionCost, b.latency, b.decodeCost, b.storeCost, b.systemCallCost, b.listSockets, b.topCost, b.topMany, b.startUp, b.footprint, b.pastMemory)
}

// print measures the parts and prints the table, as far as it got.
func (b *bench) print(parts ...func() error) error {
	if err := enterMountNS(); err != nil {
		return err
	}
	if err := b.head(); err != nil {
		return err
	}
	var table bytes.Buffer
	b.table = tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	b.row("", "FIGURE", "BESIDE", "RATIO", "GOAL")
	var failed error
	for _, part := range parts {
		if failed = b.inNetNS(part); failed != nil {
			break
		}
	}
	if len(b.wrong) > 0 {
		failed = errors.Join(failed, fmt.Errorf("WRONG COUNTS, the figures above are worth nothing:\n  %s", strings.Join(b.wrong, "\n  ")))
	}
	failed = errors.Join(failed, b.table.Flush())
	for line := range strings.Lines(table.String()) {
		fmt.Println(strings.TrimRight(line, " \n"))
	}
	return failed
}

// enterMountNS gives this thread, and the children it starts, tracefs, which bpftrace
// wants and not every machine has mounted.
func enterMountNS() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace (it needs root): %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const tracefs = "/sys/kernel/tracing"
	if _, err := os.Stat(tracefs + "/events"); err == nil {
		return nil
	}
	_ = unix.Mount("tracefs", tracefs, "tracefs", 0, "") // bpftrace itself tells what it lacks
	return nil
}

// inNetNS runs a part with this thread, and the children it starts, in a network
// namespace of its own, with nothing but lo.
func (b *bench) inNetNS(part func() error) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	if err := testutil.UpLoopback(); err != nil {
		return err
	}
	var err error
	if b.netns, err = identity.NetNSOfThread(); err != nil {
		return err
	}
	return part()
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
	doctor, err := b.command(b.porthole, "doctor", "--json").Output()
	if err != nil {
		return fmt.Errorf("run porthole doctor: %w", err)
	}
	var report struct{ Tier string }
	if err := json.Unmarshal(doctor, &report); err != nil {
		return fmt.Errorf("read what porthole doctor says: %w", err)
	}
	b.tier = report.Tier
	_, err = fmt.Printf("%d x %s, Linux %s %s, %s\nporthole in the %s tier; medians of %d or %d interleaved runs\n",
		runtime.NumCPU(), cpuModel(), unix.ByteSliceToString(uts.Release[:]), unix.ByteSliceToString(uts.Machine[:]),
		runtime.Version(), b.tier, b.runs, b.shortRuns())
	return err
}

// useSocket says where the agent is.
func (b *bench) useSocket(path string) {
	b.socket = path
	b.client = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // agents come and go
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
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

// row adds a line to the table: what, its figure, that of what it is beside, their
// ratio and its goal. A line of fewer cells would end the columns.
func (b *bench) row(what, figure, beside, ratio, goal string) {
	fmt.Fprintln(b.table, strings.Join([]string{what, figure, beside, ratio, goal}, "\t"))
}

// A unit is how a figure is written.
type unit func(value float64) string

func ms(v float64) string { return fmt.Sprintf("%.4g ms", v) }
func us(v float64) string { return fmt.Sprintf("%.3g us", v) }
func mb(v float64) string { return fmt.Sprintf("%.1f MB", v) }

// perSecond is how many there are in a second of what takes so many microseconds.
func perSecond(us float64) string { return fmt.Sprintf("%.0f", 1e6/us) }

// compare adds a line of two medians. Its ratio is the median of the ratios of
// neighbouring runs: a machine that slows down for a while slows both.
func (b *bench) compare(what string, figure, beside []float64, in unit, goal string) {
	ratios := make([]float64, len(figure))
	for i := range figure {
		ratios[i] = figure[i] / beside[i]
	}
	b.row("  "+what, in(median(figure)), in(median(beside)), fmt.Sprintf("%.3f", median(ratios)), goal)
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
