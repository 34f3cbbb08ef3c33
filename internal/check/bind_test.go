package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	thePort = 7001 // which everything is about
	peer    = 9001 // where something listens
)

// options are socket options, and the owner of a socket.
type options struct {
	reuseAddr, reusePort, v6Only, lo bool
	uid                              int
}

func randomOptions(r *rand.Rand) options {
	half := func() bool { return r.IntN(2) == 0 }
	return options{half(), half(), half(), r.IntN(6) == 0, r.IntN(2)}
}

var addrs = []string{"127.0.0.1", "127.0.0.2", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1"}

// newSocket makes a socket for an address. The caller closes it.
func newSocket(t *testing.T, proto tracer.Proto, addr netip.Addr, o options) int {
	t.Helper()
	family, typ := unix.AF_INET6, unix.SOCK_STREAM
	if addr.Is4() {
		family = unix.AF_INET
	}
	if proto == tracer.UDP {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	set := func(level, name int, on bool) {
		if on {
			if err := unix.SetsockoptInt(fd, level, name, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, o.reuseAddr)
	set(unix.SOL_SOCKET, unix.SO_REUSEPORT, o.reusePort)
	set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, o.v6Only && addr.Is6() && !addr.Is4In6())
	if o.lo {
		if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Fchown(fd, o.uid, -1); err != nil {
		t.Fatal(err)
	}
	return fd
}

func sockaddr(addr netip.Addr, port int) unix.Sockaddr {
	if addr.Is4() {
		return &unix.SockaddrInet4{Addr: addr.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: addr.As16(), Port: port}
}

// loopbackOf is an address that a socket bound to another can connect to.
func loopbackOf(addr netip.Addr) netip.Addr {
	switch {
	case addr.Is4():
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case addr.Is4In6():
		return netip.MustParseAddr("::ffff:127.0.0.1")
	}
	return netip.IPv6Loopback()
}

// accept takes the connection that one of the listeners got: which one does is the kernel's choice,
// of a group with SO_REUSEPORT by a hash.
func accept(t *testing.T, listeners []unix.PollFd) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if _, err := unix.Poll(listeners, 1000); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		for _, l := range listeners {
			if l.Revents&unix.POLLIN == 0 {
				continue
			}
			fd, _, err := unix.Accept4(int(l.Fd), unix.SOCK_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}
	}
	t.Fatalf("none of %d listeners got the connection", len(listeners))
	return -1
}

// populate makes a socket that has the port in some way, if the kernel lets it, beside the listeners
// on the port that there are.
func populate(t *testing.T, r *rand.Rand, listeners *[]unix.PollFd) string {
	addr, o := netip.MustParseAddr(addrs[r.IntN(len(addrs))]), randomOptions(r)
	kinds := []string{"bound", "listener", "client", "auto", "server", "lone server", "time-wait", "udp", "udp client"}
	kind := kinds[r.IntN(len(kinds))]
	proto := tracer.TCP
	if strings.HasPrefix(kind, "udp") {
		proto = tracer.UDP
	}
	keep := func(fd int) { t.Cleanup(func() { unix.Close(fd) }) }
	fd := newSocket(t, proto, addr, o)
	at := fmt.Sprintf("%s on %s %+v", kind, addr, o)
	if kind == "auto" {
		testutil.WriteSysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("%d %d", thePort, thePort))
		keep(fd)
		return fmt.Sprintf("%s: %v", at, unix.Connect(fd, sockaddr(loopbackOf(addr), peer)))
	}
	if kind != "time-wait" && kind != "lone server" {
		keep(fd)
	}
	if err := unix.Bind(fd, sockaddr(addr, thePort)); err != nil {
		return at + ": bind: " + err.Error()
	}
	switch kind {
	case "client", "udp client":
		return fmt.Sprintf("%s: %v", at, unix.Connect(fd, sockaddr(loopbackOf(addr), peer)))
	case "listener", "server", "lone server", "time-wait":
		if err := unix.Listen(fd, 8); err != nil {
			keep(fd)
			return fmt.Sprintf("%s: listen: %v", at, err)
		}
		before := *listeners
		*listeners = append(before, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		if kind == "listener" {
			return at
		}
		testutil.WriteSysctl(t, "ipv4/ip_local_port_range", "20000 30000")
		to := loopbackOf(addr)
		if !addr.IsUnspecified() {
			to = addr
		}
		c := newSocket(t, tracer.TCP, addr, options{})
		keep(c)
		if err := unix.Connect(c, sockaddr(to, thePort)); err != nil {
			keep(fd)
			return at + ": connect: " + err.Error()
		}
		s := accept(t, *listeners)
		if kind == "lone server" || kind == "time-wait" {
			unix.Close(fd)
			*listeners = before
		}
		if kind == "time-wait" {
			unix.Close(s) // who closes first
			unix.Close(c)
		} else {
			keep(s)
		}
	}
	return at
}

// owners reads who has the port, as a command does.
func owners(t *testing.T, ns uint32) []render.Socket {
	t.Helper()
	q, err := query.ParseSockets(query.Values{"netns": {fmt.Sprint(ns)}, "lport": {fmt.Sprint(thePort)}})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := (&source.Local{}).Sockets(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Close()
	var text bytes.Buffer
	if err := answer.JSON(&text); err != nil {
		t.Fatal(err)
	}
	var rows []render.Socket
	for dec := json.NewDecoder(&text); dec.More(); {
		var row render.Socket
		if err := dec.Decode(&row); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row)
	}
	return rows
}

// In random situations the answer is what bind() then says.
func TestKernelBindAgrees(t *testing.T) {
	testutil.RequireRoot(t)
	const situations, calls = 125, 4
	seed := rand.Uint64()
	compared, refused := 0, 0
	for i := range situations {
		t.Run(fmt.Sprintf("%d/%d", seed, i), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			ns := testutil.NewNetNS(t)
			var there []string
			var listeners []unix.PollFd
			for _, addr := range []string{"127.0.0.1", "::1"} {
				a := netip.MustParseAddr(addr)
				fd := newSocket(t, tracer.TCP, a, options{})
				t.Cleanup(func() { unix.Close(fd) })
				if err := errors.Join(unix.Bind(fd, sockaddr(a, peer)), unix.Listen(fd, 16)); err != nil {
					t.Fatal(err)
				}
			}
			for range 1 + r.IntN(4) {
				there = append(there, populate(t, r, &listeners))
			}
			rows := owners(t, ns)
			for range calls {
				addr := netip.MustParseAddr(addrs[r.IntN(len(addrs))])
				if r.IntN(10) == 0 {
					addr = netip.MustParseAddr([]string{"192.0.2.1", "2001:db8::1", "127.255.255.255", "224.0.0.1", "ff02::1"}[r.IntN(5)])
				}
				proto := []tracer.Proto{tracer.TCP, tracer.TCP, tracer.UDP}[r.IntN(3)]
				o := randomOptions(r)
				o.lo, o.reusePort = false, false
				call := Bind{Proto: proto, Local: netip.AddrPortFrom(addr.Unmap(), thePort), V6Only: o.v6Only && !addr.Is4In6(), ReuseAddr: o.reuseAddr}
				s, err := ReadSettings(call.Local.Addr(), "")
				if err != nil {
					t.Fatal(err)
				}
				want := call.Errno(s, true)
				if want == 0 && len(call.InTheWay(rows)) > 0 {
					want = unix.EADDRINUSE
				}
				fd := newSocket(t, proto, addr, o)
				var got unix.Errno
				errors.As(unix.Bind(fd, sockaddr(addr, thePort)), &got)
				unix.Close(fd)
				if compared++; got != 0 {
					refused++
				}
				if got != want {
					t.Errorf("bind %s %s %+v: %v, want %v; there is\n%s\nrows %+v", proto, addr, o, got, want, strings.Join(there, "\n"), rows)
				}
			}
		})
	}
	t.Logf("%d compared, %d of them refused", compared, refused)
	if compared != situations*calls || refused < compared/5 || refused > compared*4/5 {
		t.Errorf("%d calls compared, %d refused: want %d, and a mixture", compared, refused, situations*calls)
	}
}

// A capability counts where the user namespace that it is of owns the network namespace.
func TestCapable(t *testing.T) {
	const again = "PORTHOLE_TEST_CAPABLE"
	if os.Getenv(again) != "" {
		capable, err := Capable()
		fmt.Fprintln(os.Stderr, capable, err)
		os.Exit(0)
	}
	testutil.RequireRoot(t)
	for flags, want := range map[uintptr]string{0: "true <nil>\n", unix.CLONE_NEWNET: "true <nil>\n", unix.CLONE_NEWUSER: "false <nil>\n", unix.CLONE_NEWUSER | unix.CLONE_NEWNET: "true <nil>\n"} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestCapable$")
		cmd.Env = append(os.Environ(), again+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
		if flags&unix.CLONE_NEWUSER != 0 {
			one := []syscall.SysProcIDMap{{Size: 1}}
			cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = one, one
		}
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Run(); err != nil || errs.String() != want {
			t.Errorf("flags %#x: %v, %q, want %q", flags, err, errs.String(), want)
		}
	}
}
