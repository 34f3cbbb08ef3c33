// Command vm runs the kernel tests on the kernels of a list, each in a virtual
// machine, and counts: a test that fails, skips or does not run where it should
// is a failure. It needs no root.
//
// Kernels and the few programs that the tests run are Debian's, fetched once
// into a cache and verified by apt.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	kernels, run, cache, doc string
	kvm, verbose, list       bool
	update, bench, systemd   bool
	reboot                   bool
	fleet                    string
	runs                     bool // run was given
	jobs, starts             int
	timeout                  time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := matrix(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "vm: %v\n", err)
		os.Exit(1)
	}
}

func matrix(ctx context.Context) error {
	o, err := parse()
	if err != nil {
		return err
	}
	if o.list {
		return printKernels(os.Stdout)
	}
	chosen, err := choose(kernels, o.kernels)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "porthole-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := &runner{options: o, dir: dir}
	if err := m.prepare(ctx, chosen); err != nil {
		return err
	}
	if m.bench {
		for _, k := range chosen { // one after the other: they take the time
			if err := m.benchmark(ctx, k); err != nil {
				return err
			}
		}
		return nil
	}
	if m.systemd {
		for _, k := range chosen {
			if err := m.underSystemd(ctx, k); err != nil {
				return err
			}
		}
		return nil
	}
	if m.reboot {
		for _, k := range chosen {
			if err := m.overReboot(ctx, k); err != nil {
				return err
			}
		}
		return nil
	}
	if m.fleet != "" {
		return m.inFleet(ctx, chosen, os.Stdin)
	}
	return m.runAll(ctx, chosen)
}

func parse() (options, error) {
	var o options
	flag.StringVar(&o.kernels, "kernel", "", "the `kernels`: 6.1,arm64/6.12 or all; those that gate if empty")
	flag.StringVar(&o.run, "run", "^TestKernel", "the tests, a `regexp` as go test takes it")
	flag.StringVar(&o.cache, "cache", "", "`directory` of what was fetched; porthole-vm in the user's cache if empty")
	flag.StringVar(&o.doc, "doc", "", "Markdown `file` to write, of what each kernel can do")
	flag.BoolVar(&o.kvm, "kvm", false, "use KVM: faster, but only for this machine's architecture")
	flag.BoolVar(&o.update, "update", false, "fetch again what is in the cache")
	flag.BoolVar(&o.bench, "bench", false, "measure what the hooks cost, instead of the tests")
	flag.BoolVar(&o.systemd, "systemd", false, "run the tests of test/systemd instead, in a machine whose process 1 is systemd")
	flag.BoolVar(&o.reboot, "reboot", false, "run the tests of test/reboot instead, in a machine whose power is cut and that boots again")
	flag.StringVar(&o.fleet, "fleet", "", "run the tests of test/fleet instead, in three machines that export to this `port` of 127.0.0.1, until stdin ends")
	flag.BoolVar(&o.verbose, "v", false, "show the consoles")
	flag.BoolVar(&o.list, "list", false, "list the kernels")
	flag.IntVar(&o.jobs, "j", 2, "how many `machines` run at once")
	flag.IntVar(&o.starts, "starts", 0, "how `often` TestKernelStarts starts each command; 0: as often as it does itself")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Minute, "of one machine")
	flag.Parse()
	flag.Visit(func(f *flag.Flag) { o.runs = o.runs || f.Name == "run" })
	if flag.NArg() > 0 || o.jobs < 1 {
		return o, errors.New("want no arguments, and at least 1 machine")
	}
	if _, err := regexp.Compile(o.run); err != nil {
		return o, fmt.Errorf("-run: %w", err)
	}
	if o.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return o, fmt.Errorf("find cache (-cache names one): %w", err)
		}
		o.cache = filepath.Join(dir, "porthole-vm")
	}
	return o, nil
}

func printKernels(w io.Writer) error {
	rows := [][]string{{"KERNEL", "DEBIAN", "GATING"}}
	for _, k := range kernels {
		rows = append(rows, []string{k.String(), strings.Join(k.releases, " "), map[bool]string{true: "yes", false: "no"}[k.gating]})
	}
	return writeTable(w, rows)
}

// prepare fetches and builds what the machines need.
func (m *runner) prepare(ctx context.Context, chosen []kernel) error {
	var err error
	if !m.systemd && !m.reboot && m.fleet == "" {
		if m.suites, err = findSuites(ctx, m.run); err != nil {
			return err
		}
	}
	m.files = make(map[string]string)
	of := programs
	if m.systemd || m.fleet != "" { // which have a package installed
		of = map[string]string{"init": of["init"]}
	}
	c := &cache{dir: m.cache, update: m.update, log: m.log}
	for _, k := range chosen {
		if m.kvm && k.arch != runtime.GOARCH {
			return fmt.Errorf("-kvm: this machine is not %s: name kernels of %s with -kernel", k.arch, runtime.GOARCH)
		}
		command := machines[k.arch].command
		if _, err := exec.LookPath(command); err != nil {
			return cmp.Or(missing(err, command), err)
		}
		if m.files[k.String()], err = c.kernel(ctx, k); err != nil {
			return err
		}
		if m.files[k.arch] != "" {
			continue
		}
		if m.files[k.arch], err = c.tools(ctx, k.arch); err != nil {
			return err
		}
		if err := build(ctx, filepath.Join(m.dir, k.arch), k.arch, of, m.suites); err != nil {
			return err
		}
	}
	return nil
}

// runAll runs the machines, some at once, and reports them in the order of the
// list.
func (m *runner) runAll(ctx context.Context, chosen []kernel) error {
	reports := make([]*report, len(chosen))
	m.slots = make(chan struct{}, m.jobs)
	var wg sync.WaitGroup
	for i, k := range chosen {
		wg.Go(func() { reports[i] = m.boot(ctx, k) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err := summary(os.Stdout, reports); err != nil {
		return err
	}
	failed := 0
	for _, r := range reports {
		failed += len(r.failures)
	}
	if failed > 0 {
		return fmt.Errorf("%d failures", failed)
	}
	if m.doc != "" {
		return writeDoc(m.doc, reports)
	}
	return nil
}
