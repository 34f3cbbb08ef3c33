//go:build systemd

// Package systemd has the tests of a machine whose process 1 is systemd, with cgroup v2
// alone: test/vm boots one. On the machine of whoever runs them they would start and stop
// services.
package systemd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// Users, as the machine has them.
const shop, guest = 1000, 1001

// member is the credential of a user who is in the group of the socket, which the package has made.
func member(t *testing.T, uid uint32) *syscall.Credential {
	t.Helper()
	group, err := user.LookupGroup("porthole")
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(group.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{uint32(gid)}}
}

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
		{"a member of the group", member(t, shop), 0},
		{"another user", &syscall.Credential{Uid: guest, Gid: guest, Groups: []uint32{guest}}, 3},
	} {
		out, errs, code := command(t, c.cred, "porthole", "ls", "--agent", "--json")
		if code != c.want {
			t.Errorf("%s gets exit code %d of porthole ls --agent, want %d\n%s%s", c.who, code, c.want, out, errs)
		}
	}
}

// listenEnv has this program listen at an address, as a service does.
const listenEnv = "PORTHOLE_TEST_LISTEN"

func TestMain(m *testing.M) {
	if at := os.Getenv(listenEnv); at != "" {
		l, err := net.Listen("tcp4", at)
		for err == nil {
			_, err = l.Accept()
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if out, err := exec.Command("dpkg", "-i", deb(installed)).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "install the package: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// process is who holds a socket, as far as it is looked at.
type process struct {
	PID      int    `json:"pid"`
	Unit     string `json:"unit"`
	UnitUser *int   `json:"unit_user"`
}

// who asks who listens on a port of 127.0.0.1, once somebody does. It asks this kernel, and
// then the agent: both must say the same.
func who(t *testing.T, port int) process {
	t.Helper()
	at := fmt.Sprintf("127.0.0.1:%d", port)
	testutil.AwaitWithin(t, atMost, "a listener on "+at, func() bool {
		conn, err := net.Dial("tcp4", at)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	var of [2]process
	for i, flags := range [][]string{nil, {"--agent"}} {
		var answer struct {
			Sockets []struct {
				Role    string    `json:"role"`
				Holders []process `json:"holders"`
			} `json:"sockets"`
		}
		if err := json.Unmarshal([]byte(do(t, append([]string{"porthole", "who", fmt.Sprint(port), "--json"}, flags...)...)), &answer); err != nil {
			t.Fatal(err)
		}
		for _, so := range answer.Sockets {
			if so.Role == "listener" && len(so.Holders) == 1 {
				of[i] = so.Holders[0]
			}
		}
	}
	if of[0].PID != of[1].PID || of[0].Unit != of[1].Unit {
		t.Errorf("port %d: the kernel says %+v, the agent %+v", port, of[0], of[1])
	}
	return of[0]
}

// What systemd started is called by its unit: services, scopes, and those of a user's own
// manager.
func TestSystemdUnits(t *testing.T) {
	startAgent(t)
	start := func(port int, argv ...string) {
		t.Helper()
		listen := fmt.Sprintf("%s=127.0.0.1:%d", listenEnv, port)
		cmd := exec.Command(argv[0], append(argv[1:], "/usr/bin/env", listen, os.Args[0])...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	start(8081, "systemd-run", "--unit=shop")
	start(8082, "systemd-run", "--scope", "--unit=batch")
	if out, errs, code := command(t, nil, "systemctl", "start", fmt.Sprintf("user@%d", shop)); code != 0 {
		t.Fatalf("%s%s\n%s", out, errs, do(t, "journalctl", "--no-pager", "-n", "40"))
	}
	t.Cleanup(func() { do(t, "systemctl", "stop", fmt.Sprintf("user@%d", shop), "shop.service", "batch.scope") })
	start(8083, "/usr/sbin/runuser", "-u", "shop", "--", "env", fmt.Sprintf("XDG_RUNTIME_DIR=/run/user/%d", shop), "systemd-run", "--user", "--unit=mine")
	for port, want := range map[int]process{
		8081: {Unit: "shop.service"},
		8082: {Unit: "batch.scope"},
		8083: {Unit: "mine.service", UnitUser: new(int)},
	} {
		got := who(t, port)
		if got.Unit != want.Unit || (got.UnitUser != nil) != (want.UnitUser != nil) {
			t.Errorf("port %d is of unit %q (user's: %v), want %q", port, got.Unit, got.UnitUser != nil, want.Unit)
		}
		if got.UnitUser != nil && *got.UnitUser != shop {
			t.Errorf("port %d: unit_user %d, want %d", port, *got.UnitUser, shop)
		}
	}
}

// A port that systemd itself listens on, for a service that it starts when somebody connects,
// belongs to the socket unit; and to the service once that runs.
func TestSystemdSocketUnit(t *testing.T) {
	for name, text := range map[string]string{
		"idle.socket":  "[Socket]\nListenStream=127.0.0.1:8090\n",
		"idle.service": "[Service]\nExecStart=/usr/bin/sleep infinity\n",
	} {
		if err := os.WriteFile("/run/systemd/system/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	do(t, "systemctl", "daemon-reload")
	do(t, "systemctl", "start", "idle.socket")
	t.Cleanup(func() { do(t, "systemctl", "stop", "idle.socket", "idle.service") })
	text := do(t, "porthole", "who", "8090")
	t.Log(text)
	if !strings.Contains(text, "socket unit idle.socket") || !strings.Contains(text, "systemctl stop idle.socket") {
		t.Errorf("who 8090 does not name idle.socket:\n%s", text)
	}
	if strings.Contains(text, "NAT") { // this kernel has none
		t.Errorf("who 8090 speaks of NAT:\n%s", text)
	}
}
