package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/porthole-dev/porthole/test/vm/guest"
)

// runner runs the machines.
type runner struct {
	options
	dir    string            // for what is built
	slots  chan struct{}     // as many machines may run at once
	files  map[string]string // directories in the cache, of kernels and of architectures
	suites []suite
}

func (m *runner) log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "vm: "+format+"\n", args...)
}

// report is what a kernel's run showed.
type report struct {
	kernel   kernel
	version  string // as uname -r says
	boot     time.Duration
	tiers    map[tier]*tally
	doctors  map[tier]*doctor
	failures []string
}

// doctor is what porthole doctor says of a tier, as far as it is looked at.
type doctor struct {
	Tier  tier `json:"tier"`
	Hooks []struct {
		Hook     string `json:"hook"`
		Attached bool   `json:"attached"`
		Reason   string `json:"reason"`
	} `json:"hooks"`
	NotSeen []string `json:"not_seen"`
}

// cannotTrace is porthole's exit code where it cannot trace.
const cannotTrace = 3

// boot runs a kernel, a machine for each tier, and judges it.
func (m *runner) boot(ctx context.Context, k kernel) *report {
	r := &report{kernel: k, tiers: make(map[tier]*tally), doctors: make(map[tier]*doctor)}
	plans, err := m.plans(k)
	if err != nil {
		r.failures = append(r.failures, err.Error())
		return r
	}
	start := time.Now()
	all := make(map[string]*outcome)
	var mu sync.Mutex // of r and all
	var wg sync.WaitGroup
	for i, plan := range plans {
		wg.Go(func() {
			m.slots <- struct{}{}
			defer func() { <-m.slots }()
			begin, up := time.Now(), false
			jobs, console, err := m.start(ctx, fmt.Sprint(i), k, plan, variant{}, func(version string) {
				mu.Lock()
				defer mu.Unlock()
				r.version, r.boot, up = version, time.Since(begin), true
			})
			mu.Lock()
			defer mu.Unlock()
			if trouble := kernelTrouble(console); trouble != "" {
				r.failures = append(r.failures, "the kernel is in trouble:\n"+indent(trouble))
			}
			if err == nil && !up {
				err = errors.New("it did not come to init")
			}
			if err != nil {
				r.failures = append(r.failures, fmt.Sprintf("machine: %v\n%s", err, indent(lastLines(console, 20))))
			}
			maps.Copy(all, jobs)
		})
	}
	wg.Wait()
	if r.version != "" {
		m.judge(r, all)
	}
	m.log("%s: %s booted in %.1fs, ended after %.0fs, %d failures", k, r.version, r.boot.Seconds(), time.Since(start).Seconds(), len(r.failures))
	return r
}

// variant is what a machine has that those of the tests have not.
type variant struct {
	counting bool // its clock counts instructions
	// systems are directories, with a root each, in place of the tools; it gets memory for them.
	systems []string
	disk    string            // as of vm
	cut     string            // once a job says so, the power is cut
	forward string            // as of vm
	monitor string            // as of vm
	said    func(line string) // gets every line of the jobs, or nil
}

// start boots a kernel and returns what became of each job, and the console. name
// is the machine's among those of the kernel.
func (m *runner) start(ctx context.Context, name string, k kernel, plan guest.Plan, v variant, booted func(version string)) (map[string]*outcome, string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.timeout, fmt.Errorf("not done after %v", m.timeout))
	defer cancel()
	jobs := make(map[string]*outcome)
	for _, j := range plan.Jobs {
		jobs[j.Name] = &outcome{}
	}
	machine := &vm{arch: k.arch, vmlinuz: filepath.Join(m.files[k.String()], "vmlinuz"), flags: k.flags, kvm: m.kvm, memory: "1G", counting: v.counting}
	machine.initrd = filepath.Join(m.dir, strings.ReplaceAll(k.String(), "/", "-")+"-"+name+".cpio")
	if m.verbose {
		machine.console = os.Stderr
	}
	systems := []string{m.files[k.arch]}
	if v.systems != nil {
		systems, machine.memory = v.systems, "3G"
	}
	roots := []string{filepath.Join(m.files[k.String()], "root"), filepath.Join(m.dir, k.arch)}
	for _, system := range systems {
		roots = append(roots, filepath.Join(system, "root"))
	}
	if err := writeImage(machine.initrd, plan, roots); err != nil {
		return jobs, "", err
	}
	machine.disk, machine.forward, machine.monitor = v.disk, v.forward, v.monitor
	cut := false
	console, err := machine.run(ctx, func(msg guest.Message) {
		if msg.Kernel != "" {
			booted(msg.Kernel)
		} else if o := jobs[msg.Job]; o != nil {
			o.add(msg)
		}
		if v.said != nil && msg.Exit == nil && msg.Kernel == "" {
			v.said(msg.Output)
		}
		if v.cut != "" && strings.HasSuffix(msg.Output, v.cut) {
			cut = true
			cancel()
		}
	})
	if cut {
		err = nil
	}
	return jobs, console, err
}

func (o *outcome) add(msg guest.Message) {
	if msg.Exit != nil {
		o.ended, o.exit, o.seconds = true, *msg.Exit, msg.Seconds
		return
	}
	o.output = append(o.output, msg.Output)
}

// gogc has Go collect garbage less often: the tests have a machine of their own,
// and a slow one.
const gogc = "GOGC=400"

// modules are the files, in the image, of those that the kernel needs.
func (m *runner) modules(k kernel) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(m.files[k.String()], "root", "modules", "*.ko"))
	for i, file := range files {
		files[i] = "/modules/" + filepath.Base(file)
	}
	return files, err
}

// device is the directory of the modules of a device, and the files, in the image, of those and of all that the kernel needs.
func (m *runner) device(ctx context.Context, k kernel, device string) (dir string, files []string, err error) {
	if files, err = m.modules(k); err != nil {
		return "", nil, err
	}
	c := &cache{dir: m.cache, update: m.update, log: m.log}
	if dir, err = c.device(ctx, k, device); err != nil {
		return "", nil, err
	}
	more, err := filepath.Glob(filepath.Join(dir, "root", "modules-"+device, "*.ko"))
	for _, file := range more {
		files = append(files, "/modules-"+device+"/"+filepath.Base(file))
	}
	return dir, files, err
}

// plans is the jobs of each machine: for each tier that is tested porthole doctor
// and each suite. The first machine runs porthole doctor in the other tiers, too.
func (m *runner) plans(k kernel) ([]guest.Plan, error) {
	modules, err := m.modules(k)
	if err != nil {
		return nil, err
	}
	env := []string{gogc}
	if m.starts > 0 {
		env = append(env, fmt.Sprintf("PORTHOLE_STARTS=%d", m.starts))
	}
	var plans []guest.Plan
	var without []guest.Job
	for _, t := range tiers {
		look := guest.Job{Name: doctorJob(t), Argv: []string{"/bin/porthole", "doctor", "--json", "--tier", string(t)}}
		if k.missing[t] != "" || k.untested[t] != "" {
			without = append(without, look)
			continue
		}
		plan := guest.Plan{Modules: modules, Jobs: []guest.Job{look}}
		for _, s := range m.suites {
			plan.Jobs = append(plan.Jobs, guest.Job{
				Name: suiteJob(t, s), Env: append([]string{"PORTHOLE_TEST_TIER=" + string(t)}, env...),
				Argv: []string{"/tests/" + s.name() + ".test", "-test.v", "-test.run", m.run, "-test.timeout", m.timeout.String()},
			})
		}
		plans = append(plans, plan)
	}
	plans[0].Jobs = append(without, plans[0].Jobs...)
	return plans, nil
}

func doctorJob(t tier) string         { return string(t) + " doctor" }
func suiteJob(t tier, s suite) string { return string(t) + " " + s.name() }

// judge counts the tests and looks at what doctor says.
func (m *runner) judge(r *report, jobs map[string]*outcome) {
	for _, t := range tiers {
		var failures []string
		d, err := readDoctor(jobs[doctorJob(t)], r.kernel.missing[t])
		if err != nil {
			failures = append(failures, err.Error())
		}
		r.doctors[t] = d
		if r.kernel.missing[t] == "" && r.kernel.untested[t] == "" {
			tally := &tally{}
			for _, s := range m.suites {
				tally.count(r.kernel, t, s, jobs[suiteJob(t, s)])
			}
			if !strings.Contains(m.run, "/") { // else it may be what was not asked for
				tally.stale(r.kernel, t, m.suites)
			}
			r.tiers[t] = tally
			failures = append(failures, tally.failures...)
		}
		for _, f := range failures {
			r.failures = append(r.failures, string(t)+": "+f)
		}
	}
}

// readDoctor reads what porthole doctor says of a tier. In one the kernel has
// not got, and missing tells why, it must say that it cannot trace.
func readDoctor(o *outcome, missing string) (*doctor, error) {
	want := 0
	if missing != "" {
		want = cannotTrace
	}
	if !o.ended {
		return nil, errors.New("porthole doctor did not end")
	}
	if o.exit != want {
		return nil, fmt.Errorf("porthole doctor: exit code %d, want %d:\n%s", o.exit, want, indent(lastLines(o.text(), 20)))
	}
	if missing != "" {
		return nil, nil
	}
	var d doctor
	if err := json.Unmarshal([]byte(o.text()), &d); err != nil {
		return nil, fmt.Errorf("read porthole doctor: %w", err)
	}
	return &d, nil
}
