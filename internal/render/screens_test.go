package render

import (
	"bytes"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	v6Server = "[2001:db8:85a3:1234:5678:8a2e:370:7334]:8443"
	v6Client = "[2001:db8:85a3:1234:5678:8a2e:370:9999]:51234"
)

// row is a socket as ls has it, with one holder; pid 0: with none.
func row(proto, state, role, local, remote string, netns, pid uint32, comm string, place Place) Socket {
	s := Socket{Proto: proto, State: state, Role: role, NetNS: netns, Place: place, Origin: "snapshot", Holders: []Holder{}}
	end := netip.MustParseAddrPort(local)
	s.LocalIP, s.LocalPort = end.Addr(), end.Port()
	if remote != "" {
		end = netip.MustParseAddrPort(remote)
		s.RemoteIP, s.RemotePort = end.Addr(), end.Port()
	}
	if pid != 0 {
		s.Holders = append(s.Holders, Holder{PID: pid, Comm: comm, FD: 3, Place: place})
	}
	return s
}

func container(name string) Place {
	return Place{Container: &identity.Container{ID: "8d2f0123456789ab", Name: name, Runtime: "docker"}}
}

func pod(namespace, name string) Place {
	return Place{Pod: &identity.Pod{Namespace: namespace, Name: name, Container: "app"}}
}

// screenRows are the sockets of three machines.
func screenRows() map[string][]Socket {
	return map[string][]Socket{
		"ipv4": {
			row("tcp", "LISTEN", "listener", "0.0.0.0:22", "", hostNS, 812, "sshd", Place{}),
			row("udp", "UNCONN", "bound", "127.0.0.53:53", "", hostNS, 640, "systemd-resolve", Place{}),
			row("tcp", "ESTAB", "server", "192.168.100.120:22", "192.168.100.201:51234", hostNS, 1048213, "sshd-session", Place{}),
			row("tcp", "ESTAB", "client", "192.168.100.120:40012", "203.0.113.200:443", hostNS, 2213, "监控服务监控", Place{}),
			row("tcp", "TIME-WAIT", "time_wait", "10.0.0.5:40012", "10.0.8.20:5432", hostNS, 0, "", Place{}),
		},
		"ipv6": {
			row("tcp", "LISTEN", "listener", v6Server, "", hostNS, 48213, "nginx", Place{}),
			row("tcp", "LISTEN", "listener", "[::]:80", "", hostNS, 48213, "nginx", Place{}),
			row("tcp", "ESTAB", "server", v6Server, v6Client, hostNS, 48213, "nginx", Place{}),
			row("tcp", "TIME-WAIT", "time_wait", v6Server, "[2001:db8::1]:40000", hostNS, 0, "", Place{}),
		},
		"containers": {
			row("tcp", "LISTEN", "listener", "0.0.0.0:8080", "", hostNS, 90211, "docker-proxy", Place{}),
			row("tcp", "LISTEN", "listener", "[::]:80", "", 9, 90300, "nginx", container("shop-frontend-web-1")),
			row("tcp", "ESTAB", "server", "172.17.0.2:80", "172.17.0.1:51234", 9, 90300, "nginx", container("shop-frontend-web-1")),
			row("tcp", "ESTAB", "client", "10.42.0.117:39200", "10.43.200.10:5432", 10, 90417, "java", pod("shop", "api-7d9c5b8f6d-x2x9k")),
			row("tcp", "ESTAB", "client", v6Client, v6Server, 10, 90417, "java", pod("shop", "api-7d9c5b8f6d-x2x9k")),
			row("tcp", "LISTEN", "listener", "127.0.0.1:9000", "", 7, 5, "python3", Place{}),
		},
	}
}

// screenEvents are events of the same.
func screenEvents() map[string][]Event {
	at := func(ms int) Stamp {
		return Stamp{time.Date(2026, 1, 2, 3, 4, 5, ms*1_000_000, time.Local)}
	}
	event := func(ms int, kind string, s Socket) Event {
		ev := Event{Time: at(ms), Event: kind, Proto: s.Proto, LocalIP: s.LocalIP, LocalPort: s.LocalPort, RemoteIP: s.RemoteIP, RemotePort: s.RemotePort, NetNS: s.NetNS, Place: s.Place}
		if len(s.Holders) > 0 {
			ev.PID, ev.Comm = s.Holders[0].PID, s.Holders[0].Comm
		}
		return ev
	}
	out := make(map[string][]Event)
	for name, rows := range screenRows() {
		for i := range rows {
			s := rows[i]
			kind := map[string]string{"listener": "listen", "server": "accept", "client": "connect", "bound": "bind", "time_wait": "close"}[s.Role]
			ev := event(i, kind, s)
			if kind == "close" {
				ev.PID, ev.Comm = 48213, "nginx"
			}
			out[name] = append(out[name], ev)
			if s.RemoteIP.IsValid() {
				ev.Event, ev.TimeWait = "close", true
				out[name] = append(out[name], ev)
			}
		}
		refused := event(100, "bind", rows[0])
		refused.Error, refused.HeldBy, refused.HeldByMore = "EADDRINUSE", []Socket{rows[0]}, 2
		out[name] = append(out[name], refused)
	}
	return out
}

// screenHeadroom are ways to get a port: hardly any taken, a busy destination, and one that is full.
func screenHeadroom() map[string][]Headroom {
	users := []PortUser{{"systemd-resolve", 48213, 13, container("shop-frontend-web-1")}, {"curl", 1048214, 2, Place{}}}
	way := func(proto, op, local, remote string, used int, users []PortUser) Headroom {
		h := Headroom{NetNS: hostNS, Proto: proto, Op: op, RangeLow: 32768, RangeHigh: 60999, Capacity: 28232, Used: used, TimeWait: used / 20, Free: 28232 - used, Holders: users}
		h.Utilization = float64(used) / 28232
		if local != "" {
			h.LocalIP = netip.MustParseAddr(local)
		}
		if remote != "" {
			to := netip.MustParseAddrPort(remote)
			h.RemoteIP, h.RemotePort = to.Addr(), to.Port()
		}
		return h
	}
	counted := func(n int) []PortUser {
		all := []PortUser{users[0], users[1]}
		all[0].Ports, all[1].Ports = n-n/20, n/20
		return all
	}
	fresh := way("tcp", "connect", "", "", 0, nil)
	fresh.Blocked, fresh.Free, fresh.BlockedBy = 3, 28229, []PortUser{{"sshd", 812, 3, Place{}}}
	udp := way("udp", "implicit_bind", "0.0.0.0", "", 7, []PortUser{{"chronyd", 700, 7, Place{}}})
	few := way("tcp", "connect", "192.168.100.120", "203.0.113.200:443", 15, counted(15))
	busy := way("tcp", "connect", "2001:db8:85a3:1234:5678:8a2e:370:9999", v6Server, 20000, counted(20000))
	busyUDP := way("udp", "bind", "0.0.0.0", "", 24000, counted(24000))
	full := way("tcp", "connect", "192.168.100.120", "203.0.113.200:443", 28232, counted(28232))
	full.Reclaimable = 1400
	return map[string][]Headroom{
		"idle": {few, udp, fresh},
		"busy": {busyUDP, busy, few, udp, fresh},
		"full": {full, way("tcp", "bind", "0.0.0.0", "", 28232, counted(28232)), busy, udp, fresh},
	}
}

// screenPort is a port that much can be said about.
func screenPort() *Port {
	web := container("shop-frontend-web-1")
	s := row("tcp", "LISTEN", "listener", v6Server, "", 9, 90300, "nginx", web)
	s.Holders[0].Process = &Process{Args: []string{"nginx", "-g", "daemon off;", "-c", "/etc/nginx/sites-enabled/shop-frontend.production.example.org.conf"}, Exe: "/usr/sbin/nginx"}
	client := row("tcp", "ESTAB", "client", v6Client, v6Server, hostNS, 5, "curl", Place{})
	client.LocalPort = 8443
	p := &Port{Sockets: []Socket{s, row("tcp", "ESTAB", "server", v6Server, v6Client, 9, 90300, "nginx", web), client}}
	p.Port, p.Range, p.RangeLow, p.RangeHigh = 8443, identity.RegisteredPort, 32768, 60999
	return p
}

// screens is what every view shows, by its name.
func screens(t *testing.T, style Style) map[string]string {
	t.Helper()
	n := testNames()
	out := make(map[string]string)
	take := func(name string, write func(*bytes.Buffer) error) {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		out[name] = b.String()
	}
	for name, rows := range screenRows() {
		take("ls-"+name, func(b *bytes.Buffer) error { return n.RowsText(b, style, rows) })
		var listeners []Socket
		for i := range rows {
			if rows[i].Role == tracer.RoleListener.String() {
				listeners = append(listeners, rows[i])
			}
		}
		take("ls-listening-"+name, func(b *bytes.Buffer) error { return n.RowsText(b, style, listeners) })
	}
	for name, events := range screenEvents() {
		take("tail-"+name, func(b *bytes.Buffer) error {
			fmt.Fprintln(b, EventHead(style))
			for i := range events {
				fmt.Fprintln(b, n.EventLine(style, &events[i]))
			}
			return nil
		})
	}
	for name, rows := range screenHeadroom() {
		take("headroom-"+name, func(b *bytes.Buffer) error { return n.HeadroomText(b, style, rows, Busy) })
	}
	take("who", func(b *bytes.Buffer) error { return n.PortText(b, style, screenPort()) })
	return out
}

// Every view fits a terminal of 60 columns or more, and uses more where there are; what is no
// terminal gets whole values. See testdata/screens.
func TestScreens(t *testing.T) {
	for _, width := range []int{0, 60, 80, 120} {
		for name, got := range screens(t, Style{Width: width}) {
			if strings.Contains(got, ellipsis) && width == 0 {
				t.Errorf("%s is cut where it is for no terminal:\n%s", name, got)
			}
			testutil.Golden(t, filepath.Join("testdata", "screens", fmt.Sprintf("%s-%d.txt", name, width)), got)
		}
	}
	for width := 60; width <= 130; width++ {
		for name, got := range screens(t, Style{Width: width}) {
			for line := range strings.Lines(got) {
				if n := columnsOf([]byte(strings.TrimSuffix(line, "\n"))); n > width {
					t.Errorf("%s has %d columns, want at most %d: %s", name, n, width, line)
				}
			}
		}
	}
}

// Color changes no line but by its escape sequences, which are never cut.
func TestScreensColor(t *testing.T) {
	for _, width := range []int{0, 80, 120} {
		plain := screens(t, Style{Width: width})
		for name, got := range screens(t, Style{Width: width, Color: true}) {
			bare := strings.NewReplacer("\x1b[31m", "", "\x1b[1m", "", "\x1b[0m", "").Replace(got)
			if d := cmp.Diff(plain[name], bare); d != "" {
				t.Errorf("%s, %d columns (-plain +colored):\n%s", name, width, d)
			}
		}
	}
}
