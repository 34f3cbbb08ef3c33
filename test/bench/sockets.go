package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// holders is how many processes share the sockets: one process may not have
	// that many descriptors on every machine.
	holders     = 4
	connections = 25000
	heldPort    = 7070 // listener of every holder, each on its own address
	freePort    = 7071 // nobody's
)

// manySockets times the commands that list sockets.
func (b *bench) manySockets() error {
	for i := range holders {
		stop, err := b.startHolder("hold", fmt.Sprintf("127.0.0.%d:%d", 2+i, heldPort))
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := b.checkSeen(); err != nil {
		return err
	}
	b.row(fmt.Sprintf("%d TCP sockets, half of port %d", 2*connections, heldPort), "", "", "", "")
	held, free := strconv.Itoa(heldPort), strconv.Itoa(freePort)
	for _, c := range []struct {
		porthole, other []string
		goal            string
	}{
		{[]string{"ls", "--json"}, []string{"ss", "-tunap"}, "<= 0.100"},
		{[]string{"headroom", "--json"}, []string{"ss", "-tanH"}, ""},
		{[]string{"who", held}, []string{"lsof", "-nP", "-i", ":" + held}, "<= 0.067"},
		{[]string{"who", free}, []string{"lsof", "-nP", "-i", ":" + free}, "<= 0.067"},
	} {
		if err := b.race(c.porthole, c.other, c.goal); err != nil {
			return err
		}
	}
	return nil
}

// race times a porthole command and the other tool by turns.
func (b *bench) race(porthole, other []string, goal string) error {
	var ours, theirs []float64
	for range b.runs {
		took, err := b.clock(b.porthole, porthole...)
		if err != nil {
			return err
		}
		ours = append(ours, took)
		if took, err = b.clock(other[0], other[1:]...); err != nil {
			return err
		}
		theirs = append(theirs, took)
	}
	b.compare(fmt.Sprintf("%s; other: %s", strings.Join(porthole, " "), strings.Join(other, " ")), ours, theirs, "ms", goal)
	return nil
}

// clock runs a command with its output thrown away and returns the milliseconds
// it took. Exit code 1 is an answer: nobody has the port.
func (b *bench) clock(name string, args ...string) (float64, error) {
	cmd := b.command(name, args...)
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		return 0, fmt.Errorf("run %s: %w", cmd, err)
	}
	return took.Seconds() * 1e3, nil
}

// checkSeen makes sure that both list every socket: a tool that misses some is
// no match.
func (b *bench) checkSeen() error {
	for _, args := range [][]string{
		{b.porthole, "ls", "--json", "--netns", strconv.Itoa(int(b.netns))},
		{"ss", "-Htunap"},
	} {
		out, err := b.command(args[0], args[1:]...).Output()
		if err != nil {
			return fmt.Errorf("run %s: %w", args, err)
		}
		if got, want := bytes.Count(out, []byte("\n")), 2*connections+holders; got != want {
			b.wrong = append(b.wrong, fmt.Sprintf("%s lists %d sockets, there are %d", args, got, want))
		}
	}
	return nil
}

// startHolder starts a process that holds its share of the connections, and
// returns once it has them all.
func (b *bench) startHolder(args ...string) (stop func(), err error) {
	cmd := b.command("/proc/self/exe", args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start holder: %w", err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start holder: %w", err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		stop()
		return nil, fmt.Errorf("start holder: %s", strings.TrimSpace(stderr.String()))
	}
	return stop, nil
}

// hold is the holder: both ends of its connections are its own.
func hold(at string) error {
	addr, err := netip.ParseAddrPort(at)
	if err != nil {
		return err
	}
	if err := holdAt(addr, connections/holders); err != nil {
		return err
	}
	return wait()
}

// holdAt makes n connections that stay.
func holdAt(addr netip.AddrPort, n int) error {
	l, err := listen(addr)
	if err != nil {
		return err
	}
	for i := range n {
		client, err := dial(l.addr)
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		// No TIME_WAIT: the sockets shall be gone when the process is. The client
		// has the lower descriptor, so it is closed first.
		if err := unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return fmt.Errorf("set linger: %w", err)
		}
		if _, _, err := unix.Accept(l.fd); err != nil {
			return fmt.Errorf("accept connection %d: %w", i, err)
		}
	}
	return nil
}
