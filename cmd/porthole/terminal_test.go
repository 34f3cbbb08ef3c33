package main

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// newPTY returns both sides of a terminal of so many columns.
func newPTY(t *testing.T, columns uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// sgr matches what switches a color on or off.
var sgr = regexp.MustCompile("\x1b\\[[0-9;]*m")

// onTerminal runs porthole on a terminal and returns its lines. act, which may be nil, is called once
// tail follows events.
func onTerminal(t *testing.T, columns uint16, args []string, act func()) []string {
	t.Helper()
	master, slave := newPTY(t, columns)
	c := child(t, args...)
	c.Stdout, c.Stderr = slave, slave
	c.Env = append(c.Env, "TERM=xterm")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close() // so that its end ends the reading
	var lines []string
	for in := bufio.NewScanner(master); in.Scan(); {
		line := strings.TrimRight(sgr.ReplaceAllString(in.Text(), ""), "\r")
		lines = append(lines, line)
		if act != nil && strings.HasPrefix(line, "TIME ") {
			act()
			act = nil
		}
	}
	_ = c.Wait() // check and wait say no
	return lines
}

// longWay makes sockets whose addresses do not fit a terminal: a listener, connections from both sides,
// and one in TIME-WAIT.
type longWay struct {
	server *net.TCPAddr
}

func newLongWay(t *testing.T) *longWay {
	t.Helper()
	const long = "2001:db8:85a3:1234:5678:8a2e:370:7334"
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(long + "/128")
	if err != nil {
		t.Fatal(err)
	}
	addr.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(lo, addr); err != nil {
		t.Fatal(err)
	}
	w := &longWay{server: listen(t, netip.AddrPortFrom(netip.MustParseAddr(long), 28443).String())}
	listen(t, "127.0.0.1:28443")
	testutil.Await(t, "a route to the new address", func() bool {
		c, err := net.DialTCP("tcp", nil, w.server)
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err == nil
	})
	w.act(t)
	return w
}

// act makes events: a connection that ends in TIME-WAIT, and a bind() that is refused.
func (w *longWay) act(t *testing.T) {
	t.Helper()
	dial(t, w.server).Close()
	if l, err := net.ListenTCP("tcp", w.server); err == nil {
		l.Close()
		t.Error("a port was given twice")
	}
}

// Whatever there is to show, no line of any view is wider than the terminal that it is on.
func TestKernelTerminal(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	w := newLongWay(t)
	for _, view := range []struct {
		line, has string
	}{
		{"ls --netns " + ns, "28443"}, {"ls -tl", "28443"}, {"ls --exposed", "STATE"}, {"who 28443", "listens on"}, {"headroom --top 20", "ephemeral ports"},
		{"headroom --netns " + ns, "ephemeral ports"}, {"check 28443", "EADDRINUSE"}, {"check " + w.server.IP.String() + " 28443", "connected from"},
		{"check " + w.server.IP.String() + " 28444", "ECONNREFUSED"}, {"wait 28443 --timeout 0", "somebody listens"}, {"wait 28444 --timeout 0", "nobody listened"},
		{"doctor -v --tier " + testTier(), "porthole works here"}, {"run -- true", "exit code 0"}, {"free 3", ""}, {"ls --help", "Flags:"}, {"--help", "Available Commands:"},
		{"ls --netns nope", "network namespace"}, {"tail --netns " + ns + " --count 3 --duration 60s --tier " + testTier(), "28443"}, {"tail --count 3 --duration 60s --tier " + testTier(), "EVENT"},
	} {
		for _, columns := range []uint16{80, 120} {
			var act func()
			if strings.HasPrefix(view.line, "tail") {
				act = func() { w.act(t) }
			}
			local := strings.Fields(view.line)
			if w := local[0]; w != "--help" && w != "free" {
				local = append([]string{w, "--local"}, local[1:]...)
			}
			lines := onTerminal(t, columns, local, act)
			for _, line := range lines {
				if n := render.Columns(line); n > int(columns) {
					t.Errorf("%s: %d columns on a terminal of %d: %s", view.line, n, columns, line)
				}
			}
			if !strings.Contains(strings.Join(lines, "\n"), view.has) {
				t.Errorf("%s on a terminal of %d columns: no %q in\n%s", view.line, columns, view.has, strings.Join(lines, "\n"))
			}
		}
	}
}

// A terminal that is made narrower while events come gets lines that fit from then on.
func TestKernelTerminalResized(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	w := newLongWay(t)
	master, slave := newPTY(t, 200)
	c := child(t, "tail", "--local", "--netns", ns, "--tier", testTier(), "--event", "bind")
	c.Stdout = slave
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	lines := make(lineWriter, 100)
	go func() {
		for in := bufio.NewScanner(master); in.Scan(); {
			lines <- sgr.ReplaceAllString(in.Text(), "") + "\n"
		}
	}()
	waitLine(t, lines, "TIME ")
	narrow := &unix.Winsize{Row: 24, Col: 80}
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, narrow); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		w.act(t)
		line := strings.TrimRight(<-lines, "\r\n")
		if render.Columns(line) <= 80 && strings.Contains(line, "bind") {
			return
		}
	}
	t.Error("lines are as wide as before")
}
