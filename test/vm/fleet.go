package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/porthole-dev/porthole/test/vm/guest"
)

// fleetTests are the tests of test/fleet, one for each machine.
var fleetTests = []string{"TestFleetExhaustion", "TestFleetStranger", "TestFleetCutOff"}

// What the tests of the machines ask for, as of test/fleet.
const (
	linkOff = "now unplug the network"
	linkOn  = "now plug the network in"
)

// userland is the release whose systemd and dpkg each machine has, whichever its kernel is.
func userland(k kernel) kernel { return kernel{name: "6.12", arch: k.arch, releases: trixie} }

// inFleet boots a machine for each of the tests of test/fleet, which install the package, all at once. They run until
// stdin ends, or one of them does. What they say is printed, after the name of the machine.
func (m *runner) inFleet(ctx context.Context, chosen []kernel, stdin io.Reader) error {
	if len(chosen) != len(fleetTests) {
		return fmt.Errorf("-fleet: %d kernels, want %d", len(chosen), len(fleetTests))
	}
	all := filepath.Join(m.dir, "fleet")
	if err := systemdFiles(filepath.Join(all, "root")); err != nil {
		return err
	}
	if _, err := output(ctx, "", "make", "-s", "packages", "VERSION="+packageVersions[0], "FORMATS=deb", "DIST="+filepath.Join(all, "root", "packages")); err != nil {
		return err
	}
	plans, variants := make([]guest.Plan, len(chosen)), make([]variant, len(chosen))
	for i, k := range chosen {
		var err error
		if plans[i], variants[i], err = m.fleetMachine(ctx, k, fleetName(i), fleetTests[i]); err != nil {
			return err
		}
		variants[i].systems = append(variants[i].systems, all)
	}
	for i, v := range variants {
		fmt.Printf("%s: metrics at %s\n", fleetName(i), v.forward)
	}
	ctx, stop := context.WithCancelCause(ctx)
	ended := errors.New("stdin ended")
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		stop(ended)
	}()
	failures := make([]error, len(chosen))
	var machines sync.WaitGroup
	for i, k := range chosen {
		machines.Go(func() {
			name := fleetName(i)
			jobs, console, err := m.start(ctx, name, k, plans[i], variants[i], func(version string) {
				fmt.Printf("%s: Linux %s\n", name, version)
			})
			switch trouble := kernelTrouble(console); {
			case trouble != "":
				err = fmt.Errorf("the kernel is in trouble:\n%s", trouble)
			case errors.Is(err, ended):
				return
			case err == nil:
				err = fmt.Errorf("the test ended, with %d:\n%s", jobs[name].exit, lastLines(console, 40))
			}
			failures[i] = fmt.Errorf("%s: %w", name, err)
			stop(failures[i])
		})
	}
	machines.Wait()
	return errors.Join(failures...)
}

// fleetName is the host name of a machine.
func fleetName(i int) string { return fmt.Sprintf("fleet-%c", 'a'+i) }

// fleetMachine makes what one machine has of its own.
func (m *runner) fleetMachine(ctx context.Context, k kernel, name, test string) (guest.Plan, variant, error) {
	var plan guest.Plan
	network, modules, err := m.device(ctx, k, "net")
	if err != nil {
		return plan, variant{}, err
	}
	c := &cache{dir: m.cache, update: m.update, log: m.log}
	system, err := c.systemd(ctx, userland(k))
	if err != nil {
		return plan, variant{}, err
	}
	own := filepath.Join(m.dir, name)
	if err := goBuild(ctx, k.arch, "test", "-c", "-tags=fleet", "-ldflags=-s -w", "-trimpath", "-o", filepath.Join(own, "root", "tests", "fleet.test"), "./test/fleet"); err != nil {
		return plan, variant{}, err
	}
	if err := os.MkdirAll(filepath.Join(own, "root", "etc"), 0o755); err != nil {
		return plan, variant{}, err
	}
	if err := os.WriteFile(filepath.Join(own, "root", "etc", "hostname"), []byte(name+"\n"), 0o644); err != nil {
		return plan, variant{}, err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0") // a free port
	if err != nil {
		return plan, variant{}, err
	}
	defer l.Close()
	v := variant{systems: []string{own, system, network}, forward: l.Addr().String(), monitor: filepath.Join(own, "monitor")}
	v.said = func(line string) {
		fmt.Printf("%s: %s\n", name, line)
		on := strings.HasSuffix(line, linkOn)
		if !on && !strings.HasSuffix(line, linkOff) {
			return
		}
		if err := setLink(v.monitor, on); err != nil {
			fmt.Printf("%s: %v\n", name, err)
		}
	}
	job := guest.Job{
		Name: name, Env: []string{"PATH=/bin:/usr/bin:/usr/sbin", "PORTHOLE_FLEET_COLLECTOR=" + net.JoinHostPort(guest.Host, m.fleet)},
		Argv: []string{"/tests/fleet.test", "-test.v", "-test.run", "^" + test + "$", "-test.timeout", m.timeout.String()},
	}
	return guest.Plan{Modules: modules, Systemd: true, Jobs: []guest.Job{job}}, v, nil
}
