package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

const (
	// perHolder is how many connections one process holds: it may not have more
	// descriptors on every machine.
	perHolder  = 7000
	mostListed = 50_000
	asAgent    = 360_000 // sockets that an agent lists beside the kernel
	heldPort   = 7070    // listener of every holder, each on its own address
	freePort   = 7071    // nobody's
)

// listSockets times what lists sockets, with more and more of them.
func (b *bench) listSockets() error {
	for _, sockets := range []int{1000, 10_000, mostListed} {
		if err := b.inNetNS(func() error { return b.listOf(sockets) }); err != nil {
			return err
		}
	}
	return errors.Join(b.inNetNS(b.scrapeSpread), b.inNetNS(b.listAsAgent))
}

// listAsAgent times an agent and the kernel with very many sockets.
func (b *bench) listAsAgent() error {
	stop, err := b.holdSockets(asAgent, 1)
	if err != nil {
		return err
	}
	defer stop()
	b.row(fmt.Sprintf("%d TCP sockets, asked of an agent", asAgent), "", "", "", "")
	return b.racesOfAgent([]race{{"ls --json --agent", "porthole ls --json --local", "<= 1.3"}, {fmt.Sprintf("who %d --agent", heldPort), fmt.Sprintf("porthole who %d --local", heldPort), ""}})
}

// racesOfAgent are races while an agent runs.
func (b *bench) racesOfAgent(all []race) error {
	_, err := b.watch(b.agent(), func(*process) error { return b.races(all) })
	return err
}

// listOf times the commands and a scrape with so many sockets.
func (b *bench) listOf(sockets int) error {
	stop, err := b.holdSockets(sockets, 1)
	if err != nil {
		return err
	}
	defer stop()
	if err := b.checkSeen(sockets); err != nil {
		return err
	}
	b.row(fmt.Sprintf("%d TCP sockets, half of them of port %d", sockets, heldPort), "", "", "", "")
	lsofHeld, lsofFree := fmt.Sprintf("lsof -nP -i :%d", heldPort), fmt.Sprintf("lsof -nP -i :%d", freePort)
	held, free := fmt.Sprintf("who %d", heldPort), fmt.Sprintf("who %d", freePort)
	list, asJSON, goalList, goalWho := "ls -tunap", "ls --json", "", ""
	if sockets == mostListed {
		goalList, goalWho = "<= 0.100", "<= 0.067"
	}
	if err := b.races([]race{
		{asJSON, "ss -tunap", goalList}, {list, "ss -tunap", ""}, {list, "ss -tuna", ""}, {list, "lsof -nP -i", ""}, {list, "netstat -tunap", ""},
		{held, "ss -tunap", ""}, {held, "ss -tuna", ""}, {held, lsofHeld, goalWho}, {held, "netstat -tunap", ""},
		{free, lsofFree, goalWho}, {"headroom", "ss -tan", ""},
	}); err != nil {
		return err
	}
	var agent []race
	for _, command := range []string{held, asJSON, "headroom"} {
		r := race{command + " --agent", "ss -tunap", ""}
		if sockets == 1000 {
			r.goal = "<= 12 ms, 1"
		}
		agent = append(agent, r)
	}
	return errors.Join(b.racesOfAgent(agent), b.scrapes("/metrics of the agent"))
}

// scrapeSpread times a scrape with sockets in many namespaces.
func (b *bench) scrapeSpread() error {
	const namespaces = 200
	stop, err := b.holdSockets(mostListed, namespaces)
	if err != nil {
		return err
	}
	defer stop()
	return b.scrapes(fmt.Sprintf("/metrics, %d sockets in %d namespaces", mostListed, namespaces))
}

// A race is a command of porthole's, and another tool's or another one of porthole's. The word --agent stands
// for the agent of this benchmark.
type race struct{ porthole, other, goal string }

// races times every command by turns.
func (b *bench) races(all []race) error {
	took := make(map[string][]float64)
	once := func(run int, command string, argv []string) error {
		if len(took[command]) > run || !installed(argv[0]) {
			return nil
		}
		ms, err := b.clock(argv)
		took[command] = append(took[command], ms)
		return err
	}
	for run := range b.runs {
		for _, r := range all {
			if err := errors.Join(
				once(run, r.porthole, b.argv("porthole "+r.porthole)),
				once(run, r.other, b.argv(r.other)),
			); err != nil {
				return err
			}
		}
	}
	for _, r := range all {
		if what := r.porthole + " / " + r.other; took[r.other] == nil {
			b.row("  "+what+": not installed", ms(median(took[r.porthole])), "", "", "")
		} else {
			b.compare(what, took[r.porthole], took[r.other], ms, r.goal)
		}
	}
	return nil
}

// argv is how a command of a race is run.
func (b *bench) argv(command string) []string {
	words := strings.Fields(command)
	for i, word := range words {
		switch word {
		case "porthole":
			words[i] = b.porthole
		case "--agent":
			words[i] = "--socket=" + b.socket
		}
	}
	return words
}

// clock runs a command with its output thrown away and returns the milliseconds
// it took. Exit code 1 is an answer: nobody has the port.
func (b *bench) clock(argv []string) (float64, error) {
	cmd := b.command(argv[0], argv[1:]...)
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
func (b *bench) checkSeen(sockets int) error {
	for _, argv := range [][]string{
		{b.porthole, "ls", "--json", "--netns", strconv.Itoa(int(b.netns))},
		{"ss", "-Htunap"},
	} {
		if !installed(argv[0]) {
			continue
		}
		out, err := b.command(argv[0], argv[1:]...).Output()
		if err != nil {
			return fmt.Errorf("run %s: %w", argv, err)
		}
		if got, want := bytes.Count(out, []byte("\n")), sockets+holders(sockets); got != want {
			b.wrong = append(b.wrong, fmt.Sprintf("%s lists %d sockets, there are %d", argv, got, want))
		}
	}
	return nil
}

// holders is how many processes hold so many sockets.
func holders(sockets int) int { return (sockets/2 + perHolder - 1) / perHolder }

// holdSockets has processes hold so many sockets, spread over so many namespaces,
// and returns once they have them all.
func (b *bench) holdSockets(sockets, namespaces int) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	n := holders(sockets)
	for i := range n {
		spaces := namespaces*(i+1)/n - namespaces*i/n
		s, err := b.startHolder(sockets/2*(i+1)/n-sockets/2*i/n, spaces, 2+i)
		if err != nil {
			stop()
			return nil, err
		}
		stops = append(stops, s)
	}
	return stop, nil
}

// startHolder starts a process that holds its share of the connections, and
// returns once it has them all.
func (b *bench) startHolder(connections, namespaces, last int) (stop func(), err error) {
	cmd := b.command("/proc/self/exe", "hold", strconv.Itoa(connections), strconv.Itoa(namespaces), strconv.Itoa(last))
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

// hold is the holder: both ends of its connections are its own. They are in
// namespaces it makes, or in the present one if it is to be one at most.
func hold(connections, namespaces, last string) error {
	n, errN := strconv.Atoi(connections)
	spaces, errSpaces := strconv.Atoi(namespaces)
	host, errHost := strconv.Atoi(last)
	if errN != nil || errSpaces != nil || errHost != nil {
		return fmt.Errorf("hold %q %q %q: want numbers", connections, namespaces, last)
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(host)}), heldPort)
	if spaces <= 1 {
		if err := holdAt(at, n); err != nil {
			return err
		}
		return wait()
	}
	for range spaces {
		runtime.LockOSThread() // the namespace lives as long as its sockets
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := testutil.UpLoopback(); err != nil {
			return err
		}
		if err := holdAt(at, n/spaces); err != nil {
			return err
		}
	}
	return wait()
}

// wait says that all connections are made, and never returns.
func wait() error {
	fmt.Println("ready")
	return unix.Pause()
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
