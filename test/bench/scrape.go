package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/netns"
)

// perHolder is how many connections one process holds: it may not have more
// descriptors on every machine.
const perHolder = 7000

// scrapeCost times what Prometheus asks of the agent, with ports in use in one
// namespace and in many.
func (b *bench) scrapeCost() error {
	dir, err := os.MkdirTemp("", "porthole-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b.row("GET /metrics of the agent; other: ss -tanH in one namespace", "", "", "", "")
	for _, c := range []struct{ connections, namespaces int }{{500, 1}, {14000, 1}, {28000, 1}, {50000, 1}, {28000, 50}, {28000, 200}} {
		if err := b.scrapes(filepath.Join(dir, "socket"), c.connections, c.namespaces); err != nil {
			return err
		}
	}
	return nil
}

// scrapes times scrapes with so many connections, spread over so many namespaces.
func (b *bench) scrapes(socket string, connections, namespaces int) error {
	processes := (connections + perHolder - 1) / perHolder
	for i := range processes {
		spaces := (namespaces*(i+1))/processes - (namespaces*i)/processes
		each := connections / processes
		stop, err := b.startHolder("spread", strconv.Itoa(each), strconv.Itoa(spaces), strconv.Itoa(2+i))
		if err != nil {
			return err
		}
		defer stop()
	}
	agent := b.command(b.porthole, "agent", "--socket", socket, "--web.listen-address=")
	stderr, err := agent.StderrPipe()
	if err != nil {
		return err
	}
	if err := agent.Start(); err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	defer func() {
		_ = agent.Process.Signal(unix.SIGTERM)
		_ = agent.Wait() // its exit code is of no interest here
	}()
	said := bufio.NewScanner(stderr)
	for said.Scan() && !strings.HasPrefix(said.Text(), "socket: ") {
	}
	go func() { _, _ = io.Copy(io.Discard, stderr) }()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	var whole, walk, other []float64
	for range b.runs {
		time.Sleep(1100 * time.Millisecond) // within a second an answer is used again
		ms, read, err := scrape(client)
		if err != nil {
			return err
		}
		took, err := b.clock("ss", "-tanH")
		if err != nil {
			return err
		}
		whole, walk, other = append(whole, ms), append(walk, read), append(other, took)
	}
	what := fmt.Sprintf("%d sockets in %d namespaces", 2*connections, namespaces)
	b.compare(what, whole, other, "ms", "")
	b.row("    of it to read the ports and who has them", fmt.Sprintf("%.3g ms", median(walk)), "", "", "")
	return nil
}

// scrape returns the milliseconds that a scrape took, and what of it the agent read
// the kernel's tables.
func scrape(client *http.Client) (whole, walk float64, err error) {
	start := time.Now()
	resp, err := client.Get("http://porthole/metrics")
	if err != nil {
		return 0, 0, fmt.Errorf("scrape: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	whole = time.Since(start).Seconds() * 1e3
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "porthole_snapshot_duration_seconds "); ok {
			walk, err = strconv.ParseFloat(value, 64)
		}
	}
	return whole, walk * 1e3, err
}

// spread is a holder whose connections are in namespaces of its own, or in the
// present one if it is to be one at most.
func spread(connections, namespaces, last string) error {
	n, errN := strconv.Atoi(connections)
	spaces, errSpaces := strconv.Atoi(namespaces)
	host, errHost := strconv.Atoi(last)
	if errN != nil || errSpaces != nil || errHost != nil {
		return fmt.Errorf("spread %q %q %q: want numbers", connections, namespaces, last)
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
		if err := netns.UpLoopback(); err != nil {
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
