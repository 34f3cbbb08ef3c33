package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/check"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

type checkOptions struct {
	agent       agentOptions
	addr, netns string
	reuseAddr   bool
	timeout     time.Duration
	jsonRows    bool
}

func newCheck(e *env) *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check PORT[/tcp|/udp]... | HOST PORT...",
		Short: "Say whether a bind() or a connection would succeed, and why not",
		Long: "With a PORT, say whether bind() would succeed, by the kernel's own rules and\n" +
			"without calling it, and which sockets are in the way. The port is TCP unless\n" +
			"/udp is given. (Without privileges and without an agent, bind() is called, and\n" +
			"undone at once.) With a HOST and a PORT, or a URL, connect to each address of\n" +
			"the host, and say which local address and port were used, how long it took, and\n" +
			"why it failed. Exits with 1 when any bind() would fail, or when no connection\n" +
			"succeeds.",
		Example: "  porthole check 8080                      can a server start here?\n" +
			"  porthole check 127.0.0.1:8080 --reuseaddr\n" +
			"  porthole check 53/udp --netns blue\n" +
			"  porthole check db.example.com 5432       is it reachable, and from which port?",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("want a port, as 8080 or 53/udp, or a host and a port; see %s --help", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			host, words := hostAndPorts(args)
			if host == "" {
				if cmd.Flags().Changed("timeout") {
					return usagef("--timeout: only with a host: nothing is waited for without one")
				}
				return checkBind(cmd.Context(), e, &o, words)
			}
			for _, name := range []string{"addr", "reuseaddr"} {
				if cmd.Flags().Changed(name) {
					return usagef("--%s: not with a host: it is about bind()", name)
				}
			}
			connected := true
			for _, word := range words {
				is, err := checkConnect(cmd.Context(), e, &o, host, word)
				if err != nil {
					return err
				}
				connected = connected && is
			}
			if !connected {
				return errNo
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.addr, "addr", "", "local `ADDRESS` to bind to, such as 127.0.0.1 or ::1 (default: all, IPv4 and IPv6)")
	flags.BoolVar(&o.reuseAddr, "reuseaddr", false, "the socket has SO_REUSEADDR, as most servers set it")
	flags.StringVar(&o.netns, "netns", "", "network `NAMESPACE`: host, a name in /run/netns, or an inode number (default: this one)")
	flags.DurationVar(&o.timeout, "timeout", 5*time.Second, "with a host: `TIME` to wait for each address")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object; with a host, one a line for each address")
	complete(cmd, e, &o.agent, "netns")
	o.agent.add(cmd)
	onlyHere(cmd, "porthole check --host HOST asks another")
	return cmd
}

// hostAndPorts tells a host from the ports of this machine: it stands before its ports, or is part of a
// URL or of HOST:PORT, where no address of this machine can be meant.
func hostAndPorts(args []string) (host string, words []string) {
	if _, err := netip.ParseAddr(args[0]); err == nil && len(args) > 1 { // 2001:db8::1:80 would be a port too
		return args[0], args[1:]
	}
	ends, err := query.ParseEndsWord(args[0])
	isURL := strings.Contains(args[0], "://")
	switch {
	case err == nil && len(args) == 1 && (isURL || ends.Host != ""):
		host = ends.Host
		if ends.Addr.IsValid() {
			host = ends.Addr.WithZone(ends.Device).String()
		}
		return cmp.Or(host, "localhost"), []string{strconv.Itoa(int(ends.Port)) + "/" + ends.Protos[0].String()}
	case len(args) == 1, err == nil && !isURL && (strings.ContainsAny(args[0], ":/") || args[0][0] >= '0' && args[0][0] <= '9'):
		return "", args
	}
	return args[0], args[1:]
}

// space is a network namespace that a command is about.
type space struct {
	inode uint32
	file  *os.File // nil: that of this thread
}

// openSpace opens the namespace of a word, as of --netns; "": that of this thread. The caller
// closes the file.
func openSpace(word string) (s space, err error) {
	if word == "" {
		s.inode, err = identity.NetNSOfThread()
		return s, err
	}
	wanted, err := identity.NewNetNSNames(nil).Want(word)
	if err == nil {
		var id identity.NetNS
		id, err = wanted.ID()
		s.inode = id.Inode
	}
	if errors.Is(err, identity.ErrNoNetNS) || errors.Is(err, identity.ErrNotPermitted) || err != nil && s.inode == 0 {
		return s, &query.Wrong{Err: fmt.Errorf("netns: %w", err), Param: true}
	}
	s.file, err = identity.OpenNetNS(s.inode)
	return s, err
}

func (s space) in(f func() error) error { return identity.InNetNS(s.file, f) }

func (s space) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// socketRows are the sockets that filters let pass, and what of these can match nothing.
func socketRows(ctx context.Context, e *env, src source.Source, values query.Values) (rows []render.Socket, note string, err error) {
	q, err := query.ParseSockets(values)
	if err != nil {
		return nil, "", err
	}
	answer, err := src.Sockets(ctx, q)
	if err != nil {
		return nil, "", err
	}
	defer answer.Close()
	tellUnfinished(e, answer.Unfinished())
	rows, err = answer.Rows()
	return rows, answer.Note(), err
}

// bindAnswer is what check says of a bind(), in JSON.
type bindAnswer struct {
	OK               bool             `json:"ok"`
	Error            string           `json:"error,omitempty"`
	Proto            string           `json:"proto"`
	LocalIP          netip.Addr       `json:"local_ip"`
	LocalPort        uint16           `json:"local_port"`
	NetNS            uint32           `json:"netns"`
	ReuseAddr        bool             `json:"reuse_addr,omitempty"`
	V6Only           bool             `json:"v6_only,omitempty"`
	InTheWay         []render.Socket  `json:"in_the_way"`
	Privileged       bool             `json:"privileged"`
	InEphemeralRange bool             `json:"in_ephemeral_range"`
	RangeLow         uint16           `json:"range_low"`
	RangeHigh        uint16           `json:"range_high"`
	Reserved         bool             `json:"reserved"`
	ForwardsTo       []render.Forward `json:"forwards_to,omitempty"`
	NATUnread        string           `json:"nat_unread,omitempty"`
	Partial          bool             `json:"partial,omitempty"`

	settings check.Settings
	device   string
	errno    unix.Errno
}

// needDevice fails where the calling thread's network namespace has no such device; "": none is
// needed.
func needDevice(name string) error {
	if name == "" {
		return nil
	}
	has, err := identity.HasDevice(name)
	if err == nil && !has {
		err = usagef("network device %s: %w", identity.Safe(name), unix.ENODEV)
	}
	return err
}

// addAddr adds the address of --addr, which is not given where it is empty, to what a word has.
func addAddr(end *query.End, word, given string) error {
	if given == "" {
		return nil
	}
	addr, device, err := query.ParseAddr(given)
	if err != nil {
		return err
	}
	if end.Addr.IsValid() && (end.Addr != addr || end.Device != device) || end.Localhost && !addr.IsLoopback() {
		return usagef("--addr: %q: %s has another address", given, identity.Safe(word))
	}
	end.Addr, end.Device, end.Localhost = addr, device, false
	return nil
}

// maxChecked is how many ports can be asked about at once.
const maxChecked = 1000

// bindEnds are the ports of some words, each with its address.
func (o *checkOptions) bindEnds(words []string) ([]query.End, error) {
	var all []query.End
	for _, word := range words {
		ends, err := query.ParseEndsWord(word)
		if err == nil {
			err = ends.NoHost(word)
		}
		if err != nil {
			return nil, err
		}
		if err := addAddr(&ends.End, word, o.addr); err != nil {
			return nil, err
		}
		if ends.Localhost {
			ends.Addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		if tracer.IsScoped(ends.Addr) && ends.Device == "" {
			return nil, usagef("%s: want the device of a link-local address too, as fe80::1%%eth0", ends.Addr)
		}
		for port := int(ends.Port); port <= int(ends.Last); port++ {
			ends.End.Port = uint16(port)
			all = append(all, ends.End)
		}
	}
	if len(all) > maxChecked {
		return nil, usagef("%d ports: want at most %d", len(all), maxChecked)
	}
	return all, nil
}

// checkBind says whether bind() would succeed.
func checkBind(ctx context.Context, e *env, o *checkOptions, words []string) error {
	ends, err := o.bindEnds(words)
	if err != nil {
		return err
	}
	where, err := openSpace(o.netns)
	if err != nil {
		return err
	}
	defer where.close()
	src, err := openSource(e, &o.agent)
	if err != nil {
		return err
	}
	values := query.Values{"netns": {strconv.FormatUint(uint64(where.inode), 10)}}
	for i := range ends {
		values["lport"] = append(values["lport"], strconv.Itoa(int(ends[i].Port)))
	}
	rows, _, err := socketRows(ctx, e, src, values)
	if err != nil {
		return err
	}
	tellView(e, src.PartialView())
	tellPIDs(src.PIDs(), e.notes())
	all := true
	for i := range ends {
		a, err := answerBind(ctx, o, src.Partial(), rows, where, ends[i])
		if err != nil {
			return err
		}
		if o.jsonRows {
			err = render.WriteJSON(e.stdout, a)
		} else {
			err = a.text(e)
		}
		if err != nil {
			return err
		}
		all = all && a.OK
	}
	if !all {
		return errNo
	}
	return nil
}

// answerBind asks for the kernel's settings, and compares with the sockets there are. Where not all
// that decides is known of those, partial, the call itself is the answer.
func answerBind(ctx context.Context, o *checkOptions, partial bool, rows []render.Socket, where space, end query.End) (*bindAnswer, error) {
	call := check.Bind{Proto: end.Protos[0], Local: netip.AddrPortFrom(end.Addr, end.Port), Device: end.Device, ReuseAddr: o.reuseAddr}
	any := !end.Addr.IsValid()
	if any {
		call.Local = netip.AddrPortFrom(netip.IPv6Unspecified(), end.Port)
	}
	var settings check.Settings
	var capable bool
	err := where.in(func() (err error) {
		if settings, err = check.ReadSettings(call.Local.Addr(), call.Device); err != nil {
			return err
		}
		capable, err = check.Capable()
		return err
	})
	if err != nil {
		return nil, err
	}
	if any && settings.NoIPv6 {
		call.Local = netip.AddrPortFrom(netip.IPv4Unspecified(), end.Port)
	}
	call.V6Only = call.Local.Addr().Is6() && settings.V6Only && !any
	a := &bindAnswer{
		Proto: call.Proto.String(), LocalIP: call.Local.Addr(), LocalPort: end.Port, NetNS: where.inode, ReuseAddr: o.reuseAddr, V6Only: call.V6Only,
		Privileged: end.Port < settings.Privileged, InEphemeralRange: settings.Pool.Has(end.Port), RangeLow: settings.Pool.Low,
		RangeHigh: settings.Pool.High, Reserved: settings.Pool.Reserved(end.Port), settings: settings,
		device: call.Device,
	}
	a.InTheWay = call.InTheWay(rows)
	errno := call.Errno(settings, capable)
	if errno == 0 && len(a.InTheWay) > 0 {
		errno = unix.EADDRINUSE
	}
	if a.Partial = partial; partial {
		if errno, err = call.Try(); err != nil {
			return nil, err
		}
		if errno != unix.EADDRINUSE {
			a.InTheWay = []render.Socket{}
		}
	}
	if a.OK = errno == 0; !a.OK {
		a.errno, a.Error = errno, unix.ErrnoName(errno)
	}
	targets, err := identity.NAT(ctx, where.inode, end.Port, call.Proto)
	if err != nil {
		a.NATUnread = err.Error()
	}
	for i := range targets {
		if to := targets[i].Addr; to.Is4() && !call.TakesIPv4() || to.Is6() && call.Local.Addr().Is4() {
			continue
		}
		a.ForwardsTo = append(a.ForwardsTo, render.NATForward(&targets[i]))
	}
	return a, nil
}

// inOneNetNS is the style of rows that are all of the namespace that was asked about.
func (e *env) inOneNetNS() render.Style {
	style := e.style
	style.OneNetNS = true
	return style
}

// maxInTheWay is how many sockets in the way are shown.
const maxInTheWay = 10

func (a *bindAnswer) text(e *env) error {
	out := new(bytes.Buffer)
	prose := e.style.Wrapper(out)
	host := "all addresses"
	if !a.LocalIP.IsUnspecified() || a.V6Only {
		host = a.LocalIP.String()
	} else if a.LocalIP.Is4() {
		host = "all IPv4 addresses"
	}
	head := fmt.Sprintf("%d/%s: bind() to %s ", a.LocalPort, a.Proto, host)
	if a.OK {
		fmt.Fprintf(prose, "%swould succeed\n", head)
	} else {
		fmt.Fprintf(prose, "%swould fail: %s\n", head, e.style.Red(a.why()))
	}
	if n := len(a.InTheWay); n > 0 && a.Error == "EADDRINUSE" {
		names := identity.Load(nil)
		defer names.Cgroups.Close()
		head := "in the way:"
		if a.Partial {
			head = "in the way, as far as an ordinary user may know:"
		}
		fmt.Fprintln(prose, head)
		if err := render.New(names).RowsText(out, e.inOneNetNS(), a.InTheWay[:min(n, maxInTheWay)]); err != nil {
			return err
		}
		if n > maxInTheWay {
			fmt.Fprintf(out, "and %d more, see --json\n", n-maxInTheWay)
		}
		if advice := a.advice(); advice != "" {
			fmt.Fprintln(prose, advice)
		}
	}
	if a.Privileged && a.Error != "EACCES" {
		fmt.Fprintf(prose, "privileged port (below %d): to bind it takes CAP_NET_BIND_SERVICE\n", a.settings.Privileged)
	}
	if a.InEphemeralRange && !a.Reserved {
		fmt.Fprintf(prose, "inside the ephemeral range %d-%d: any connection may take it while it is free\n", a.RangeLow, a.RangeHigh)
	}
	for i := range a.ForwardsTo {
		fmt.Fprintf(prose, "NAT in front: %s\n", a.ForwardsTo[i].Sends("connections"))
	}
	if a.NATUnread != "" {
		fmt.Fprintf(e.notes(), "porthole: %s\n", a.NATUnread)
	}
	_, err := out.WriteTo(e.stdout)
	return err
}

// why says what an error means here.
func (a *bindAnswer) why() string {
	switch a.Error {
	case "EADDRINUSE":
		return "address already in use (EADDRINUSE)"
	case "EACCES":
		return fmt.Sprintf("permission denied (EACCES): ports below %d take CAP_NET_BIND_SERVICE", a.settings.Privileged)
	case "EADDRNOTAVAIL":
		return fmt.Sprintf("%s is not an address of this network namespace (EADDRNOTAVAIL)", a.LocalIP)
	case "EAFNOSUPPORT":
		return "this kernel has no IPv6 (EAFNOSUPPORT)"
	case "ENODEV":
		return fmt.Sprintf("this network namespace has no device %s (ENODEV)", identity.Safe(a.device))
	}
	return fmt.Sprintf("%v (%s)", a.errno, a.Error)
}

// advice says what would help where only the past is in the way.
func (a *bindAnswer) advice() string {
	if a.Partial { // it is not known which sockets have SO_REUSEADDR
		return ""
	}
	past, reuse := 0, 0
	for i := range a.InTheWay {
		if a.InTheWay[i].Role == tracer.RoleTimeWait.String() {
			past++
			if a.InTheWay[i].ReuseAddr {
				reuse++
			}
		}
	}
	switch {
	case past < len(a.InTheWay) || past == 0:
		return ""
	case reuse == past && !a.ReuseAddr:
		return "only TIME-WAIT is in the way, which ends within a minute; SO_REUSEADDR gets past it (--reuseaddr)"
	}
	return "only TIME-WAIT is in the way, of sockets without SO_REUSEADDR; it ends within a minute"
}

// connectAnswer is what check says of a connection, in JSON.
type connectAnswer struct {
	OK         bool             `json:"ok"`
	Error      string           `json:"error,omitempty"`
	Host       string           `json:"host"`
	RemoteIP   netip.Addr       `json:"remote_ip"`
	RemotePort uint16           `json:"remote_port"`
	LocalIP    netip.Addr       `json:"local_ip,omitzero"`
	LocalPort  uint16           `json:"local_port,omitempty"`
	DurationNS int64            `json:"duration_ns"`
	ToHere     bool             `json:"to_here,omitempty"`
	Listeners  []render.Socket  `json:"listeners,omitempty"`
	Headroom   *render.Headroom `json:"headroom,omitempty"`

	errno unix.Errno
}

// checkConnect connects to every address of a host, and tells whether any connection succeeded.
func checkConnect(ctx context.Context, e *env, o *checkOptions, host, word string) (connected bool, err error) {
	end, err := query.ParseEndWord(word)
	if err != nil {
		return false, err
	}
	if end.Addr.IsValid() || end.Host != "" {
		return false, usagef("%q: want a port, for %s is the host", word, host)
	}
	if end.Protos[0] != tracer.TCP {
		return false, usagef("%q: want a TCP port: a UDP socket is connected without asking the other side", word)
	}
	if o.timeout <= 0 {
		return false, usagef("--timeout: %v: want a positive time", o.timeout)
	}
	where, err := openSpace(o.netns)
	if err != nil {
		return false, err
	}
	defer where.close()
	addrs, err := addressesOf(ctx, o, host)
	if err != nil {
		return false, err
	}
	for _, addr := range addrs {
		a := &connectAnswer{Host: host, RemoteIP: addr, RemotePort: end.Port}
		if err := where.in(func() error { return a.connect(ctx, o.timeout) }); err != nil {
			return false, err
		}
		if !a.OK {
			a.explain(ctx, e, o, where)
		}
		connected = connected || a.OK
		if o.jsonRows {
			err = render.WriteJSON(e.stdout, a)
		} else {
			err = a.text(e, o.timeout)
		}
		if err != nil {
			return false, err
		}
	}
	return connected, nil
}

// addressesOf looks a host up.
func addressesOf(ctx context.Context, o *checkOptions, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil && identity.Safe(host) == host {
		return []netip.Addr{addr.Unmap()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	var failed *net.DNSError
	if errors.As(err, &failed) { // its text has the host as it is
		return nil, fmt.Errorf("look up %s: %s", identity.Safe(host), identity.Safe(failed.Err))
	} else if err != nil {
		return nil, fmt.Errorf("look up %s: %w", identity.Safe(host), err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, nil
}

// connect connects in the network namespace of the calling thread.
func (a *connectAnswer) connect(ctx context.Context, timeout time.Duration) error {
	var err error
	device := a.RemoteIP.Zone()
	if a.ToHere, err = identity.IsHere(a.RemoteIP.WithZone(""), device); err != nil {
		return err
	}
	if _, err := strconv.Atoi(device); err != nil && device != "" { // no number
		has, err := identity.HasDevice(device)
		if err != nil {
			return err
		} else if !has {
			a.errno, a.Error = unix.ENODEV, "ENODEV"
			return nil
		}
	}
	d := net.Dialer{Timeout: timeout}
	d.SetMultipathTCP(false)
	begin := time.Now()
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(a.RemoteIP, a.RemotePort).String())
	a.DurationNS = time.Since(begin).Nanoseconds()
	if err == nil {
		defer conn.Close()
		if at, ok := conn.LocalAddr().(*net.TCPAddr); ok {
			end := at.AddrPort()
			a.OK, a.LocalIP, a.LocalPort = true, end.Addr().Unmap(), end.Port()
		}
		return nil
	}
	var errno unix.Errno
	var late net.Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &errno):
		a.errno, a.Error = errno, unix.ErrnoName(errno)
	case errors.As(err, &late) && late.Timeout():
		a.Error = "ETIMEDOUT"
	default:
		return err
	}
	return nil
}

// explain looks for what is behind a failure: who listens, or who has the ports. Where that may not
// be asked, it stays unknown.
func (a *connectAnswer) explain(ctx context.Context, e *env, o *checkOptions, where space) {
	if a.Error != "EADDRNOTAVAIL" && !a.ToHere {
		return
	}
	src, err := openSource(e, &o.agent)
	if err != nil {
		fmt.Fprintf(e.notes(), "porthole: could not look for the cause: %v\n", err)
		return
	}
	netns := []string{strconv.FormatUint(uint64(where.inode), 10)}
	if a.Error == "EADDRNOTAVAIL" {
		var q *query.Headroom
		q, err = query.ParseHeadroom(query.Values{"netns": netns, "to": {netip.AddrPortFrom(a.RemoteIP, a.RemotePort).String()}})
		if err == nil {
			var answer *source.Headroom
			if answer, err = src.Headroom(ctx, q); err == nil && len(answer.Rows) > 0 {
				a.Headroom = &answer.Rows[0]
			}
		}
	} else {
		a.Listeners, _, err = socketRows(ctx, e, src, query.Values{
			"netns": netns, "lport": {strconv.Itoa(int(a.RemotePort))}, "proto": {"tcp"}, "state": {tracer.StateListen.String()},
		})
	}
	if err != nil {
		fmt.Fprintf(e.notes(), "porthole: could not look for the cause: %v\n", err)
	}
}

func (a *connectAnswer) text(e *env, timeout time.Duration) error {
	to := netip.AddrPortFrom(a.RemoteIP, a.RemotePort)
	took := time.Duration(a.DurationNS).Round(10 * time.Microsecond)
	if a.OK {
		_, err := fmt.Fprintf(e.style.Wrapper(e.stdout), "%s: connected from %s in %v\n", to, netip.AddrPortFrom(a.LocalIP, a.LocalPort), took)
		return err
	}
	why := map[string]string{
		"ECONNREFUSED":  "connection refused",
		"ETIMEDOUT":     fmt.Sprintf("no answer within %v", timeout),
		"ENETUNREACH":   "no route",
		"EHOSTUNREACH":  "no route to the host, or it does not answer",
		"EADDRNOTAVAIL": "no ephemeral port left, or no local address",
		"EACCES":        "not permitted, by a firewall or a broadcast address",
		"EPERM":         "not permitted, by a firewall",
	}[a.Error]
	if a.Error == "EINVAL" && tracer.IsScoped(a.RemoteIP.WithZone("")) && a.RemoteIP.Zone() == "" {
		why = fmt.Sprintf("a link-local address needs its device: %s%%eth0", a.RemoteIP)
	} else if why == "" {
		why = a.errno.Error()
	}
	out := new(bytes.Buffer)
	prose := e.style.Wrapper(out)
	fmt.Fprintf(prose, "%s: %s (%s) after %v\n", to, e.style.Red(why), a.Error, took)
	names := identity.Load(nil)
	defer names.Cgroups.Close()
	r := render.New(names)
	switch {
	case a.Headroom != nil:
		if err := r.HeadroomText(out, e.style, []render.Headroom{*a.Headroom}, 1); err != nil {
			return err
		}
	case a.ToHere && len(a.Listeners) > 0:
		fmt.Fprintf(prose, "the address is this machine's own; listening on port %d:\n", a.RemotePort)
		if err := r.RowsText(out, e.inOneNetNS(), a.Listeners[:min(len(a.Listeners), maxInTheWay)]); err != nil {
			return err
		}
	case a.ToHere && a.Listeners != nil:
		fmt.Fprintf(prose, "the address is this machine's own, and nothing listens on port %d\n", a.RemotePort)
	}
	_, err := out.WriteTo(e.stdout)
	return err
}
