package render

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/testutil/handmade"
	"github.com/porthole-dev/porthole/tracer"
)

// nobodysUID has a name on no machine.
const nobodysUID = 4000000001

func question(port uint16, protos ...tracer.Proto) query.Port {
	if len(protos) == 0 {
		protos = []tracer.Proto{tracer.TCP, tracer.UDP}
	}
	return query.Port{Number: port, Protos: protos, Limit: query.Unlimited}
}

func testPool(t *testing.T) *identity.Pool {
	t.Helper()
	pool, err := identity.ParsePool("32768\t60999\n", "8080,40000-40010\n")
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// portNames knows one more service, and a namespace besides the host's.
func portNames() Renderer {
	n := testNames()
	n.Services = identity.ParseServices(strings.NewReader("my-web 8080/tcp\n"))
	n.NetNS = identity.FixedNetNSNames(hostNS, map[identity.NetNS]string{{Inode: otherNS}: "blue"})
	return n
}

const otherNS = 4026532000

// askWho answers a question about these sockets in words.
func askWho(t *testing.T, q query.Port, before []tracer.Tenancy, sockets ...tracer.Socket) string {
	t.Helper()
	return textOf(t, portAnswer(t, q, sockets, before, query.Unlimited))
}

func textOf(t *testing.T, p *Port) string {
	t.Helper()
	var b strings.Builder
	if err := portNames().PortText(&b, Style{Width: terminal}, p); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// portJSON answers a question about these sockets in JSON.
func portJSON(t *testing.T, q query.Port, sockets []tracer.Socket, before []tracer.Tenancy, limit int) string {
	t.Helper()
	tracer.SortSockets(sockets)
	var b strings.Builder
	q.Limit = limit
	if err := portNames().PortJSON(&b, q, &PortPlace{Pool: testPool(t)}, SocketsOf(sockets, nil), slices.Values(before)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// portAnswer is that answer read back.
func portAnswer(t *testing.T, q query.Port, sockets []tracer.Socket, before []tracer.Tenancy, limit int) *Port {
	t.Helper()
	p := new(Port)
	if err := json.Unmarshal([]byte(portJSON(t, q, sockets, before, limit)), p); err != nil {
		t.Fatal(err)
	}
	return p
}

const about8080 = "8080: registered (1024-49151); my-web/tcp; http-alt/udp\n" +
	"  outside this machine's ephemeral range 32768-60999, and reserved\n"

func web(pid uint32) tracer.Process { return handmade.Process(pid, nobodysUID, "nginx") }

// portTextTest is a question, the sockets of the port and what is said of them.
type portTextTest struct {
	name     string
	question query.Port
	sockets  []tracer.Socket
	want     string
}

// whenT is the time of day when something was started, or the day.
var whenT = regexp.MustCompile(`started [0-9: -]+ \(`)

// daysAgo depends on when the test runs.
var daysAgo = regexp.MustCompile(`\(-?[0-9]+ (days|h|min|s) ago\)`)

func comparePortText(t *testing.T, tests []portTextTest) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := daysAgo.ReplaceAllString(askWho(t, test.question, nil, test.sockets...), "(D days ago)")
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestPortText(t *testing.T) {
	shared := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "0.0.0.0:8080", "", handmade.HeldBy(web(10), web(11), web(11))...)
	alone := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "0.0.0.0:8080", "", handmade.HeldBy(web(10))...)
	reuse := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "0.0.0.0:8080", "", handmade.HeldBy(web(11))...)
	server := handmade.Socket(hostNS, tracer.TCP, tracer.RoleServer, "10.0.0.1:8080", "10.0.0.2:40000", handmade.HeldBy(web(10))...)
	server2 := handmade.Socket(hostNS, tracer.TCP, tracer.RoleServer, "10.0.0.1:8080", "10.0.0.2:40009", handmade.HeldBy(web(11))...)
	orphan := handmade.Socket(hostNS, tracer.TCP, tracer.RoleOrphan, "10.0.0.1:8080", "10.0.0.2:40001")
	gone := handmade.Socket(hostNS, tracer.TCP, tracer.RoleTimeWait, "10.0.0.1:8080", "10.0.0.2:40002")
	goneReuse := gone
	goneReuse.ReuseAddr = true
	goneToo := handmade.Socket(hostNS, tracer.TCP, tracer.RoleTimeWait, "10.0.0.1:8080", "10.0.0.2:40003")
	client := handmade.Socket(hostNS, tracer.TCP, tracer.RoleClient, "10.0.0.1:8080", "10.0.0.9:443", handmade.HeldBy(handmade.Process(12, nobodysUID, "curl"))...)
	other := alone
	other.NetNS, other.MPTCP, other.Since = otherNS, true, time.Date(2026, 1, 2, 3, 4, 5, 6, time.Local)
	unknown := handmade.Socket(hostNS, tracer.UDP, tracer.RoleBound, "[::]:8080", "")
	without := func(why tracer.NoHolder, holders ...tracer.Holder) tracer.Socket {
		so := handmade.Socket(hostNS, tracer.UDP, tracer.RoleBound, "127.0.0.1:8080", "", holders...)
		so.NoHolder = why
		return so
	}
	hostile := handmade.Socket(hostNS, tracer.UDP, tracer.RoleBound, "127.0.0.1:8080", "", handmade.HeldBy(handmade.Process(13, nobodysUID, "a\x1b[2J\nb"))...)
	comparePortText(t, []portTextTest{
		{"nobody", question(8080), nil, "nothing uses 8080/tcp or 8080/udp\n" + about8080},
		{"one process", question(8080), []tracer.Socket{alone},
			"8080/tcp  nginx (pid 10, user 4000000001) listens on 0.0.0.0:8080\n  stop it: kill 10\n" + about8080},
		{"two processes with one socket", question(8080), []tracer.Socket{shared},
			"8080/tcp  2 processes listen on 0.0.0.0:8080\n" +
				"  nginx (pid 10, user 4000000001)\n  nginx (pid 11, user 4000000001)\n  stop it: kill 10 11\n" + about8080},
		{"SO_REUSEPORT", question(8080), []tracer.Socket{alone, reuse},
			"8080/tcp  2 processes listen on 0.0.0.0:8080, 2 sockets\n" +
				"  nginx (pid 10, user 4000000001)\n  nginx (pid 11, user 4000000001)\n  stop it: kill 10 11\n" + about8080},
		{"listener and its connections", question(8080), []tracer.Socket{alone, server, orphan, gone, goneToo},
			"8080/tcp  nginx (pid 10, user 4000000001) listens on 0.0.0.0:8080,\n" +
				"  1 accepted connection, 1 connection that no process holds,\n" +
				"  2 connections in TIME-WAIT (each for up to a minute)\n  stop it: kill 10\n" + about8080},
		{"TIME_WAIT only", question(8080), []tracer.Socket{gone},
			"8080/tcp  nothing listens, but there is 1 connection in TIME-WAIT (for up to a\n  minute)\n" +
				"  SO_REUSEADDR does not help a new server: not all of them were opened with it\n" + about8080},
		{"TIME_WAIT of sockets with SO_REUSEADDR", question(8080), []tracer.Socket{goneReuse},
			"8080/tcp  nothing listens, but there is 1 connection in TIME-WAIT (for up to a\n  minute)\n" +
				"  a server that sets SO_REUSEADDR can bind the port now\n" + about8080},
		{"connections that outlived their listener", question(8080), []tracer.Socket{server, server, orphan},
			"8080/tcp  nothing listens, but there are 2 accepted connections,\n" +
				"  1 connection that no process holds\n" +
				"  accepted connections without a listener: nginx (pid 10, user 4000000001)\n  stop it: kill 10\n" +
				"  SO_REUSEADDR does not help a new server: not all of them were opened with it\n" + about8080},
		{"connections that outlived their listener, of two processes, beside another namespace", question(8080), []tracer.Socket{other, server, server2},
			"8080/tcp  nginx (pid 10, user 4000000001) listens on 0.0.0.0:8080 (MPTCP),\n" +
				"  in network namespace blue, since 2026-01-02 03:04 (D days ago),\n" +
				"  2 accepted connections\n  stop it: kill 10\n" +
				"  accepted connections without a listener, of 2 processes:\n" +
				"    nginx (pid 10, user 4000000001)\n    nginx (pid 11, user 4000000001)\n  stop it: kill 10 11\n" +
				"  SO_REUSEADDR does not help a new server: not all of them were opened with it\n" + about8080},
		{"clients apart", question(8080), []tracer.Socket{alone, client},
			"8080/tcp  nginx (pid 10, user 4000000001) listens on 0.0.0.0:8080, 1 client\n  stop it: kill 10\n" + about8080 +
				"\nclients that have 8080 as their own port:\n" +
				"PROTO STATE LOCAL         REMOTE       ROLE   PID COMM\n" +
				"tcp   ESTAB 10.0.0.1:8080 10.0.0.9:443 client  12 curl\n"},
		{"two namespaces", question(8080), []tracer.Socket{alone, other},
			"8080/tcp  nginx (pid 10, user 4000000001) listens on 0.0.0.0:8080\n  stop it: kill 10\n" +
				"8080/tcp  nginx (pid 10, user 4000000001) listens on 0.0.0.0:8080 (MPTCP),\n" +
				"  in network namespace blue, since 2026-01-02 03:04 (D days ago)\n  stop it: kill 10\n" + about8080},
		{"nobody knows who", question(8080), []tracer.Socket{unknown},
			"8080/udp  a socket of no known process is bound to *:8080 (IPv4 and IPv6)\n" + about8080},
		{"the kernel", question(8080), []tracer.Socket{without(tracer.NoHolderKernel)},
			"8080/udp  the kernel itself is bound to 127.0.0.1:8080\n" +
				"  made by the kernel for VXLAN, WireGuard, NFS or the like: no process to stop\n" + about8080},
		{"in flight", question(8080), []tracer.Socket{without(tracer.NoHolderInFlight)},
			"8080/udp  a socket of no process is bound to 127.0.0.1:8080\n" +
				"  its file is in a message between processes that nobody has received, or the\n  kernel keeps it: no process has it\n" + about8080},
		{"out of sight", question(8080), []tracer.Socket{without(tracer.NoHolderOutOfSight)},
			"8080/udp  a process that is out of sight is bound to 127.0.0.1:8080\n" +
				"  holders outside this container's pid namespace are not visible (run with\n  --pid=host), nor those that a hardened kernel hides from BPF programs\n" + about8080},
		{"io_uring", question(8080), []tracer.Socket{without(tracer.NoHolderIOUring, handmade.HeldBy(web(10))...)},
			"8080/udp  nginx (pid 10, user 4000000001) is bound to 127.0.0.1:8080\n" +
				"  no process has a descriptor of it: it is registered with an io_uring\n  stop it: kill 10\n" + about8080},
		{"two with a reason each", question(8080), []tracer.Socket{without(tracer.NoHolderInFlight), without(tracer.NoHolderKernel), without(tracer.NoHolderKernel)},
			"8080/udp  a socket of no process is bound to 127.0.0.1:8080, 3 sockets\n" +
				"  its file is in a message between processes that nobody has received, or the\n  kernel keeps it: no process has it\n" +
				"  made by the kernel for VXLAN, WireGuard, NFS or the like: no process to stop\n" + about8080},
		{"a name with escapes", question(8080, tracer.UDP), []tracer.Socket{hostile},
			`8080/udp  "a\x1b[2J\nb" (pid 13, user 4000000001) is bound to 127.0.0.1:8080` + "\n  stop it: kill 13\n" +
				"8080: registered (1024-49151); http-alt/udp\n  outside this machine's ephemeral range 32768-60999, and reserved\n"},
	})
}

// Who created a socket that others hold.
func TestPortTextCreator(t *testing.T) {
	server := handmade.Socket(hostNS, tracer.TCP, tracer.RoleServer, "10.0.0.1:8080", "10.0.0.2:40000", handmade.HeldBy(web(10))...)
	left := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "127.0.0.1:8080", "", handmade.HeldBy(web(11))...)
	left.Owner, left.OwnerStatus = web(10), tracer.OwnerGone
	left.Since = time.Date(2026, 1, 2, 3, 4, 5, 6, time.Local)
	leftToTwo := left
	leftToTwo.Holders = handmade.HeldBy(web(11), web(12))
	passed := handmade.Socket(hostNS, tracer.UDP, tracer.RoleBound, "127.0.0.1:8080", "", handmade.HeldBy(web(11))...)
	passed.Owner, passed.OwnerStatus = handmade.Process(1, 0, "sys\x1btemd"), tracer.OwnerAlive
	nobodys := passed
	nobodys.Holders = nil
	kept := left
	kept.Owner, kept.OwnerStatus, kept.Since = web(11), tracer.OwnerHolder, time.Time{}
	unknown := left
	unknown.OwnerStatus, unknown.Since = 0, time.Time{}
	comparePortText(t, []portTextTest{
		{"the creator is gone", question(8080), []tracer.Socket{left, server},
			"8080/tcp  nginx (pid 11, user 4000000001) listens on 127.0.0.1:8080,\n" +
				"  since 2026-01-02 03:04 (D days ago), 1 accepted connection\n" +
				"  created by nginx (pid 10, gone)\n  stop it: kill 11\n" + about8080},
		{"the creator is gone, two hold it", question(8080), []tracer.Socket{leftToTwo},
			"8080/tcp  2 processes listen on 127.0.0.1:8080,\n  since 2026-01-02 03:04 (D days ago)\n" +
				"  nginx (pid 11, user 4000000001)\n  nginx (pid 12, user 4000000001)\n" +
				"  created by nginx (pid 10, gone)\n  stop it: kill 11 12\n" + about8080},
		{"the creator is gone, of two sockets of three", question(8080), []tracer.Socket{left, leftToTwo, kept},
			"8080/tcp  2 processes listen on 127.0.0.1:8080,\n  since 2026-01-02 03:04 (D days ago), 3 sockets\n" +
				"  nginx (pid 11, user 4000000001)\n  nginx (pid 12, user 4000000001)\n" +
				"  2 of them created by nginx (pid 10, gone)\n  stop it: kill 11 12\n" + about8080},
		{"the creator has let go of it", question(8080), []tracer.Socket{passed},
			"8080/udp  nginx (pid 11, user 4000000001) is bound to 127.0.0.1:8080\n" +
				`  created by "sys\x1btemd" (pid 1), which does not hold it` + "\n  stop it: kill 11\n" + about8080},
		{"the creator has let go of it, nobody holds it", question(8080), []tracer.Socket{nobodys},
			"8080/udp  a socket of no known process is bound to 127.0.0.1:8080\n" +
				`  created by "sys\x1btemd" (pid 1), which does not hold it` + "\n" + about8080},
		{"the creator holds it", question(8080), []tracer.Socket{kept},
			"8080/tcp  nginx (pid 11, user 4000000001) listens on 127.0.0.1:8080\n  stop it: kill 11\n" + about8080},
		{"nobody knows what has become of the creator", question(8080), []tracer.Socket{unknown},
			"8080/tcp  nginx (pid 11, user 4000000001) listens on 127.0.0.1:8080\n  stop it: kill 11\n" + about8080},
	})
}

func TestPortTextAboutNumber(t *testing.T) {
	for port, want := range map[uint16]string{
		443:   "443: system (0-1023); https/tcp\n  outside this machine's ephemeral range 32768-60999\n",
		32767: "  outside this machine's",
		32768: "  inside this machine's ephemeral range 32768-60999\n",
		60999: "60999: dynamic (49152-65535)\n  inside this machine's ephemeral range 32768-60999\n",
		61000: "  outside this machine's",
		40010: "  inside this machine's ephemeral range 32768-60999, and reserved\n",
	} {
		if got := askWho(t, question(port, tracer.TCP), nil); !strings.Contains(got, want) {
			t.Errorf("%d: %q, want %q in it", port, got, want)
		}
	}
}

func TestPortJSON(t *testing.T) {
	dns := handmade.Socket(hostNS, tracer.UDP, tracer.RoleBound, "127.0.0.53:53", "", handmade.HeldBy(handmade.Process(20, 101, "resolved"))...)
	dns.Owner, dns.OwnerStatus = handmade.Process(18, 0, "systemd"), tracer.OwnerGone
	other := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "127.0.0.53:53", "")
	past := tracer.Tenancy{
		Proto: tracer.UDP, Local: netip.MustParseAddrPort("127.0.0.1:53"), NetNS: hostNS, Owner: handmade.Process(19, 0, "dnsmasq"),
		Since: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Until: time.Date(2026, 1, 2, 3, 4, 6, 6, time.UTC),
	}
	for _, test := range []struct {
		question query.Port
		sockets  []tracer.Socket
		past     []tracer.Tenancy
		want     string
	}{
		{question(8080), nil, nil, `{"port":8080,"range":"registered","service":"my-web","in_ephemeral_range":false,"range_low":32768,"range_high":60999,"reserved":true,"sockets":[],"history":[]}`},
		{question(40001, tracer.UDP), nil, nil, `{"port":40001,"proto":"udp","range":"registered","in_ephemeral_range":true,"range_low":32768,"range_high":60999,"reserved":true,"sockets":[],"history":[]}`},
		{question(53, tracer.UDP), []tracer.Socket{dns, other}, []tracer.Tenancy{past, {Proto: tracer.TCP}},
			`{"port":53,"proto":"udp","range":"system","service":"domain","in_ephemeral_range":false,"range_low":32768,"range_high":60999,"reserved":false,"sockets":[` +
				`{"proto":"udp","state":"UNCONN","role":"bound","local_ip":"127.0.0.53","local_port":53,"netns":4026531840,"uid":101,` +
				`"holders":[{"pid":20,"comm":"resolved","fd":3,"uid":101}],"owner":{"pid":18,"comm":"systemd","status":"gone"},"origin":"snapshot","service":"domain"}],"history":[` +
				`{"proto":"udp","local_ip":"127.0.0.1","local_port":53,"netns":4026531840,"pid":19,"comm":"dnsmasq","uid":0,` +
				`"since":"2026-01-02T03:04:05.000000006Z","until":"2026-01-02T03:04:06.000000006Z","duration_ns":1000000000}]}`},
	} {
		got := portJSON(t, test.question, test.sockets, test.past, query.Unlimited)
		if d := cmp.Diff(test.want+"\n", got); d != "" {
			t.Errorf("%v (-want +got):\n%s", test.question, d)
		}
		// What is written row by row is what encoding/json would write.
		whole, err := json.Marshal(portAnswer(t, test.question, test.sockets, test.past, query.Unlimited))
		if d := cmp.Diff(string(whole)+"\n", got); err != nil || d != "" {
			t.Errorf("%v: %v (-encoding/json +got):\n%s", test.question, err, d)
		}
	}
}

// Who had the port before: each process once, the latest first.
func TestPortTextBefore(t *testing.T) {
	until := time.Now().Add(-210 * time.Minute)
	held := func(pid uint32, comm string) tracer.Tenancy {
		return tracer.Tenancy{
			Proto: tracer.TCP, Local: netip.MustParseAddrPort("0.0.0.0:8080"), NetNS: hostNS, Owner: handmade.Process(pid, nobodysUID, comm),
			Since: until.Add(-1500 * time.Millisecond), Until: until,
		}
	}
	client := held(11, "a\nb")
	client.Remote, client.Since, client.NetNS = netip.MustParseAddrPort("10.0.0.9:443"), time.Time{}, otherNS
	short := held(12, "nc")
	short.Since = until.Add(-1234 * time.Microsecond)
	missed := held(13, "x")
	missed.About = true
	const want = "nothing uses 8080/tcp\n" +
		"8080: registered (1024-49151); my-web/tcp\n  outside this machine's ephemeral range 32768-60999, and reserved\n" +
		"previously:\n" +
		"  nginx (pid 10, user 4000000001) on 0.0.0.0 (tcp), for 2s, ended 3 h ago,\n    2 times in all\n" +
		`  "a\nb" (pid 11, user 4000000001) on 0.0.0.0 (tcp) to 10.0.0.9:443,` + "\n    in network namespace blue, ended 3 h ago\n" +
		"  nc (pid 12, user 4000000001) on 0.0.0.0 (tcp), for 1ms, ended 3 h ago\n" +
		"  a process that is not known on 0.0.0.0 (tcp), for 2s, ended 3 h ago\n" +
		"  x (pid 13, user 4000000001) on 0.0.0.0 (tcp), for at most 2s,\n    ended about 3 h ago\n" +
		"  and 1 more\n"
	got := askWho(t, question(8080, tracer.TCP), []tracer.Tenancy{
		held(10, "nginx"), client, held(10, "nginx"), short, held(0, ""), missed, held(14, "y"),
	})
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// A limit leaves out rows, of each kind and of the past, and says how many; the text
// counts them all.
func TestPortLimit(t *testing.T) {
	var sockets []tracer.Socket
	var past []tracer.Tenancy
	for i := range 5 {
		peer := fmt.Sprintf("10.0.0.2:%d", 40000+i)
		sockets = append(sockets,
			handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, fmt.Sprintf("10.0.0.%d:8080", i+1), ""),
			handmade.Socket(hostNS, tracer.TCP, tracer.RoleServer, "10.0.0.1:8080", peer),
			handmade.Socket(hostNS, tracer.TCP, tracer.RoleClient, "10.0.0.3:8080", peer),
			handmade.Socket(hostNS, tracer.UDP, tracer.RoleBound, fmt.Sprintf("10.0.0.%d:8080", i+1), ""))
		past = append(past, tracer.Tenancy{
			Proto: tracer.TCP, Local: netip.MustParseAddrPort("0.0.0.0:8080"), NetNS: hostNS, Owner: handmade.Process(uint32(30-i), 0, "old"),
			Until: time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local),
		})
	}
	for _, limit := range []int{0, 2, 4, 5} {
		p := portAnswer(t, question(8080), slices.Clone(sockets), past, limit)
		left := 5 - limit
		var want []More
		if left > 0 {
			want = []More{{"listener", "tcp", left}, {"client", "tcp", left}, {"server", "tcp", left}, {"bound", "udp", left}}
		}
		byName := func(a, b More) int { return strings.Compare(a.Role, b.Role) }
		slices.SortFunc(want, byName)
		slices.SortFunc(p.More, byName)
		if d := cmp.Diff(want, p.More); d != "" || len(p.Sockets) != 4*limit || len(p.History) != limit || p.HistoryMore != left || !p.Held() {
			t.Errorf("limit %d: %d sockets, %d before and %d more (-want more +got):\n%s", limit, len(p.Sockets), len(p.History), p.HistoryMore, d)
		}
	}
	got := textOf(t, portAnswer(t, question(8080), sockets, past, 2))
	for _, want := range []string{
		"8080/tcp  a socket of no known process listens on 10.0.0.1:8080\n", "3 more listeners", "5 accepted connections", "5 clients",
		"3 more sockets that are bound to it", "that is of the latest 2 times; there were 3 before\n", "and 3 more of tcp\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the text lacks %q:\n%s", want, got)
		}
	}
	if whole := textOf(t, portAnswer(t, question(8080), sockets, past, 5)); strings.Contains(whole, "more") || strings.Contains(whole, "latest") {
		t.Errorf("the whole text tells of more:\n%s", whole)
	}
}

// What was written as JSON and read back is the same text: that is how the agent's
// answers are shown.
func TestTextFromJSON(t *testing.T) {
	n := portNames()
	again := func(from, to any) {
		b, err := json.Marshal(from)
		if err == nil {
			err = json.Unmarshal(b, to)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	sockets := ordinarySockets()
	sockets[0].Since, sockets[1].NetNS = time.Date(2026, 1, 2, 3, 4, 5, 6, time.Local), otherNS
	sockets[0].Owner, sockets[0].OwnerStatus = web(10), tracer.OwnerGone
	var rows []Socket
	for i := range sockets {
		var row Socket
		again(n.Socket(&sockets[i]), &row)
		rows = append(rows, row)
	}
	var want, got strings.Builder
	if err := errors.Join(n.SocketsText(&want, Style{}, SocketsOf(sockets, nil)), n.RowsText(&got, Style{}, rows)); err != nil {
		t.Fatal(err)
	}
	ev := ordinaryEvent()
	ev.Type, ev.Errno, ev.HeldBy = tracer.EventBind, syscall.EADDRINUSE, sockets[:1]
	row := n.Event(&ev)
	var readRow Event
	again(&row, &readRow)
	want.WriteString(n.EventLine(Style{}, &row))
	got.WriteString(n.EventLine(Style{}, &readRow))
	if d := cmp.Diff(want.String(), got.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestDuration(t *testing.T) {
	for in, want := range map[time.Duration]string{
		133*time.Second + 400*time.Millisecond: "2m13s", 999_400 * time.Microsecond: "999ms", 1_500_499: "2ms", 12_345: "12µs", 0: "0s",
	} {
		if got := duration(in); got != want {
			t.Errorf("%d ns are %s, want %s", in, got, want)
		}
	}
}

func TestPortTextWriteError(t *testing.T) {
	if err := portNames().PortText(&noSpace{}, Style{}, portAnswer(t, question(8080), nil, nil, query.Unlimited)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v, want %v", err, syscall.ENOSPC)
	}
}
