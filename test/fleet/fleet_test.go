//go:build fleet

package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/test/vm/guest"
)

// atMost bounds everything that is waited for: three machines share two processors.
const atMost = 5 * time.Minute

// jobEnv has this program do a job, as a service does.
const jobEnv = "PORTHOLE_FLEET_JOB"

func TestMain(m *testing.M) {
	if job := strings.Fields(os.Getenv(jobEnv)); len(job) > 0 {
		if err := work(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work does a job. But for that of sockets it goes on until it is killed.
func work(job []string) error {
	switch job[0] {
	case "sockets":
		n, err := strconv.Atoi(job[1])
		for range n {
			err = errors.Join(err, socket())
		}
		return err
	case "listen":
		at, err := netip.ParseAddrPort(job[1])
		if err != nil {
			return err
		}
		fd, _, err := testutil.BoundTCP(at)
		if err == nil {
			err = syscall.Listen(fd, 1)
		}
		if err != nil {
			return err
		}
	case "retry": // until the address is free, so many times
		at, err := netip.ParseAddrPort(job[1])
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(job[2])
		if err != nil {
			return err
		}
		for range n {
			if err := refused(at); err != nil {
				return err
			}
			<-time.After(time.Second) // as a program that tries again
		}
	case "exhaust":
		if err := exhaust(job[1], job[2]); err != nil {
			return err
		}
	}
	killed := make(chan os.Signal, 1)
	signal.Notify(killed, syscall.SIGTERM) // the sockets are open until then
	<-killed
	return nil
}

// exhaust connects to where it listens itself until there are no ports left, then so many times more, and leaves all open.
func exhaust(to, times string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40063"), 0); err != nil {
		return err
	}
	at, err := netip.ParseAddrPort(to)
	if err != nil {
		return err
	}
	l, _, err := testutil.BoundTCP(at)
	if err == nil {
		err = syscall.Listen(l, 128)
	}
	if err != nil {
		return err
	}
	to4 := &syscall.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	for refused := 0; refused < n; { // not by package net, which tries again
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		switch err := syscall.Connect(fd, to4); err {
		case nil:
		case syscall.EADDRNOTAVAIL:
			refused++
			syscall.Close(fd)
			<-time.After(time.Second)
		default:
			return err
		}
	}
	return nil
}

// do runs a command that must succeed.
func do(t *testing.T, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), atMost)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// service does a job in a unit of its own, under the name of a program.
func service(t *testing.T, name, job string, more ...string) {
	t.Helper()
	program := filepath.Join("/usr/local/bin", name)
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/tests/fleet.test", program); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	args := append([]string{"systemd-run", "--unit=" + name, "--setenv=" + jobEnv + "=" + job}, more...)
	do(t, append(args, program)...)
}

// addNetNS makes a network namespace, and inNetNS has a service be in it.
func addNetNS(t *testing.T, name string) {
	t.Helper()
	do(t, "ip", "netns", "add", name)
	do(t, "ip", "-n", name, "link", "set", "lo", "up")
}

func inNetNS(name string) string { return "--property=NetworkNamespacePath=/run/netns/" + name }

// collector is the address that the agent exports to.
func collector() string { return os.Getenv("PORTHOLE_FLEET_COLLECTOR") }

// startAgent installs the package as an administrator does who has a configuration for all machines.
func startAgent(t *testing.T) {
	t.Helper()
	do(t, "ip", "addr", "add", guest.Address+"/24", "dev", "eth0")
	do(t, "ip", "link", "set", "eth0", "up")
	flags := fmt.Sprintf("--otlp.endpoint http://%s --web.listen-address 0.0.0.0:%s", collector(), guest.Metrics)
	if err := os.MkdirAll("/etc/default", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/etc/default/porthole", []byte("ARGS="+flags+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	packages, err := filepath.Glob("/packages/*_" + runtime.GOARCH + ".deb")
	if err != nil || len(packages) != 1 {
		t.Fatalf("packages: %v, %v", packages, err)
	}
	do(t, "dpkg", "--force-confold", "-i", packages[0])
	if state := do(t, "systemctl", "is-active", "porthole"); state != "active" {
		t.Fatalf("the agent is %s", state)
	}
	fmt.Printf("installed after %.0fs: %s\n", time.Since(begun).Seconds(), do(t, "porthole", "version"))
}

// metric is the sum of the series of a metric of the agent; false: it does not answer.
func metric(name string) (total float64, ok bool) {
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get("http://127.0.0.1:" + guest.Metrics + "/metrics")
	if err != nil {
		return 0, false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if base, _, _ := strings.Cut(series, "{"); base == name {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, false
			}
			total, ok = total+v, true
		}
	}
	return total, ok
}

// reached tells whether the Collector can be connected to.
func reached() bool {
	conn, err := net.DialTimeout("tcp4", collector(), 2*time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// untilOff says that all has happened, and waits for the end of the machine.
func untilOff(t *testing.T) {
	fmt.Println("all has happened")
	<-time.After(20 * time.Minute)
	t.Fatal("the machine is on still")
}

// A namespace runs out of ports towards a database, which is its own.
func TestFleetExhaustion(t *testing.T) {
	startAgent(t)
	addNetNS(t, "batch")
	do(t, "ip", "-n", "batch", "addr", "add", "192.0.2.10/32", "dev", "lo")
	service(t, "batch", "exhaust 192.0.2.10:5432 20", inNetNS("batch"))
	untilOff(t)
}

// A stranger has the port of a service, on every address.
func TestFleetStranger(t *testing.T) {
	startAgent(t)
	service(t, "stranger", "listen 0.0.0.0:6379")
	testutil.AwaitWithin(t, atMost, "the stranger listens", func() bool {
		conn, err := net.DialTimeout("tcp4", "127.0.0.1:6379", time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	service(t, "redis", "retry 0.0.0.0:6379 20")
	untilOff(t)
}

// A machine is cut off for a minute, in which things happen and the agent is restarted.
func TestFleetCutOff(t *testing.T) {
	startAgent(t)
	addNetNS(t, "shop")
	const n = 50 // sockets, of which each has four events: bind, listen, a bind that is refused, close
	happened := 0
	happen := func() {
		t.Helper()
		service(t, "shop", fmt.Sprint("sockets ", n), inNetNS("shop"), "--wait")
		happened += 4 * n
	}
	happen()
	var sent float64
	testutil.AwaitWithin(t, atMost, "all is exported", func() bool {
		waits, ok := metric("porthole_export_queue_bytes")
		sent, _ = metric("porthole_export_sent_total")
		return ok && waits == 0 && sent >= float64(happened)
	})

	fmt.Println("now unplug the network")
	testutil.AwaitWithin(t, atMost, "the Collector cannot be reached", func() bool { return !reached() })
	cut := time.After(time.Minute)
	happen()
	testutil.AwaitWithin(t, atMost, "the agent has tried again", func() bool {
		again, _ := metric("porthole_export_retried_total")
		return again > 0
	})
	sent, ok := metric("porthole_export_sent_total")
	if !ok {
		t.Fatal("the agent has no metrics")
	}
	do(t, "systemctl", "restart", "porthole")
	happen()
	<-cut
	fmt.Println("now plug the network in")
	testutil.AwaitWithin(t, atMost, "the Collector can be reached", reached)
	fmt.Printf("happened=%d sent_before=%.0f\n", happened, sent)
	untilOff(t)
}

// socket makes a listener, and a bind that is refused because of it.
func socket() error {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	fd, port, err := testutil.BoundTCP(netip.AddrPortFrom(loopback, 0))
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.Listen(fd, 1); err != nil {
		return err
	}
	return refused(netip.AddrPortFrom(loopback, port))
}

// refused binds to an address that is taken.
func refused(at netip.AddrPort) error {
	fd, _, err := testutil.BoundTCP(at)
	if err == nil {
		syscall.Close(fd)
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("bind %v: %v, want %v", at, err, syscall.EADDRINUSE)
	}
	return nil
}
