//go:build reboot

package reboot

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

const (
	disk   = "/disk"
	dir    = disk + "/history"
	socket = "/run/porthole.sock"
	port   = 5000
	closed = 5001
)

// tenancy is a row of the history, as far as it is looked at.
type tenancy struct {
	PID        int       `json:"pid"`
	Comm       string    `json:"comm"`
	Role       string    `json:"role"`
	Since      time.Time `json:"since"`
	Until      time.Time `json:"until"`
	UntilKnown *bool     `json:"until_known"`
	Open       bool      `json:"open"`
	Event      string    `json:"event"`
	HeldBy     []struct {
		Holders []tenancy `json:"holders"`
	} `json:"held_by"`
}

func mountDisk(t *testing.T) {
	t.Helper()
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	testutil.Await(t, "the disk", func() bool { _, err := os.Stat("/dev/vda"); return err == nil })
	if err := unix.Mount("/dev/vda", disk, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
}

func startAgent(t *testing.T) {
	t.Helper()
	cmd := exec.Command("porthole", "agent", "--socket", socket, "--web.listen-address=", "--history.dir", dir)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan bool)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			fmt.Println("agent:", lines.Text())
			if strings.HasPrefix(lines.Text(), "socket: ") {
				close(ready)
			}
		}
	}()
	select {
	case <-ready:
	case <-time.After(2 * time.Minute):
		t.Fatal("the agent is not ready within two minutes")
	}
}

func bootID(t *testing.T) string {
	t.Helper()
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	return string(id)
}

// history asks porthole, and returns the rows.
func history(t *testing.T, args ...string) (rows []tenancy) {
	t.Helper()
	cmd := exec.Command("porthole", append(args, "--json")...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() > 1 {
		t.Fatalf("porthole %s: %v, %s", strings.Join(args, " "), err, &errs)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var row tenancy
		if err := dec.Decode(&row); err != nil {
			t.Fatalf("porthole %s: %v in %s", strings.Join(args, " "), err, out)
		}
		rows = append(rows, row)
	}
	return rows
}

var (
	onDisk = []string{"--local", "--history.dir", dir}
	asked  = []string{"--agent", "--socket", socket}
)

func listen(t *testing.T, port int) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// isRefused tells whether a bind was refused because of a process.
func isRefused(rows []tenancy, pid int) bool {
	return slices.ContainsFunc(rows, func(r tenancy) bool {
		return r.Event == "bind" && len(r.HeldBy) == 1 && len(r.HeldBy[0].Holders) > 0 && r.HeldBy[0].Holders[0].PID == pid
	})
}

// Of the first boot: a listener that is open, one that is closed, and a bind that was refused are on disk when the
// power is cut, with the agent at work.
func TestRebootBefore(t *testing.T) {
	mountDisk(t)
	if err := os.WriteFile(disk+"/boot", []byte(bootID(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	startAgent(t)
	listen(t, port)
	listen(t, closed).Close()
	testutil.AwaitWithin(t, 2*time.Minute, "a history", func() bool {
		files, err := os.ReadDir(dir)
		return err == nil && len(files) > 1 // the lock is the first
	})
	testutil.AwaitWithin(t, 2*time.Minute, "all is in the history", func() bool {
		// Again: on a machine that has just started, who holds the port can be known too late for the event.
		if _, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			t.Fatal("the port is taken twice")
		}
		rows := history(t, append([]string{"history", fmt.Sprint(port), "--listeners"}, onDisk...)...)
		over := history(t, append([]string{"history", fmt.Sprint(closed), "--listeners"}, onDisk...)...)
		return len(rows) == 1 && rows[0].Open && len(over) == 1 && !over[0].Open && isRefused(history(t, append([]string{"history", fmt.Sprint(port), "--failures"}, onDisk...)...), os.Getpid())
	})
	if err := os.WriteFile(disk+"/at", []byte(time.Now().Format(time.RFC3339Nano)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/boot", "/at"} { // what the history has is the agent's own affair
		f, err := os.Open(disk + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	fmt.Println("now cut the power")
	time.Sleep(5 * time.Minute) // it is
	t.Fatal("the power is on still")
}

// Of the second boot: who had the port is known, from the disk and from the next agent; its end is the last moment that
// is known; nothing of the boot before is taken for open.
func TestRebootAfter(t *testing.T) {
	mountDisk(t)
	before, err := os.ReadFile(disk + "/boot")
	if err != nil || string(before) == bootID(t) {
		t.Fatalf("boot id %s, before %s: %v", bootID(t), before, err)
	}
	text, err := os.ReadFile(disk + "/at")
	if err != nil {
		t.Fatal(err)
	}
	at, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, from []string, open int) {
		t.Helper()
		rows := history(t, append([]string{"history", fmt.Sprint(port), "--listeners"}, from...)...)
		if len(rows) != 1+open || open == 1 && !rows[0].Open {
			t.Fatalf("%s: %+v", what, rows)
		}
		old := rows[open]
		if old.Open || old.UntilKnown == nil || *old.UntilKnown || old.Comm != "reboot.test" || old.Role != "listener" || old.Since.IsZero() ||
			old.Until.Before(old.Since) || old.Until.After(time.Now()) || old.Until.Before(at.Add(-5*time.Second)) || old.Until.After(at.Add(5*time.Second)) {
			t.Errorf("%s: what was open: %+v, at %v", what, old, at)
		}
		over := history(t, append([]string{"history", fmt.Sprint(closed), "--listeners"}, from...)...)
		if len(over) != 1 || over[0].UntilKnown != nil || over[0].Until.IsZero() {
			t.Errorf("%s: what was closed: %+v", what, over)
		}
		then := history(t, append([]string{"who", fmt.Sprint(port), "--at", old.Since.Add(old.Until.Sub(old.Since) / 2).Format(time.RFC3339Nano)}, from...)...)
		if len(then) != 1 || then[0].PID != old.PID || then[0].Open {
			t.Errorf("%s: who had it then: %+v", what, then)
		}
		refused := history(t, append([]string{"history", fmt.Sprint(port), "--failures"}, from...)...)
		if !isRefused(refused, old.PID) {
			t.Errorf("%s: the bind that was refused: %+v", what, refused)
		}
		for _, r := range history(t, append([]string{"history", "-n", "0"}, from...)...) {
			if r.Open && (open == 0 || r.PID != os.Getpid()) {
				t.Errorf("%s: taken for open: %+v", what, r)
			}
		}
	}
	check("from the disk", onDisk, 0)
	startAgent(t)
	check("from the agent", asked, 0)
	listen(t, port)
	testutil.AwaitWithin(t, 2*time.Minute, "the new listener is in the history", func() bool {
		return len(history(t, append([]string{"history", fmt.Sprint(port), "--listeners"}, asked...)...)) == 2
	})
	check("from the agent, with a new listener", asked, 1)
}
