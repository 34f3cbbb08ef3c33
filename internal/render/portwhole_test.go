package render

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/identity"
)

// listener is a row of somebody who listens on 8080.
func listener(holders ...Holder) Socket {
	return Socket{
		Proto: "tcp", State: "LISTEN", Role: "listener", LocalIP: netip.MustParseAddr("0.0.0.0"), LocalPort: 8080, NetNS: hostNS, Holders: holders,
	}
}

// node is a process with a command line, started three hours ago by systemd.
func node(pid uint32, place Place, args ...string) Holder {
	uid := uint32(nobodysUID)
	return Holder{PID: pid, Comm: "node", UID: &uid, Place: place, Process: &Process{
		Exe: "/usr/bin/node", Args: args, Started: Stamp{time.Now().Add(-200 * time.Minute)}, PPID: 1, Parents: []identity.Parent{{PID: 1, Comm: "systemd"}},
	}}
}

// TestMain has it noon, so that three hours ago was today: of another day a longer time is written.
func TestMain(m *testing.M) {
	noon := time.Now().UTC().Truncate(24 * time.Hour).Add(12 * time.Hour)
	time.Local = time.FixedZone("noon", int(time.Until(noon).Seconds()))
	os.Exit(m.Run())
}

// The whole answer, for each kind of holder.
func TestPortTextWhole(t *testing.T) {
	uid := uint32(nobodysUID)
	web := []string{"/usr/bin/node", "/srv/shop/server.js", "--port", "8080"}
	const head = "8080/tcp  node (pid 10, user 4000000001) listens on 0.0.0.0:8080\n"
	const line = "  /usr/bin/node /srv/shop/server.js --port 8080\n"
	const started = ", started T (3 h ago) by systemd (pid 1)\n"
	worker := node(11, Place{}, "node: worker")
	worker.Parents = []identity.Parent{{PID: 10, Comm: "node"}, {PID: 1, Comm: "systemd"}}
	full := listener(node(10, Place{}, web...))
	four, three := uint32(4), uint32(3)
	full.Backlog, full.BacklogMax = &four, &three
	proxy := listener(node(10, Place{}, "docker-proxy"))
	proxy.ForwardsTo = []Forward{{By: "docker-proxy", Proto: "tcp", IP: netip.MustParseAddr("172.17.0.2"), Port: 80}}
	rootless, lost := listener(node(10, Place{}, web...)), listener(node(10, Place{}, web...))
	rootless.ForwardsTo = []Forward{{By: "rootlessport", Proto: "tcp", Place: Place{Container: &identity.Container{ID: "8d2f", Name: "web", Runtime: "podman", User: &uid}}}}
	lost.ForwardsTo = []Forward{{By: "rootlessport", Proto: "tcp"}}
	known := proxy
	known.ForwardsTo = []Forward{{By: "docker-proxy", Proto: "tcp", IP: netip.MustParseAddr("172.17.0.2"), Port: 80,
		Place: Place{Container: &identity.Container{ID: "8d2f", Name: "web", Runtime: "docker"}}, Holders: []Holder{node(20, Place{}, "nginx: master")}}}
	conmon := listener(node(10, Place{}, web...))
	conmon.ForwardsTo = []Forward{{By: "conmon", Proto: "tcp", Place: Place{Container: &identity.Container{ID: strings.Repeat("0123456789abcdef", 4), Runtime: "podman"}}}}
	docker := Place{Container: &identity.Container{ID: "8d2f", Name: "web", Runtime: "docker"}}
	elsewhere := listener(node(10, docker, web...))
	elsewhere.Place, elsewhere.NetNS = docker, otherNS
	stuck := node(10, Place{})
	stuck.ArgsUnread = true
	for _, c := range []struct {
		name string
		row  Socket
		want string
	}{
		{"a unit", listener(node(10, Place{Unit: "shop.service"}, web...)),
			head + line + "  unit shop.service" + started + "  stop it: systemctl stop shop.service\n"},
		{"a user's unit", listener(node(10, Place{Unit: "shop.service", UnitUser: &uid}, web...)),
			head + line + "  unit shop.service of user 4000000001,\n    started T (3 h ago) by systemd (pid 1)\n  stop it: systemctl --user stop shop.service (as user 4000000001)\n"},
		{"a session", listener(node(10, Place{Unit: "session-3.scope"}, web...)),
			head + line + "  unit session-3.scope" + started + "  stop it: kill 10\n"},
		{"docker", listener(node(10, Place{Container: &identity.Container{ID: "8d2f", Name: "web", Runtime: "docker"}}, web...)),
			head + line + "  container web (docker)" + started + "  stop it: docker stop web\n"},
		{"containerd alone", listener(node(10, Place{Container: &identity.Container{ID: "8d2f", Runtime: "containerd"}}, web...)),
			head + line + "  container 8d2f (containerd)" + started + "  stop it: kill 10\n"},
		{"a pod", listener(node(10, Place{Pod: &identity.Pod{Namespace: "shop", Name: "api-5d9c", Container: "api"}, Container: &identity.Container{ID: "8d2f", Runtime: "containerd"}}, web...)),
			head + line + "  pod shop/api-5d9c, container api" + started + "  stop it: kubectl -n shop delete pod api-5d9c\n"},
		{"a name for the shell", listener(node(10, Place{Container: &identity.Container{ID: "8d2f", Name: "a b;rm -rf /", Runtime: "podman"}}, web...)),
			head + line + "  container a b;rm -rf / (podman)" + started + "  stop it: podman stop 'a b;rm -rf /'\n"},
		{"a program without a command line", listener(node(10, Place{})),
			head + "  /usr/bin/node\n  started T (3 h ago) by systemd (pid 1)\n  stop it: kill 10\n"},
		{"a command line that does not come", listener(stuck),
			head + "  its command line cannot be read: it, or its file system, does not answer\n  started T (3 h ago) by systemd (pid 1)\n  stop it: kill 10\n"},
		{"hostile arguments", listener(node(10, Place{}, "node", "a\x1b[2J\u202e", strings.Repeat("x", 5000))),
			head + `  node $'a\x1b[2J\u202e' ` + strings.Repeat("x", 54) + "…\n  started T (3 h ago) by systemd (pid 1)\n  stop it: kill 10\n"},
		{"a master and its worker", listener(node(10, Place{Unit: "x.scope"}, web...), worker),
			"8080/tcp  2 processes listen on 0.0.0.0:8080\n  node (pid 10, user 4000000001)  /usr/bin/node /srv/shop/server.js --port 8080\n" +
				"  node (pid 11, user 4000000001)  node: worker\n  unit x.scope\n  stop it: kill 10 11\n"},
		{"two of a command line", listener(node(10, Place{}, web...), node(12, Place{}, web...)),
			"8080/tcp  2 processes listen on 0.0.0.0:8080\n" + line + "  node (pid 10, user 4000000001)\n  node (pid 12, user 4000000001)\n  stop it: kill 10 12\n"},
		{"a full queue", full, head + "  4 connections wait for accept(), the queue (3) is full: more get no answer\n" + line + "  started T (3 h ago) by systemd (pid 1)\n  stop it: kill 10\n"},
		{"a container in a namespace of its own", elsewhere,
			head + line + "  container web (docker)" + started + "  stop it: docker stop web\n"},
		{"conmon", conmon, head + line + "  started T (3 h ago) by systemd (pid 1)\n  conmon only keeps the port for its container, NAT leads there\n" +
			"  container 0123456789ab (podman)\n  stop it: podman stop 0123456789ab\n"},
		{"a container of a user", listener(node(10, Place{Container: &identity.Container{ID: "8d2f", Name: "web", Runtime: "podman", User: &uid}}, web...)),
			head + line + "  container web (podman)" + started + "  stop it: podman stop web (as user 4000000001)\n"},
		{"a static pod", listener(node(10, Place{Pod: &identity.Pod{Namespace: "shop", Name: "web-node1", UID: "0123456789abcdef0123456789abcdef"}}, web...)),
			head + line + "  pod shop/web-node1" + started + "  stop it: remove its manifest (by default in /etc/kubernetes/manifests)\n"},
		{"rootlessport", rootless, head + line + "  started T (3 h ago) by systemd (pid 1)\n  rootlessport leads to container web (podman)\n" +
			"  stop it: podman stop web (as user 4000000001)\n"},
		{"rootlessport to nobody knows where", lost, head + line + "  started T (3 h ago) by systemd (pid 1)\n  rootlessport leads to a container\n  stop it: kill 10\n"},
		{"a forwarder", proxy, head + "  docker-proxy\n  started T (3 h ago) by systemd (pid 1)\n  docker-proxy leads to 172.17.0.2:80\n  stop it: stop its container, see docker ps --filter publish=8080\n"},
		{"a forwarder to a container", known, head + "  docker-proxy\n  started T (3 h ago) by systemd (pid 1)\n  docker-proxy leads to 172.17.0.2:80\n" +
			"  there: node (pid 20, user 4000000001), container web (docker)\n    nginx: master\n  stop it: docker stop web\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Port{Sockets: []Socket{c.row}}
			p.Port, p.Proto, p.Range = 8080, "tcp", identity.RegisteredPort
			got, _, _ := strings.Cut(whenT.ReplaceAllString(textOf(t, p), "started T ("), "8080: registered")
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			for l := range strings.Lines(got) {
				if n := columnsOf([]byte(strings.TrimSuffix(l, "\n"))); n > terminal {
					t.Errorf("%d columns: %s", n, l)
				}
			}
		})
	}
}

// What NAT leads elsewhere.
func TestPortTextNAT(t *testing.T) {
	to := func(addr string, when ...string) Forward {
		end := netip.MustParseAddrPort(addr)
		return Forward{By: "nftables", Proto: "tcp", IP: end.Addr(), Port: end.Port(), Chain: "pre", When: when}
	}
	behind := to("10.88.0.5:80")
	behind.Place = Place{Container: &identity.Container{ID: "8d2f", Name: "shop-api", Runtime: "podman"}}
	behind.Holders = []Holder{node(20, Place{}, "nginx")}
	outside := to("10.88.0.5:80", "source", "other")
	outside.From, outside.LocalIPs = "outside", []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	redirect := Forward{By: "iptables", Proto: "tcp", Port: 8081, Chain: "a\x1b[2J"}
	for _, c := range []struct {
		name    string
		sockets []Socket
		to      []Forward
		want    string
	}{
		{"to a container", nil, []Forward{behind}, "nothing listens on 8080/tcp here, but nftables sends it to 10.88.0.5:80, chain\n  pre\n" +
			"  there: node (pid 20, user 4000000001), container shop-api (podman)\n    nginx\n  stop it: podman stop shop-api\n"},
		{"to one of two", nil, []Forward{to("10.0.0.1:80", "random"), to("10.0.0.2:80", "random")},
			"nothing listens on 8080/tcp here, but nftables sends it to one of 2:\n  10.0.0.1:80, chain pre\n  10.0.0.2:80, chain pre\n"},
		{"from some", nil, []Forward{outside}, "nothing listens on 8080/tcp here, but nftables sends what comes from outside for\n  192.0.2.1 to 10.88.0.5:80, from some addresses, under further conditions,\n  chain pre\n"},
		{"past a listener", []Socket{listener()}, []Forward{redirect},
			"8080/tcp  a socket of no known process listens on 0.0.0.0:8080\n8080/tcp  iptables sends it to port 8081, " + `chain "a\x1b[2J"` + "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Port{Sockets: c.sockets}
			p.Port, p.Proto, p.Range, p.ForwardsTo, p.NetNS = 8080, "tcp", identity.RegisteredPort, c.to, hostNS
			got, _, _ := strings.Cut(textOf(t, p), "8080: registered")
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}
