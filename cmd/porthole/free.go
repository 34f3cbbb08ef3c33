package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/check"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
)

type freeOptions struct {
	ports                               string
	addr                                string
	udp, hold, services, ephemeral, row bool
	privileged                          bool
}

// maxFree is how many ports can be asked for: each is a descriptor meanwhile.
const maxFree = 500

func newFree(e *env) *cobra.Command {
	var o freeOptions
	cmd := &cobra.Command{
		Use:   "free [N] [--hold -- COMMAND...]",
		Short: "Find ports that nobody uses",
		Long: "Find N ports (default 1) that no socket of this network namespace uses on any\n" +
			"address: outside the ephemeral range, not reserved, not privileged, and not in\n" +
			"/etc/services. They are picked at random and tried with bind(). Another process\n" +
			"may take one before you do. --hold prevents that: the command gets the sockets,\n" +
			"bound and listening, from descriptor 3 on, as with systemd's socket activation\n" +
			"(LISTEN_FDS). It finds the numbers in PORT (the first) and PORTS (all), and in\n" +
			"its arguments in place of {}, or {1}, {2} and so on. Exits with 1 when there are\n" +
			"not enough ports, otherwise with the exit code of the command.",
		Example: "  porthole free\n" +
			"  porthole free 3 --range 8000-9000\n" +
			"  porthole free --hold -- gunicorn app:app         it takes LISTEN_FDS\n" +
			"  porthole free 2 --hold -- ./server --public-url http://localhost:{1}",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, args []string) error { return runFree(cmd, e, &o, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.ports, "range", "", "only ports of this `RANGE`, such as 8000-9000")
	flags.BoolVarP(&o.udp, "udp", "u", false, "UDP ports (default: TCP)")
	flags.BoolVar(&o.services, "services", false, "also ports that /etc/services names")
	flags.BoolVar(&o.ephemeral, "ephemeral", false, "also ports of the ephemeral range, which any connection may take")
	flags.BoolVar(&o.privileged, "privileged", false, "with --range: also ports that need CAP_NET_BIND_SERVICE")
	flags.BoolVar(&o.hold, "hold", false, "pass the ports as sockets to the command after --")
	flags.StringVar(&o.addr, "addr", "127.0.0.1", "with --hold: local `ADDRESS` of the sockets; :: means all")
	flags.BoolVar(&o.row, "json", false, "one JSON object a line")
	onlyHere(cmd, "porthole free --host HOST asks another")
	return cmd
}

// freePort is a port that free has found, in JSON.
type freePort struct {
	Port  uint16 `json:"port"`
	Proto string `json:"proto"`
}

func runFree(cmd *cobra.Command, e *env, o *freeOptions, args []string) error {
	dash := cmd.ArgsLenAtDash()
	var command []string
	if dash >= 0 {
		args, command = args[:dash], args[dash:]
	}
	n, err := o.check(cmd, args, command)
	if err != nil {
		return err
	}
	candidates, why, err := o.candidates()
	if err != nil {
		return err
	}
	addr, device, err := query.ParseAddr(o.addr)
	if err != nil {
		return err
	}
	if err := needDevice(device); err != nil {
		return err
	}
	var found []freePort
	var held []int
	defer func() {
		for _, fd := range held {
			_ = unix.Close(fd)
		}
	}()
	for _, port := range candidates {
		if len(found) == n {
			break
		}
		fd, err := o.take(addr, device, port)
		if err != nil {
			return err
		}
		if fd >= 0 {
			held = append(held, fd)
			found = append(found, freePort{port, o.proto()})
		}
	}
	if len(found) < n {
		fmt.Fprintf(e.notes(), "porthole: %d of %d ports found among %s\n", len(found), n, why)
		return errNo
	}
	if o.hold {
		return handOver(command, held, found)
	}
	for i := range found {
		if o.row {
			err = render.WriteJSON(e.stdout, &found[i])
		} else {
			_, err = fmt.Fprintln(e.stdout, found[i].Port)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *freeOptions) proto() string {
	if o.udp {
		return "udp"
	}
	return "tcp"
}

// check returns how many ports are wanted.
func (o *freeOptions) check(cmd *cobra.Command, args, command []string) (n int, err error) {
	n = 1
	if len(args) > 1 {
		return 0, usagef("unexpected argument %q; see %s --help", args[1], cmd.CommandPath())
	}
	if len(args) == 1 {
		if n, err = strconv.Atoi(args[0]); err != nil || n < 1 || n > maxFree {
			if o.hold && err != nil {
				return 0, usagef("%q: want a number of ports from 1 to %d, or a command after --, as porthole free --hold -- ./server", args[0], maxFree)
			}
			return 0, usagef("%q: want a number of ports from 1 to %d", args[0], maxFree)
		}
	}
	switch {
	case o.hold && len(command) == 0:
		return 0, usagef("--hold: want a command after --, as porthole free --hold -- ./server")
	case !o.hold && len(command) > 0:
		return 0, usagef("unexpected command %q: only with --hold", command[0])
	case o.hold && o.row:
		return 0, usagef("--json: not with --hold, whose output is the command's")
	case o.privileged && o.ports == "":
		return 0, usagef("--privileged: only with --range, which says which ports")
	case !o.hold && cmd.Flags().Changed("addr"):
		return 0, usagef("--addr: only with --hold: a port is free where it is on all addresses")
	}
	return n, nil
}

// candidates are the ports that may be taken, in random order, and what they are in words.
func (o *freeOptions) candidates() (ports []uint16, words string, err error) {
	settings, err := check.ReadSettings(netip.IPv4Unspecified(), "")
	if err != nil {
		return nil, "", err
	}
	low, high := max(settings.Privileged, 1024), uint16(65535)
	if o.ports != "" {
		if low, high, err = parsePortRange(o.ports); err != nil {
			return nil, "", err
		}
		if !o.privileged {
			low = max(low, settings.Privileged)
		}
	}
	services := identity.LoadServices()
	for port := int(low); port <= int(high); port++ {
		p := uint16(port)
		if settings.Pool.Reserved(p) || !o.ephemeral && settings.Pool.Has(p) || !o.services && services.Names(p) {
			continue
		}
		ports = append(ports, p)
	}
	rand.Shuffle(len(ports), func(i, j int) { ports[i], ports[j] = ports[j], ports[i] })
	if words = fmt.Sprintf("%d-%d", low, high); o.ports != "" {
		words = o.ports
	}
	if o.ports != "" && !o.privileged && low == settings.Privileged {
		words += fmt.Sprintf(" from %d on (--privileged)", low)
	}
	if !o.ephemeral {
		words += fmt.Sprintf(" outside the ephemeral range %d-%d (--ephemeral)", settings.Pool.Low, settings.Pool.High)
	}
	if !o.services {
		words += " and what /etc/services names (--services)"
	}
	return ports, words, nil
}

func parsePortRange(s string) (low, high uint16, err error) {
	from, to, _ := strings.Cut(s, "-")
	a, errA := strconv.ParseUint(from, 10, 16)
	b, errB := strconv.ParseUint(to, 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b {
		return 0, 0, usagef("--range: %q: want two ports from 1 to 65535, as 8000-9000", s)
	}
	return uint16(a), uint16(b), nil
}

// take returns a socket that has a port nobody had on any address; -1: somebody has. With --hold it
// is bound to addr, and to the device if one is given, and listens.
func (o *freeOptions) take(addr netip.Addr, device string, port uint16) (fd int, err error) {
	fd, err = o.bind(netip.IPv6Unspecified(), "", port)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd, err = o.bind(netip.IPv4Unspecified(), "", port)
	}
	if err != nil || fd < 0 || !o.hold {
		return fd, err
	}
	// Now that nobody else has it, it is taken again where it is wanted.
	_ = unix.Close(fd)
	if fd, err = o.bind(addr, device, port); err != nil || fd < 0 || o.udp {
		return fd, err
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); errors.Is(err, unix.EADDRINUSE) {
		_ = unix.Close(fd)
		return -1, nil
	} else if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen on %s: %w", netip.AddrPortFrom(addr, port), err)
	}
	return fd, nil
}

// bind returns a socket that is bound; -1: the port is taken, or may not be.
func (o *freeOptions) bind(addr netip.Addr, device string, port uint16) (int, error) {
	family, typ := unix.AF_INET6, unix.SOCK_STREAM
	if addr.Is4() {
		family = unix.AF_INET
	}
	if o.udp {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	var to unix.Sockaddr
	if addr.Is4() {
		to = &unix.SockaddrInet4{Addr: addr.As4(), Port: int(port)}
	} else {
		to = &unix.SockaddrInet6{Addr: addr.As16(), Port: int(port)}
		if addr.IsUnspecified() { // IPv4 too, whatever net.ipv6.bindv6only says
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
		}
	}
	if err == nil && device != "" {
		err = unix.BindToDevice(fd, device)
	}
	if err == nil {
		err = unix.Bind(fd, to)
	}
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.EADDRINUSE), errors.Is(err, unix.EACCES):
		err = nil
	default:
		err = fmt.Errorf("bind to %s: %w", netip.AddrPortFrom(addr, port), err)
	}
	_ = unix.Close(fd)
	return -1, err
}

// firstFD is the first descriptor that sd_listen_fds(3) looks at.
const firstFD = 3

// handOver becomes a command that has these sockets. It returns only where it cannot.
func handOver(command []string, held []int, ports []freePort) error {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return cannotStart(command[0], err)
	}
	var numbers []string
	replace := []string{"{}", strconv.Itoa(int(ports[0].Port))}
	for i, p := range ports {
		numbers = append(numbers, strconv.Itoa(int(p.Port)))
		replace = append(replace, fmt.Sprintf("{%d}", i+1), numbers[i])
	}
	args := slices.Clone(command)
	for i := range args[1:] {
		args[i+1] = strings.NewReplacer(replace...).Replace(args[i+1])
	}
	environ := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "LISTEN_") })
	environ = append(environ, fmt.Sprintf("LISTEN_PID=%d", os.Getpid()), fmt.Sprintf("LISTEN_FDS=%d", len(held)),
		"PORT="+numbers[0], "PORTS="+strings.Join(numbers, " "))
	// First all to where none is in the way of another.
	for i, fd := range held {
		high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstFD+len(held))
		if err != nil {
			return fmt.Errorf("hand a socket over: %w", err)
		}
		_ = unix.Close(fd)
		held[i] = high
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // what is ignored would stay so
	for i, fd := range held {
		if err := unix.Dup3(fd, firstFD+i, 0); err != nil {
			return fmt.Errorf("hand a socket over: %w", err)
		}
	}
	return cannotStart(path, syscall.Exec(path, args, environ))
}
