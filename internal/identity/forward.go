package identity

import (
	"net/netip"
	"path"
	"strconv"
	"strings"

	"github.com/porthole-dev/porthole/tracer"
)

// Forward is where a process leads the connections to a port that it holds for others. What its
// arguments do not tell is zero.
type Forward struct {
	By          string // docker-proxy, conmon, pasta, slirp4netns, rootlessport or dockerd
	To          netip.AddrPort
	NetNSFile   string // of the network namespace where To is
	ContainerID string
	Container   string // its name
	Runtime     string // podman or cri-o
}

// ForwardOf tells where a process leads connections to a port of an address; ok is false where it
// is none of those that hold ports for others. It is what the process says: anybody may call a
// program like one of these.
func ForwardOf(comm string, args []string, proto tracer.Proto, local netip.AddrPort) (f Forward, ok bool) {
	name := comm
	if len(args) > 0 {
		name = path.Base(args[0])
	}
	// The kernel keeps 15 bytes of a name.
	is := func(want string) bool { return name == want || comm == want[:min(len(want), 15)] }
	switch {
	case is("docker-proxy"):
		return dockerProxy(args), true
	case is("conmon"):
		return conmon(args), true
	case is("pasta"), is("pasta.avx2"), is("passt"), is("passt.avx2"):
		return pasta(args, proto, local), true
	case is("slirp4netns"):
		return Forward{By: "slirp4netns", NetNSFile: slirpNetNS(args)}, true
	case is("rootlessport"), is("rootlessport-child"), is("containers-rootlessport"), is("containers-rootlessport-child"):
		return Forward{By: "rootlessport"}, true
	case is("dockerd"):
		return Forward{By: "dockerd"}, true
	}
	return Forward{}, false
}

// options reads options with one or two dashes, with their value behind = or as the next
// argument; the last of a name counts.
func options(args []string) map[string][]string {
	out := make(map[string][]string)
	for i := 1; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") {
			continue
		}
		name, value, given := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		if !given && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			value = args[i+1]
			i++
		}
		out[name] = append(out[name], value)
	}
	return out
}

func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// dockerProxy reads -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2
// -container-port 80.
func dockerProxy(args []string) Forward {
	f := Forward{By: "docker-proxy"}
	o := options(args)
	ip, err := netip.ParseAddr(last(o["container-ip"]))
	port, portErr := strconv.ParseUint(last(o["container-port"]), 10, 16)
	if err == nil && portErr == nil {
		f.To = netip.AddrPortFrom(ip, uint16(port))
	}
	return f
}

// conmon reads -c ID -n NAME: podman's conmon has the sockets of published ports so that nobody
// else takes them, while NAT leads their packets past it.
func conmon(args []string) Forward {
	o := options(args)
	first := func(names ...string) string {
		for _, n := range names {
			if v := last(o[n]); v != "" {
				return bounded(v, maxName)
			}
		}
		return ""
	}
	f := Forward{By: "conmon", ContainerID: first("c", "cid"), Container: first("n", "name")}
	for _, a := range args { // what it calls at the end
		switch path.Base(a) {
		case "podman":
			f.Runtime = runtimePodman
		case "crio":
			f.Runtime = runtimeCRIO
		}
	}
	return f
}

// pasta reads -t ADDRESS%DEVICE/PORTS:PORTS,... of TCP, -u of UDP, and the namespace it serves:
// --netns PATH, or a path or pid as an argument of its own.
func pasta(args []string, proto tracer.Proto, local netip.AddrPort) Forward {
	f := Forward{By: "pasta"}
	o := options(args)
	f.NetNSFile = last(o["netns"])
	if n := len(args); f.NetNSFile == "" && n > 1 {
		if word := args[n-1]; strings.HasPrefix(word, "/") && len(o["runas"]) == 0 {
			f.NetNSFile = word
		}
	}
	names := []string{"t", "tcp-ports"}
	if proto == tracer.UDP {
		names = []string{"u", "udp-ports"}
	}
	for _, name := range names {
		for _, spec := range o[name] {
			if port, ok := pastaPort(spec, local.Port()); ok {
				// pasta splices to the loopback of the namespace, or sends to its address.
				f.To = netip.AddrPortFrom(netip.Addr{}, port)
			}
		}
	}
	return f
}

// pastaPort is the port inside for one outside, as a specification has it.
func pastaPort(spec string, port uint16) (inside uint16, ok bool) {
	if _, ports, found := strings.Cut(spec, "/"); found {
		spec = ports
	}
	for part := range strings.SplitSeq(spec, ",") {
		outside, target, mapped := strings.Cut(part, ":")
		low, high, err := portsOf(outside)
		if err != nil || port < low || port > high {
			continue
		}
		if !mapped {
			return port, true
		}
		first, _, err := portsOf(target)
		if err != nil {
			return 0, false
		}
		return first + (port - low), true
	}
	return 0, false
}

func portsOf(s string) (low, high uint16, err error) {
	first, second, ranged := strings.Cut(s, "-")
	l, err := strconv.ParseUint(first, 10, 16)
	if err != nil || !ranged {
		return uint16(l), uint16(l), err
	}
	h, err := strconv.ParseUint(second, 10, 16)
	return uint16(l), uint16(h), err
}

// slirpNetNS reads --netns-type=path PATH TAP: the namespace is the argument before the last.
func slirpNetNS(args []string) string {
	if n := len(args); n > 2 && last(options(args)["netns-type"]) != "" && strings.HasPrefix(args[n-2], "/") {
		return args[n-2]
	}
	return ""
}
