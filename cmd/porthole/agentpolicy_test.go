package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// waitLog waits for a line of a log that has all of these, and returns it and those before.
func waitLog(t *testing.T, lines lineWriter, words ...string) (line string, before []string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line := <-lines:
			has := true
			for _, word := range words {
				has = has && strings.Contains(line, word)
			}
			if has {
				return line, before
			}
			before = append(before, line)
		case <-timeout:
			t.Fatalf("no line of the log has %q; %q", words, before)
		}
	}
}

// An agent with a policy counts what it does not allow and logs each listener once, also one that is gone
// soon; it reads the file again on SIGHUP, and keeps what it had where that is wrong.
func TestKernelAgentPolicy(t *testing.T) {
	testutil.NewNetNS(t)
	file := filepath.Join(t.TempDir(), "policy.yml")
	there := listen(t, "127.0.0.1:20171") // before the agent
	write := func(text string, args ...any) {
		t.Helper()
		// Others on this machine listen as they like.
		text = "allow:\n- port: 1-20170\n- port: 20180-65535\n" + fmt.Sprintf(text, args...)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("- {name: mine, port: %d, program: nosuch}\n", there.Port)
	socket := filepath.Join(t.TempDir(), "s")
	cmd := child(t, "agent", "--socket", socket, "--web.listen-address=", "--tier", testTier(), "--policy", file)
	log := stderrLines(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	count := func(rule string, want int) {
		t.Helper()
		line := fmt.Sprintf("porthole_policy_violations{rule=%q} %d\n", rule, want)
		testutil.Await(t, line, func() bool {
			_, body := get(t, socket, "GET", "/metrics")
			return strings.Contains(body, line)
		})
	}
	port := fmt.Sprintf("port=%d/tcp", there.Port)
	line, _ := waitLog(t, log, "not allowed", port)
	for _, want := range []string{"rule=mine", `reason="the rule says program nosuch"`, "exposure=local", "address=127.0.0.1", fmt.Sprint("pid=", os.Getpid())} {
		if !strings.Contains(line, want) {
			t.Errorf("log: %s lacks %s", line, want)
		}
	}
	count("mine", 1)
	count("none", 0)

	l, err := net.Listen("tcp", "0.0.0.0:20172")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	line, before := waitLog(t, log, "not allowed", "port=20172/tcp")
	if !strings.Contains(line, "gone=true") || !strings.Contains(line, "rule=none") || strings.Contains(strings.Join(before, ""), port) {
		t.Errorf("log of one that is gone: %q, after %q", line, before)
	}

	conn, err := net.ListenPacket("udp", "127.0.0.1:20173")
	if err != nil {
		t.Fatal(err)
	}
	waitLog(t, log, "not allowed", "port=20173/udp")
	count("none", 1)
	conn.Close()
	count("none", 0)

	if err := os.WriteFile(file, []byte("allow:\n- prot: 80\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGHUP)
	waitLog(t, log, "the policy is wrong, the one before holds", "line 2: field prot")
	os.Remove(file)
	cmd.Process.Signal(syscall.SIGHUP)
	waitLog(t, log, "the policy cannot be read again, the one before holds", file)
	count("mine", 1)
	write("- {name: yours, port: %d}\n", there.Port)
	cmd.Process.Signal(syscall.SIGHUP)
	waitLog(t, log, "the policy was read again", "rules=3")
	count("yours", 0)
	if _, body := get(t, socket, "GET", "/metrics"); strings.Contains(body, `rule="mine"`) {
		t.Error("a rule that is gone is counted still")
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the agent ends with %v", err)
	}
}

// A policy that cannot be used is refused before anything is attached.
func TestAgentPolicyWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yml")
	if _, errs, code := command(t, "agent", "--policy", file); code != exitCant || !strings.Contains(errs, file) || strings.Contains(errs, "attached") {
		t.Errorf("of a file that is not there: exit code %d, %s", code, errs)
	}
	if err := os.WriteFile(file, []byte("allow:\n- port: 80-70\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := command(t, "agent", "--policy", file); code != exitUsage || !strings.Contains(errs, file+`: rule 1: port: "80-70"`) {
		t.Errorf("of a wrong one: exit code %d, %s", code, errs)
	}
}
