package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/porthole-dev/porthole/test/vm/guest"
)

// systemdTests are the tests of a machine whose process 1 is systemd, in test/systemd.
const systemdTests = "^TestSystemd"

// permitAll is a stack of PAM that asks for no password.
const permitAll = "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\nsession optional pam_systemd.so\n"

// packageVersions are those of the packages that the machine finds in /packages: the tests install one and
// upgrade to the next.
var packageVersions = []string{"0.0.1", "0.0.2"}

// underSystemd boots Debian with systemd and cgroup v2 alone and runs the tests of test/systemd, which
// install the package.
func (m *runner) underSystemd(ctx context.Context, k kernel) error {
	modules, err := m.modules(k)
	if err != nil {
		return err
	}
	c := &cache{dir: m.cache, update: m.update, log: m.log}
	fetched, err := c.systemd(ctx, k)
	if err != nil {
		return err
	}
	dir := filepath.Join(m.dir, "systemd")
	if err := systemdFiles(filepath.Join(dir, "root")); err != nil {
		return err
	}
	for _, version := range packageVersions {
		if _, err := output(ctx, "", "make", "-s", "packages", "VERSION="+version, "ARCHES="+k.arch, "FORMATS=deb",
			"DIST="+filepath.Join(dir, "root", "packages", version)); err != nil {
			return err
		}
	}
	binary := filepath.Join(dir, "root", "tests", "systemd.test")
	if err := goBuild(ctx, k.arch, "test", "-c", "-tags=systemd", "-ldflags=-s -w", "-trimpath", "-o", binary, "./test/systemd"); err != nil {
		return err
	}
	run := m.run
	if !m.runs {
		run = systemdTests
	}
	job := guest.Job{Name: "systemd", Env: []string{"PATH=/bin:/usr/bin:/usr/sbin"}, Argv: []string{"/tests/systemd.test", "-test.v", "-test.run", run, "-test.timeout", m.timeout.String()}}
	plan := guest.Plan{Modules: modules, Systemd: true, Jobs: []guest.Job{job}}
	jobs, console, err := m.start(ctx, "systemd", k, plan, variant{systems: []string{dir, fetched}}, func(string) {})
	o := jobs["systemd"]
	fmt.Printf("%s under systemd\n%s\n", k, o.text())
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w\n%s", k, err, lastLines(console, 20))
	case kernelTrouble(console) != "":
		return fmt.Errorf("%s: the kernel is in trouble:\n%s", k, kernelTrouble(console))
	case !o.ended:
		return fmt.Errorf("%s: the tests did not end\n%s", k, lastLines(console, 40))
	case o.exit != 0:
		return fmt.Errorf("%s: the tests exited with %d", k, o.exit)
	}
	return nil
}

// systemdFiles writes what a system has besides its packages, whose maintainer scripts are
// not run: who there is, and the units.
func systemdFiles(root string) error {
	for name, text := range map[string]string{
		"etc/passwd":                      "root:x:0:0::/root:/bin/sh\nmessagebus:x:100:100::/:/usr/sbin/nologin\nshop:x:1000:1000::/home/shop:/bin/sh\nguest:x:1001:1001::/home/guest:/bin/sh\n",
		"etc/gshadow":                     "",
		"etc/group":                       "root:x:0:\ntty:x:5:\nmessagebus:x:100:\nshop:x:1000:\nguest:x:1001:\n",
		"etc/shadow":                      "root:*:1::::::\nshop:*:1::::::\nguest:*:1::::::\n",
		"etc/os-release":                  "ID=debian\n",
		"etc/machine-id":                  "",
		"etc/fstab":                       "",
		"home/shop/.profile":              "",
		"etc/pam.d/systemd-user":          permitAll,
		"etc/pam.d/runuser":               permitAll,
		"etc/pam.d/other":                 permitAll,
		"etc/systemd/system/getty.target": "", // masked
		"etc/systemd/system/tests.service": `[Unit]
Description=the jobs of the plan
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStart=/init jobs
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
`,
		"etc/systemd/system/default.target": `[Unit]
Requires=multi-user.target
Wants=tests.service
After=multi-user.target
AllowIsolate=yes
`,
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
