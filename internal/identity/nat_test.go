package identity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// natPlace puts the goroutine into a network namespace with addresses that are reachable from
// outside, and rules that commands make.
func natPlace(t *testing.T, script string) {
	t.Helper()
	testutil.NewNetNS(t)
	shell(t, `ip link add eth0 type veth peer name eth1
		ip addr add 192.0.2.10/24 dev eth0
		ip addr add 192.0.2.11/24 dev eth0
		ip -6 addr add 2001:db8::10/64 dev eth0 nodad
		ip link set eth0 up`)
	shell(t, script)
}

func shell(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
}

// natLine is a target as the tests write it.
func natLine(to NATTarget) string {
	s := "here"
	if to.Addr.IsValid() {
		s = to.Addr.String()
	}
	if to.AddrLast.IsValid() {
		s += "-" + to.AddrLast.String()
	}
	s += fmt.Sprintf(" %d", to.Port)
	if to.PortLast != 0 {
		s += fmt.Sprintf("-%d", to.PortLast)
	}
	s += " " + to.By + " " + to.Chain
	if len(to.Local) > 0 {
		s += fmt.Sprint(" of ", to.Local)
	}
	if !to.Outside {
		s += " here-only"
	} else if !to.Here {
		s += " outside-only"
	}
	if len(to.When) > 0 {
		s += " when " + strings.Join(to.When, ",")
	}
	return s
}

func natLines(t *testing.T, proto tracer.Proto, port uint16) []string {
	t.Helper()
	targets, err := NAT(context.Background(), 0, port, proto)
	if err != nil {
		t.Fatal(err)
	}
	lines := []string{}
	for _, to := range targets {
		lines = append(lines, natLine(to))
	}
	return lines
}

const nftNAT = `
	chain pre { type nat hook prerouting priority dstnat; %s; }
	chain out { type nat hook output priority -100; %s; }
`

// Each case is rules as their own tools make them, and where they lead.
func TestNAT(t *testing.T) {
	nftIP := func(rules string) string {
		return "nft -f - <<'EOF'\ntable ip t {\n" + rules + "\n}\nEOF\n"
	}
	pre := func(rules string) string {
		return nftIP("chain pre { type nat hook prerouting priority dstnat; }") + "nft -f - <<'EOF'\n" + rules + "\nEOF\n"
	}
	for _, c := range []struct {
		name   string
		script string
		proto  tracer.Proto
		port   uint16
		want   []string
	}{
		{"nothing", "true", tracer.TCP, 80, nil},
		{"dnat", pre("add rule ip t pre tcp dport 80 dnat to 10.0.0.1:8080"), tracer.TCP, 80, []string{"10.0.0.1 8080 nftables pre outside-only"}},
		{"the port stays", pre("add rule ip t pre tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only"}},
		{"another port", pre("add rule ip t pre tcp dport 81 dnat to 10.0.0.1:8080"), tracer.TCP, 80, nil},
		{"another protocol", pre("add rule ip t pre udp dport 80 dnat to 10.0.0.1:8080"), tracer.TCP, 80, nil},
		{"udp", pre("add rule ip t pre udp dport 53 dnat to 10.0.0.1"), tracer.UDP, 53, []string{"10.0.0.1 53 nftables pre outside-only"}},
		{"a range", pre("add rule ip t pre tcp dport 80-90 dnat to 10.0.0.1"), tracer.TCP, 85, []string{"10.0.0.1 85 nftables pre outside-only"}},
		{"not a range", pre("add rule ip t pre tcp dport != 80-90 dnat to 10.0.0.1"), tracer.TCP, 85, nil},
		{"a set", pre("add rule ip t pre tcp dport { 80, 90-99, 443 } dnat to 10.0.0.1"), tracer.TCP, 95, []string{"10.0.0.1 95 nftables pre outside-only"}},
		{"not in a set", pre("add rule ip t pre tcp dport { 80, 90-99, 443 } dnat to 10.0.0.1"), tracer.TCP, 100, nil},
		{"but for a set", pre("add rule ip t pre tcp dport != { 22, 80 } dnat to 10.0.0.1"), tracer.TCP, 80, nil},
		{"neighbours in a set", pre("add set ip t s { type inet_service; flags interval; }\nadd element ip t s { 80-81, 82-89 }\nadd rule ip t pre tcp dport @s dnat to 10.0.0.1"),
			tracer.TCP, 85, []string{"10.0.0.1 85 nftables pre outside-only"}},
		{"a map", pre("add rule ip t pre dnat to tcp dport map { 80 : 10.0.0.1, 81 : 10.0.0.2 }"), tracer.TCP, 81, []string{"10.0.0.2 81 nftables pre outside-only"}},
		{"a map of ends", pre("add map ip t m { type inet_service : ipv4_addr . inet_service; }\nadd element ip t m { 80 : 10.0.0.1 . 8080 }\nadd rule ip t pre dnat ip addr . port to tcp dport map @m"),
			tracer.TCP, 80, []string{"10.0.0.1 8080 nftables pre outside-only"}},
		{"a map of intervals", pre("add rule ip t pre dnat to tcp dport map { 80-89 : 10.0.0.1, 90 : 10.0.0.2 }"), tracer.TCP, 88, []string{"10.0.0.1 88 nftables pre outside-only"}},
		{"a verdict map", pre("add chain ip t web\nadd rule ip t web meta l4proto tcp dnat to 10.0.0.7:8080\nadd rule ip t pre tcp dport vmap { 80 : jump web, 81 : drop }"),
			tracer.TCP, 80, []string{"10.0.0.7 8080 nftables web outside-only"}},
		{"an address of its own", pre("add rule ip t pre ip daddr 192.0.2.11 tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre of [192.0.2.11] outside-only"}},
		{"an address of others", pre("add rule ip t pre ip daddr 198.51.100.1 tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, nil},
		{"a network", pre("add rule ip t pre ip daddr 192.0.0.0/16 tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only"}},
		{"a source", pre("add rule ip t pre ip saddr 198.51.100.0/24 tcp dport 80 dnat to 10.0.0.1\nadd rule ip t pre tcp dport 80 dnat to 10.0.0.2"),
			tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only when source", "10.0.0.2 80 nftables pre outside-only when source"}},
		{"the first counts", pre("add rule ip t pre tcp dport 80 dnat to 10.0.0.1\nadd rule ip t pre tcp dport 80 dnat to 10.0.0.2"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only"}},
		{"accepted before", pre("add rule ip t pre tcp dport 80 accept\nadd rule ip t pre tcp dport 80 dnat to 10.0.0.2"), tracer.TCP, 80, nil},
		{"a device", pre("add rule ip t pre iifname eth0 tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only when device"}},
		{"not a device", pre("add rule ip t pre iifname != docker0 tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only"}},
		{"some devices", pre("add rule ip t pre iifname { eth0, eth1 } tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only when device"}},
		{"what nobody knows", pre("add rule ip t pre meta mark 5 tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only when other"}},
		{"a limit", pre("add rule ip t pre tcp dport 80 limit rate 1/second dnat to 10.0.0.1"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only when other"}},
		{"a socket", pre("add rule ip t pre socket wildcard 0 tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only when other"}},
		{"local type", pre("add rule ip t pre fib daddr type local tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only"}},
		{"redirect", pre("add rule ip t pre tcp dport 80 redirect to :8080"), tracer.TCP, 80, []string{"here 8080 nftables pre outside-only"}},
		{"redirect of everything", pre("add rule ip t pre meta l4proto tcp redirect to :8080"), tracer.TCP, 8080, nil},
		{"by chance", pre("add rule ip t pre tcp dport 80 dnat to numgen random mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }"),
			tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only when random", "10.0.0.2 80 nftables pre outside-only when random"}},
		{"a range of addresses", pre("add rule ip t pre tcp dport 80 dnat to 10.0.0.1-10.0.0.4"), tracer.TCP, 80, []string{"10.0.0.1-10.0.0.4 80 nftables pre outside-only"}},
		{"a range of ports", pre("add rule ip t pre tcp dport 80 dnat to 10.0.0.1:8000-8010"), tracer.TCP, 80, []string{"10.0.0.1 8000-8010 nftables pre outside-only"}},
		{"output too", nftIP(fmt.Sprintf(nftNAT, "tcp dport 80 dnat to 10.0.0.1", "tcp dport 80 dnat to 10.0.0.1")), tracer.TCP, 80,
			[]string{"10.0.0.1 80 nftables out of [127.0.0.1 192.0.2.10 192.0.2.11] here-only", "10.0.0.1 80 nftables pre outside-only"}},
		{"not from the loopback", nftIP(fmt.Sprintf(nftNAT, "iifname lo tcp dport 80 dnat to 10.0.0.1", "oifname eth0 tcp dport 80 dnat to 10.0.0.1")), tracer.TCP, 80, nil},
		{"ipv6", "nft -f - <<'EOF'\ntable inet t { chain pre { type nat hook prerouting priority dstnat; tcp dport 80 dnat ip6 to [2001:db8::5]:8080; }; }\nEOF\n", tracer.TCP, 80,
			[]string{"2001:db8::5 8080 nftables pre outside-only"}},
		{"one table after the other", pre("add rule ip t pre tcp dport 80 dnat to 10.0.0.1\nadd table ip u\nadd chain ip u pre { type nat hook prerouting priority -50; }\nadd rule ip u pre tcp dport 80 dnat to 10.0.0.9"),
			tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only"}},
		{"a filter is no nat", "nft -f - <<'EOF'\ntable ip t { chain pre { type filter hook prerouting priority 0; tcp dport 80 drop; }; }\nEOF\n", tracer.TCP, 80, nil},
		{"goto does not return", pre("add chain ip t g\nadd rule ip t g udp dport 1 drop\nadd rule ip t pre tcp dport 80 goto g\nadd rule ip t pre tcp dport 80 dnat to 10.0.0.1"), tracer.TCP, 80, nil},
		{"jump returns", pre("add chain ip t g\nadd rule ip t g return\nadd rule ip t pre tcp dport 80 jump g\nadd rule ip t pre tcp dport 80 dnat to 10.0.0.1"),
			tracer.TCP, 80, []string{"10.0.0.1 80 nftables pre outside-only"}},
		{"a concatenation", pre("add map ip t m { type ipv4_addr . inet_proto . inet_service : verdict; }\nadd chain ip t svc\nadd rule ip t svc meta l4proto tcp dnat to 10.0.0.3:81\n" +
			"add element ip t m { 192.0.2.11 . tcp . 80 : goto svc, 10.96.0.1 . tcp . 443 : drop }\nadd rule ip t pre ip daddr . meta l4proto . th dport vmap @m"),
			tracer.TCP, 80, []string{"10.0.0.3 81 nftables svc of [192.0.2.11] outside-only"}},
		{"a concatenation of intervals", pre("add map ip t m { type ipv4_addr . inet_service : verdict; flags interval; }\nadd chain ip t svc\nadd rule ip t svc meta l4proto tcp dnat to 10.0.0.3:81\n" +
			"add element ip t m { 192.0.2.0/24 . 80-89 : goto svc }\nadd rule ip t pre ip daddr . tcp dport vmap @m"),
			tracer.TCP, 85, []string{"10.0.0.3 81 nftables svc outside-only"}},
		{"a service that is not here", kubeNFT, tracer.TCP, 443, nil},
		{"kube-proxy, nftables", kubeNFT, tracer.TCP, 30080, []string{
			"10.244.0.5 8080 nftables endpoint-5 when random", "10.244.0.6 8080 nftables endpoint-6 when random",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			natPlace(t, c.script)
			wantNAT(t, c.proto, c.port, c.want)
		})
	}
}

func wantNAT(t *testing.T, proto tracer.Proto, port uint16, want []string) {
	t.Helper()
	if got := natLines(t, proto, port); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s/%d leads to\n  %s\nwant\n  %s", fmt.Sprint(port), proto, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// kubeNFT are rules of the form that kube-proxy's nftables mode has.
const kubeNFT = `nft -f - <<'EOF'
table ip kube-proxy {
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-nodeports { type inet_proto . inet_service : verdict; }
	set nodeport-ips { type ipv4_addr; }
	chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
	chain endpoint-5 { ip saddr 10.244.0.5 jump mark-for-masquerade; meta l4proto tcp dnat to 10.244.0.5:8080; }
	chain endpoint-6 { ip saddr 10.244.0.6 jump mark-for-masquerade; meta l4proto tcp dnat to 10.244.0.6:8080; }
	chain service-web { numgen random mod 2 vmap { 0 : goto endpoint-5, 1 : goto endpoint-6 }; }
	chain external-web { jump mark-for-masquerade; goto service-web; }
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
		fib daddr type local meta l4proto . th dport vmap @service-nodeports
	}
	chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
	chain nat-output { type nat hook output priority -100; jump services; }
}
add element ip kube-proxy service-ips { 10.96.0.1 . tcp . 443 : goto service-web }
add element ip kube-proxy service-nodeports { tcp . 30080 : goto external-web }
EOF
`

// kubeIPTables are those of its iptables mode, CNI portmap's and Docker's, in one table.
const kubeIPTables = `
	$ipt -t nat -N KUBE-SERVICES
	$ipt -t nat -N KUBE-NODEPORTS
	$ipt -t nat -N KUBE-MARK-MASQ
	$ipt -t nat -N KUBE-EXT-WEB
	$ipt -t nat -N KUBE-SVC-WEB
	$ipt -t nat -N KUBE-SEP-A
	$ipt -t nat -N KUBE-SEP-B
	$ipt -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
	$ipt -t nat -A PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES
	$ipt -t nat -A OUTPUT -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES
	$ipt -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-WEB
	$ipt -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
	$ipt -t nat -A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-WEB
	$ipt -t nat -A KUBE-EXT-WEB -j KUBE-MARK-MASQ
	$ipt -t nat -A KUBE-EXT-WEB -j KUBE-SVC-WEB
	$ipt -t nat -A KUBE-SVC-WEB -m statistic --mode random --probability 0.5 -j KUBE-SEP-A
	$ipt -t nat -A KUBE-SVC-WEB -j KUBE-SEP-B
	$ipt -t nat -A KUBE-SEP-A -s 10.244.0.5/32 -j KUBE-MARK-MASQ
	$ipt -t nat -A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:8080
	$ipt -t nat -A KUBE-SEP-B -s 10.244.0.6/32 -j KUBE-MARK-MASQ
	$ipt -t nat -A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination 10.244.0.6:8080

	$ipt -t nat -N CNI-HOSTPORT-DNAT
	$ipt -t nat -N CNI-HOSTPORT-SETMARK
	$ipt -t nat -N CNI-DN-abc
	$ipt -t nat -A CNI-HOSTPORT-SETMARK -j MARK --or-mark 0x2000
	$ipt -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
	$ipt -t nat -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
	$ipt -t nat -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment 'dnat name: "podman" id: "shop"' -m multiport --dports 18090,18443 -j CNI-DN-abc
	$ipt -t nat -A CNI-DN-abc -s 10.88.0.0/16 -p tcp -m tcp --dport 18090 -j CNI-HOSTPORT-SETMARK
	$ipt -t nat -A CNI-DN-abc -p tcp -m tcp --dport 18090 -j DNAT --to-destination 10.88.0.5:80
	$ipt -t nat -A CNI-DN-abc -p tcp -m tcp --dport 18443 -j DNAT --to-destination 10.88.0.5:443

	$ipt -t nat -N DOCKER
	$ipt -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
	$ipt -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
	$ipt -t nat -A DOCKER -i docker0 -j RETURN
	$ipt -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 28085 -j DNAT --to-destination 172.17.0.2:80
	$ipt -t nat -A DOCKER -d 192.0.2.11/32 ! -i docker0 -p udp -m udp --dport 5353 -j DNAT --to-destination 172.17.0.3:53

	$ipt -t nat -A PREROUTING -p tcp -m tcp --dport 7000 -j REDIRECT --to-ports 7001
	$ipt -t nat -A PREROUTING -p tcp -m tcp --dport 7100:7199 -j DNAT --to-destination 10.0.0.1-10.0.0.9
	$ipt -t nat -A PREROUTING -p tcp -m tcp ! --dport 1:60000 -j DNAT --to-destination 10.0.0.1:60000-60009
	$ipt -t nat -A PREROUTING -p tcp -s 198.51.100.7 -m tcp --dport 7300 -j DNAT --to-destination 10.0.0.1
	$ipt -t nat -A PREROUTING -p tcp -m mark --mark 7 -m tcp --dport 7400 -j DNAT --to-destination 10.0.0.1
	$ipt -t nat -A PREROUTING -p tcp -i eth0 -m tcp --dport 7500 -j DNAT --to-destination 10.0.0.1
	$ipt -t nat -A PREROUTING -p tcp -d 198.51.100.0/24 -m tcp --dport 7600 -j DNAT --to-destination 10.0.0.1
`

func TestNATIPTables(t *testing.T) {
	for _, tool := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(tool, func(t *testing.T) {
			natPlace(t, "ipt="+tool+"\n"+kubeIPTables)
			wantNAT(t, tracer.TCP, 443, nil)
			wantNAT(t, tracer.TCP, 30080, []string{
				"10.244.0.5 8080 iptables KUBE-SEP-A when random", "10.244.0.6 8080 iptables KUBE-SEP-B when random",
			})
			wantNAT(t, tracer.TCP, 18090, []string{"10.88.0.5 80 iptables CNI-DN-abc"})
			wantNAT(t, tracer.TCP, 18443, []string{"10.88.0.5 443 iptables CNI-DN-abc"})
			wantNAT(t, tracer.TCP, 28085, []string{"172.17.0.2 80 iptables DOCKER"})
			wantNAT(t, tracer.UDP, 5353, []string{"172.17.0.3 53 iptables DOCKER of [192.0.2.11]"})
			wantNAT(t, tracer.TCP, 7000, []string{"here 7001 iptables PREROUTING outside-only"})
			wantNAT(t, tracer.TCP, 7150, []string{"10.0.0.1-10.0.0.9 7150 iptables PREROUTING outside-only"})
			wantNAT(t, tracer.TCP, 60001, []string{"10.0.0.1 60000-60009 iptables PREROUTING outside-only"})
			wantNAT(t, tracer.TCP, 7300, []string{"10.0.0.1 7300 iptables PREROUTING outside-only when source"})
			wantNAT(t, tracer.TCP, 7400, []string{"10.0.0.1 7400 iptables PREROUTING outside-only when other"})
			wantNAT(t, tracer.TCP, 7500, []string{"10.0.0.1 7500 iptables PREROUTING outside-only when device"})
			wantNAT(t, tracer.TCP, 7600, nil)
			wantNAT(t, tracer.UDP, 7000, nil)
		})
	}
	for _, tool := range []string{"ip6tables-nft", "ip6tables-legacy"} {
		t.Run(tool, func(t *testing.T) {
			natPlace(t, tool+` -t nat -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination [2001:db8::5]:8080
				`+tool+` -t nat -A OUTPUT -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 82
				`+tool+` -t nat -N SUB
				`+tool+` -t nat -A PREROUTING -g SUB
				`+tool+` -t nat -A PREROUTING -p tcp --dport 83 -j DNAT --to-destination 2001:db8::6`)
			wantNAT(t, tracer.TCP, 80, []string{"2001:db8::5 8080 iptables PREROUTING outside-only"})
			wantNAT(t, tracer.TCP, 81, []string{"here 82 iptables OUTPUT of [::1 2001:db8::10] here-only"})
			wantNAT(t, tracer.TCP, 83, nil)
		})
	}
}

// To look at the tables must not make any.
func TestNATLeavesNoTrace(t *testing.T) {
	natPlace(t, "true")
	wantNAT(t, tracer.TCP, 80, nil)
	for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
		if b, err := os.ReadFile("/proc/thread-self/net/" + name); err == nil && len(b) > 0 {
			t.Errorf("%s: %q", name, b)
		}
	}
}

// Of another namespace than the caller's.
func TestNATElsewhere(t *testing.T) {
	made, done := make(chan uint32), make(chan struct{})
	go func() {
		defer close(made)
		natPlace(t, "nft add table ip t; nft 'add chain ip t pre { type nat hook prerouting priority dstnat; }'; nft add rule ip t pre tcp dport 80 dnat to 10.0.0.1")
		inode, err := NetNSOfThread()
		if err != nil {
			t.Error(err)
		}
		made <- inode
		<-done
	}()
	inode := <-made
	defer close(done)
	if inode == 0 {
		t.FailNow()
	}
	targets, err := NAT(context.Background(), inode, 80, tracer.TCP)
	if err != nil || len(targets) != 1 || natLine(targets[0]) != "10.0.0.1 80 nftables pre outside-only" {
		t.Errorf("got %v, %v", targets, err)
	}
}

// Who may not see the rules hears so, and not that there are none.
func TestNATNotPermitted(t *testing.T) {
	natPlace(t, "true")
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		done <- func() error {
			var none [2]unix.CapUserData
			hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			if err := unix.Capset(&hdr, &none[0]); err != nil {
				return err
			}
			_, err := NAT(context.Background(), 0, 80, tracer.TCP)
			return err
		}()
	}()
	if err := <-done; !errors.Is(err, ErrNATUnread) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v, want %v", err, ErrNATUnread)
	}
}
