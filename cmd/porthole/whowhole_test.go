package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// holder starts a process that has a listener and does nothing, and returns its pid.
func holder(t *testing.T, l *net.TCPListener, args ...string) int {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sh", append([]string{"-c", "read wait", "sh"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

func listenTCP(t *testing.T, addr string) (*net.TCPListener, int) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener), l.Addr().(*net.TCPAddr).Port
}

// Which of many programs of a name it is, its command line says, and how to stop it the last
// line: through an agent, too.
func TestKernelWhoCommandLine(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t)) // others may have the port elsewhere
	socket, _ := startAgent(t)
	l, port := listenTCP(t, "127.0.0.1:0")
	pid := holder(t, l, "shop-frontend.js", "a b\x1b[2J")
	l.Close()
	for _, from := range [][]string{nil, {"--agent", "--socket", socket}} {
		text, errs, code := command(t, append([]string{"who", fmt.Sprint(port), "--netns", ns}, from...)...)
		for _, want := range []string{
			fmt.Sprintf("%d/tcp  sh (pid %d, user root) listens on 127.0.0.1:%d", port, pid, port),
			"\n  sh -c 'read wait' sh shop-frontend.js $'a b\\x1b[2J'\n", "  started ", fmt.Sprintf("(pid %d)", os.Getpid()), fmt.Sprintf("kill %d\n", pid),
		} {
			if !strings.Contains(text, want) || code != exitDone || errs != "" {
				t.Errorf("who %q: exit code %d, %s%s\nwant %q in it", from, code, text, errs, want)
			}
		}
		for line := range strings.Lines(text) {
			if utf8.RuneCountInString(line) > 81 {
				t.Errorf("who %q: a line of %d columns: %s", from, len(line)-1, line)
			}
		}
		var answer render.Port
		text, _, _ = command(t, append([]string{"who", fmt.Sprint(port), "--netns", ns, "--json"}, from...)...)
		if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer.Sockets) != 1 || len(answer.Sockets[0].Holders) != 1 {
			t.Fatalf("who --json %q: %v, %s", from, err, text)
		}
		if h := answer.Sockets[0].Holders[0]; h.Process == nil || len(h.Args) != 6 || h.Args[4] != "shop-frontend.js" || int(h.PPID) != os.Getpid() || h.Started.IsZero() {
			t.Errorf("who --json %q: holder %+v", from, h.Process)
		}
		text, _, _ = command(t, append([]string{"who", fmt.Sprint(port), "--netns", ns, "--json", "--no-args"}, from...)...)
		if strings.Contains(text, "shop-frontend") || !strings.Contains(text, `"started":"`) {
			t.Errorf("who --no-args %q: %s", from, text)
		}
	}
	secret, _ := startAgent(t, "--no-args")
	if text, _, _ := command(t, "who", fmt.Sprint(port), "--netns", ns, "--json", "--agent", "--socket", secret); strings.Contains(text, "shop-frontend") {
		t.Errorf("an agent with --no-args tells %s", text)
	}
}

// Whether a port is in use in a place is asked about that place, by exit code and in words.
func TestKernelWhoPlace(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	socket, _ := startAgent(t)
	_, port := listenTCP(t, "127.0.0.1:0")
	name := fmt.Sprintf("porthole-who-%d", os.Getpid())
	shell(t, fmt.Sprintf("ip netns add %s && ip netns exec %s sh -c 'echo 20000 20009 > /proc/sys/net/ipv4/ip_local_port_range'", name, name))
	t.Cleanup(func() { shell(t, "ip netns del "+name) })
	var st unix.Stat_t
	if err := unix.Stat("/run/netns/"+name, &st); err != nil {
		t.Fatal(err)
	}
	other := fmt.Sprint(st.Ino)
	for _, from := range [][]string{nil, {"--agent", "--socket", socket}} {
		for _, c := range []struct {
			netns string
			code  int
			want  string
		}{
			{ns, exitDone, fmt.Sprintf("listens on 127.0.0.1:%d", port)},
			{name, exitNo, fmt.Sprintf("nothing uses %d/tcp or %d/udp in network namespace %s\n", port, port, name)},
			{name, exitNo, fmt.Sprintf("the ephemeral range of network namespace %s, 20000-20009\n", name)},
			{other, exitNo, fmt.Sprintf("nothing uses %d/tcp or %d/udp in network namespace %s\n", port, port, other)},
		} {
			text, errs, code := command(t, append([]string{"who", fmt.Sprint(port), "--netns", c.netns}, from...)...)
			if code != c.code || !strings.Contains(text, c.want) {
				t.Errorf("who --netns %s %q: exit code %d, want %d; %s%s\nwant %q in it", c.netns, from, code, c.code, text, errs, c.want)
			}
		}
		if _, errs, code := command(t, append([]string{"who", fmt.Sprint(port), "--netns", "no-such-place"}, from...)...); code == exitDone || code == exitNo || !strings.Contains(errs, "no-such-place") {
			t.Errorf("who of a namespace that is not there %q: exit code %d, %s", from, code, errs)
		}
	}
}

// Nobody listens here, but NAT leads to somebody in another namespace.
func TestWhoBehindNAT(t *testing.T) {
	testutil.NewNetNS(t)
	shell(t, "ip link add eth0 type veth peer name eth1 && ip addr add 10.88.0.1/24 dev eth0 && ip link set eth0 up")
	there := make(chan int)
	go func() {
		defer close(there)
		testutil.NewNetNS(t)
		there <- unix.Gettid()
		<-there
		shell(t, "ip addr add 10.88.0.5/24 dev eth1 && ip link set eth1 up")
		l, _ := listenTCP(t, "0.0.0.0:8080")
		pid := holder(t, l, "shop-api")
		l.Close()
		there <- pid
	}()
	shell(t, fmt.Sprintf("ip link set eth1 netns %d", <-there))
	there <- 0
	pid := <-there
	shell(t, `nft add table ip nat
		nft 'add chain ip nat pre { type nat hook prerouting priority dstnat; }'
		nft add rule ip nat pre tcp dport 18090 dnat to 10.88.0.5:8080`)
	text, errs, code := command(t, "who", "18090")
	for _, want := range []string{
		"nothing listens on 18090/tcp here, but nftables sends what comes from outside to\n  10.88.0.5:8080, chain pre\n", fmt.Sprintf("there: sh (pid %d, user root)", pid), "shop-api",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("who: exit code %d, %s%s\nwant %q in it", code, text, errs, want)
		}
	}
	var answer render.Port
	text, _, code = command(t, "who", "18090", "--json")
	if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer.ForwardsTo) != 1 || len(answer.ForwardsTo[0].Holders) != 1 ||
		int(answer.ForwardsTo[0].Holders[0].PID) != pid || answer.ForwardsTo[0].By != "nftables" || code != exitNo {
		t.Errorf("who --json: exit code %d, %v, %s", code, err, text)
	}
}

func shell(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s\n%v\n%s", script, err, out)
	}
}
