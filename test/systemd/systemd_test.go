//go:build systemd

// Package systemd has the tests of a machine whose process 1 is systemd, with cgroup v2
// alone: test/vm boots one. On the machine of whoever runs them they would start and stop
// services.
package systemd

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Users and the group of the socket, as the machine has them.
const (
	shop, guest   = 1000, 1001
	groupPorthole = 990
)

// atMost bounds everything that is waited for.
const atMost = 2 * time.Minute

// command runs a command to its end.
func command(t *testing.T, cred *syscall.Credential, argv ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), atMost)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// do runs a command that must succeed.
func do(t *testing.T, argv ...string) string {
	t.Helper()
	out, errs, code := command(t, nil, argv...)
	if code != 0 {
		t.Fatalf("%s: exit code %d\n%s%s", strings.Join(argv, " "), code, out, errs)
	}
	return strings.TrimSpace(out)
}

// startAgent starts the service, and returns when it is ready.
func startAgent(t *testing.T) {
	t.Helper()
	if out, errs, code := command(t, nil, "systemctl", "start", "porthole"); code != 0 {
		t.Fatalf("systemctl start porthole: %s%s\n%s", out, errs, do(t, "systemctl", "status", "--no-pager", "-l", "porthole"))
	}
	t.Cleanup(func() { do(t, "systemctl", "stop", "porthole") })
}

// The service is ready with no more than what its unit gives it, answers root and the group,
// and nobody else.
func TestSystemdService(t *testing.T) {
	startAgent(t)
	if got := do(t, "systemctl", "show", "-P", "ActiveState", "porthole"); got != "active" {
		t.Errorf("ActiveState %s, want active", got)
	}
	pid := do(t, "systemctl", "show", "-P", "MainPID", "porthole")
	if got := capabilities(t, pid, "CapEff"); got != "cap_dac_read_search,cap_bpf" {
		t.Errorf("the agent works with %s", got)
	}
	if got := capabilities(t, pid, "CapBnd"); got != "cap_chown,cap_dac_read_search,cap_net_admin,cap_perfmon,cap_bpf" {
		t.Errorf("the agent could get %s", got)
	}
	for _, c := range []struct {
		who  string
		cred *syscall.Credential
		want int
	}{
		{"root", nil, 0},
		{"a member of the group", &syscall.Credential{Uid: shop, Gid: shop, Groups: []uint32{groupPorthole}}, 0},
		{"another user", &syscall.Credential{Uid: guest, Gid: guest, Groups: []uint32{guest}}, 3},
	} {
		out, errs, code := command(t, c.cred, "porthole", "ls", "--agent", "--json")
		if code != c.want {
			t.Errorf("%s gets exit code %d of porthole ls --agent, want %d\n%s%s", c.who, code, c.want, out, errs)
		}
	}
}
