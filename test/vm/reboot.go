package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/porthole-dev/porthole/test/vm/guest"
)

// powerCut is what the test of the first boot says when the power is to be cut: as of test/reboot.
const powerCut = "now cut the power"

// diskSize is that of the disk, of which little is written.
const diskSize = 128 << 20

// overReboot boots a machine with a disk twice, with a power cut between, and runs the tests of test/reboot: what is on
// the disk then is what was synced.
func (m *runner) overReboot(ctx context.Context, k kernel) error {
	fetched, modules, err := m.device(ctx, k, "disk")
	if err != nil {
		return err
	}
	dir := filepath.Join(m.dir, "reboot")
	if err := goBuild(ctx, k.arch, "test", "-c", "-tags=reboot", "-ldflags=-s -w", "-trimpath", "-o", filepath.Join(dir, "root", "tests", "reboot.test"), "./test/reboot"); err != nil {
		return err
	}
	disk := filepath.Join(m.dir, "disk.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(disk, diskSize); err != nil {
		return err
	}
	if _, err := output(ctx, "", "/usr/sbin/mkfs.ext4", "-q", "-F", disk); err != nil {
		return fmt.Errorf("make the file system of the disk: %w", err)
	}
	for _, boot := range []struct{ test, cut string }{{"TestRebootBefore", powerCut}, {"TestRebootAfter", ""}} {
		job := guest.Job{Name: "reboot", Argv: []string{"/tests/reboot.test", "-test.v", "-test.run", "^" + boot.test + "$", "-test.timeout", m.timeout.String()}}
		plan := guest.Plan{Modules: modules, Jobs: []guest.Job{job}}
		jobs, console, err := m.start(ctx, boot.test, k, plan, variant{systems: []string{m.files[k.arch], fetched, dir}, disk: disk, cut: boot.cut}, func(string) {})
		o := jobs["reboot"]
		fmt.Printf("%s, %s\n%s\n", k, boot.test, o.text())
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w\n%s", k, err, lastLines(console, 20))
		case kernelTrouble(console) != "":
			return fmt.Errorf("%s: the kernel is in trouble:\n%s", k, kernelTrouble(console))
		case boot.cut != "" && o.ended:
			return fmt.Errorf("%s: the tests ended before the power was cut", k)
		case boot.cut == "" && !o.ended:
			return fmt.Errorf("%s: the tests did not end\n%s", k, lastLines(console, 40))
		case o.exit != 0:
			return fmt.Errorf("%s: the tests exited with %d", k, o.exit)
		}
	}
	return nil
}
