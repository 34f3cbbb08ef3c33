package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// terminal is one of tmux, in which porthole runs.
type terminal struct {
	t      *testing.T
	server string
}

// inTerminal runs porthole in a terminal of a size. Once it ends, its exit code and the terminal's state
// are written below.
func inTerminal(t *testing.T, width, height int, args ...string) *terminal {
	t.Helper()
	text, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t, filepath.Join(t.TempDir(), "tmux")}
	script := `"$0"; echo "exit $?"; stty -a; read wait`
	term.tmux("-u", "-f", "/dev/null", "new-session", "-d", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height),
		"-e", argsEnv+"="+string(text), "-e", "LANG=C.UTF-8", "sh", "-c", script, exe)
	t.Cleanup(func() { term.tmux("kill-server") })
	return term
}

func (term *terminal) tmux(args ...string) string {
	term.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-S", term.server}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		term.t.Fatalf("tmux %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// press presses keys, by tmux's names.
func (term *terminal) press(keys ...string) {
	term.t.Helper()
	term.tmux(append([]string{"send-keys", "--"}, keys...)...)
}

func (term *terminal) typed(text string) {
	term.t.Helper()
	term.tmux("send-keys", "-l", "--", text)
}

// awaits waits until the screen has all of some texts, and returns it.
func (term *terminal) awaits(texts ...string) (screen string) {
	term.t.Helper()
	end := time.Now().Add(patience)
	for {
		screen = term.tmux("capture-pane", "-p")
		missing := ""
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				missing = text
			}
		}
		if missing == "" {
			return screen
		}
		if time.Now().After(end) {
			term.t.Fatalf("no %q on the screen:\n%s", missing, screen)
		}
		time.Sleep(5 * time.Millisecond) // tmux tells of no change
	}
}

// restored fails the test unless porthole has ended with an exit code and left the terminal as it was.
func (term *terminal) restored(code int) {
	term.t.Helper()
	screen := term.awaits(fmt.Sprintf("exit %d", code), "icanon")
	for _, off := range []string{"-icanon", "-echo ", "-isig"} {
		if strings.Contains(screen, off) {
			term.t.Errorf("%s is left:\n%s", off, screen)
		}
	}
	modes := term.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag} #{keypad_flag}")
	if strings.TrimSpace(modes) != "0 1 0 0" {
		term.t.Errorf("alternate screen, cursor, mouse, keypad: %s", modes)
	}
}

// process is porthole's.
func (term *terminal) process() int {
	term.t.Helper()
	shell := strings.TrimSpace(term.tmux("display-message", "-p", "#{pane_pid}"))
	children, err := os.ReadFile("/proc/" + shell + "/task/" + shell + "/children")
	if err != nil {
		term.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		term.t.Fatal(err)
	}
	return pid
}

// What a user does on a small terminal and on a large one, by the kernel and by an agent.
func TestTop(t *testing.T) {
	ns := testutil.NewNetNS(t)
	listener := listen(t, "127.0.0.1:0")
	port := strconv.Itoa(listener.Port)
	socket, _ := startAgent(t)
	for _, c := range []struct {
		width, height int
		from          string
		args          []string
	}{
		{80, 24, "kernel", []string{"--local", "--tier", testTier()}},
		{200, 50, "agent", []string{"--agent", "--socket", socket}},
	} { // in the goroutine that is in the namespace
		term := inTerminal(t, c.width, c.height, append([]string{"top", "--netns", strconv.Itoa(int(ns))}, c.args...)...)
		term.awaits("1 ports", c.from, port, "127.0.0.1", "q quit")
		term.press("/")
		term.typed(port)
		term.press("Enter")
		term.awaits("filter: --netns "+strconv.Itoa(int(ns))+" "+port, "PORT")
		term.press("Enter")
		term.awaits("who "+port+"/tcp", " on 127.0.0.1:"+port, "esc back") // tmux, too, for a moment before it is started
		term.press("Escape")
		term.awaits("PORT")
		term.press("3")
		term.awaits("nothing has happened yet")
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		term.awaits("connect", "127.0.0.1:"+port, "close")
		term.press("2")
		term.awaits("TO", "FREE")
		term.tmux("resize-window", "-x", "100", "-y", "30")
		term.awaits("FROM") // there is room for it
		term.press("?")
		term.awaits("Help")
		term.press("q", "q")
		term.restored(exitDone)
	}
}

// Signals end it as keys do, but for the exit code, which is that of other commands.
func TestTopSignal(t *testing.T) {
	testutil.NewNetNS(t)
	for how, code := range map[string]int{"SIGTERM": 128 + int(syscall.SIGTERM), "SIGINT": 128 + int(syscall.SIGINT), "C-c": exitDone} {
		term := inTerminal(t, 80, 24, "top", "--local")
		term.awaits("PORT")
		term.press("m") // the mouse is left off
		switch how {
		case "SIGTERM":
			syscall.Kill(term.process(), syscall.SIGTERM)
		case "SIGINT":
			syscall.Kill(term.process(), syscall.SIGINT)
		default:
			term.press(how)
		}
		term.restored(code)
	}
}

// A process that has a port is ended after a question, and its line goes.
func TestTopEnds(t *testing.T) {
	testutil.NewNetNS(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	file.Close()
	l.Close()
	term := inTerminal(t, 80, 24, "top", "--local", "--lport", port, "--interval", "100ms")
	term.awaits(port, "sleep")
	term.press("K")
	term.awaits("End this process?", fmt.Sprintf("sleep (pid %d, user root)", cmd.Process.Pid), "sleep 1000")
	term.press("n")
	term.awaits("PORT", "sleep")
	term.press("K")
	term.awaits("End this process?")
	term.press("y")
	<-ended
	term.awaits("has ended after SIGTERM", "0 ports")
	term.press("q")
	term.restored(exitDone)
}

// An agent that ends is said to, and what can be goes on.
func TestTopAgentEnds(t *testing.T) {
	testutil.NewNetNS(t)
	port := strconv.Itoa(listen(t, "127.0.0.1:0").Port)
	socket, stop := startAgent(t)
	either := inTerminal(t, 80, 24, "top", "--socket", socket, "--lport", port, "--interval", "100ms")
	alone := inTerminal(t, 80, 24, "top", "--socket", socket, "--agent", "--lport", port, "--interval", "100ms")
	for _, term := range []*terminal{either, alone} {
		term.awaits("agent", port)
		term.press("3")
		term.awaits("nothing has happened yet")
		term.press("1")
		term.awaits(port)
	}
	stop()
	either.awaits(port, "querying the kernel")
	alone.awaits(port, "ask the agent")
	for _, term := range []*terminal{either, alone} {
		term.press("3")
	}
	alone.awaits("ask the agent")
	either.awaits("0 events")
	for _, term := range []*terminal{either, alone} {
		term.press("q")
		term.restored(exitDone)
	}
}

// Without a terminal it says what to use instead; so it does on one that cannot be drawn on.
func TestTopNoTerminal(t *testing.T) {
	for _, args := range [][]string{{"top"}, {"top", "--local"}} {
		out, errs, code := invoke(t, args...)
		if code != exitUsage || out != "" || !strings.Contains(errs, "porthole ls") || !strings.Contains(errs, "tail") {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
	if _, errs, code := invoke(t, "top", "--interval", "1ms"); code != exitUsage || !strings.Contains(errs, "--interval") {
		t.Errorf("--interval 1ms: exit code %d, stderr %q", code, errs)
	}
	if _, errs, code := invoke(t, "top", "--proto", "sctp"); code != exitUsage || !strings.Contains(errs, "sctp") {
		t.Errorf("--proto sctp: exit code %d, stderr %q", code, errs)
	}
}
