package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// socketLine is a socket of ls --json.
func socketLine(proto, state, ip string, port, pid int, more string) string {
	return fmt.Sprintf(`{"proto":%q,"state":%q,"role":"listener","local_ip":%q,"local_port":%d,"netns":1,"holders":[{"pid":%d,"comm":"app","fd":3}],"origin":"snapshot"%s}`+"\n",
		proto, state, ip, port, pid, more)
}

// A difference is what listens elsewhere, for another place or as another program; not a restart,
// a connection or another login.
func TestDiff(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, lines ...string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	before := file("before",
		socketLine("tcp", "LISTEN", "127.0.0.1", 80, 1, `,"unit":"a.service"`), socketLine("tcp", "LISTEN", "::", 81, 1, `,"unit":"session-1.scope"`),
		socketLine("udp", "UNCONN", "0.0.0.0", 53, 1, ""), socketLine("tcp", "ESTAB", "127.0.0.1", 5000, 1, ""))
	same := file("same",
		socketLine("tcp", "LISTEN", "127.0.0.1", 80, 2, `,"unit":"a.service"`), socketLine("tcp", "LISTEN", "::", 81, 9, `,"unit":"session-2.scope"`),
		socketLine("udp", "UNCONN", "0.0.0.0", 53, 1, ""), socketLine("udp", "ESTAB", "127.0.0.1", 5001, 1, ""))
	if out, errs, code := command(t, "diff", before, same); out != "" || errs != "" || code != exitDone {
		t.Errorf("exit code %d, %q, stderr %q", code, out, errs)
	}
	after := file("after",
		socketLine("tcp", "LISTEN", "127.0.0.1", 80, 2, `,"unit":"b.service"`), socketLine("tcp", "LISTEN", "::", 81, 1, `,"v6_only":true`),
		socketLine("udp", "UNCONN", "0.0.0.0", 53, 1, `,"container":{"id":"c0ffee","name":"dns"}`))
	const want = "- udp 0.0.0.0:53  app\n+ udp 0.0.0.0:53  app (dns)\n- tcp 127.0.0.1:80  app (a.service)\n+ tcp 127.0.0.1:80  app (b.service)\n" +
		"- tcp *:81  app\n+ tcp [::]:81  app\n"
	if out, errs, code := command(t, "diff", before, after); out != want || errs != "" || code != exitNo {
		t.Errorf("exit code %d, stderr %q, %q, want %q", code, errs, out, want)
	}
	const row = `{"change":"removed","proto":"udp","local_ip":"0.0.0.0","local_port":53,"comm":"app","netns":1,"sockets":1}` + "\n"
	if out, _, code := command(t, "diff", before, after, "--json"); !strings.HasPrefix(out, row) || strings.Count(out, "\n") != 6 || code != exitNo {
		t.Errorf("--json: exit code %d, %s", code, out)
	}
	for _, bad := range []string{"{}\n", "nonsense", `{"proto":"tcp"`} {
		if _, errs, code := command(t, "diff", before, file("bad", bad)); code != exitUsage || !strings.Contains(errs, "line 1: want what ls --json writes") {
			t.Errorf("%q: exit code %d, stderr %q", bad, code, errs)
		}
	}
}

// What is in a container or pod is called by that, not by the number of its network namespace.
func TestDiffNames(t *testing.T) {
	dir := t.TempDir()
	before, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	in := func(netns int, more string) string {
		return strings.Replace(socketLine("tcp", "LISTEN", "127.0.0.1", 80, 1, more), `"netns":1`, fmt.Sprintf(`"netns":%d`, netns), 1)
	}
	for path, text := range map[string]string{
		before: in(1, ""),
		after:  in(1, "") + in(2, `,"container":{"id":"c0ffee","name":"dns"}`) + in(3, `,"pod":{"namespace":"shop","name":"api"}`) + in(4, ""),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const want = "+ tcp 127.0.0.1:80  app  netns=4\n+ tcp 127.0.0.1:80  app (dns)\n+ tcp 127.0.0.1:80  app (shop/api)\n"
	out, _, code := command(t, "diff", before, after)
	lines := slices.Sorted(strings.Lines(out))
	if got := strings.Join(lines, ""); got != want || code != exitNo {
		t.Errorf("exit code %d, %q, want %q", code, got, want)
	}
}

// Sockets that are alike are counted, and are others in another namespace, unless only its number is.
func TestDiffCounts(t *testing.T) {
	dir := t.TempDir()
	line := func(netns int) string {
		return strings.Replace(socketLine("tcp", "LISTEN", "127.0.0.1", 80, 1, ""), `"netns":1`, fmt.Sprintf(`"netns":%d`, netns), 1)
	}
	file := func(name string, spaces ...int) string {
		var text string
		for _, netns := range spaces {
			text += line(netns)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		before, after []int
		want          string
	}{
		{[]int{1, 1}, []int{1, 1}, ""}, {[]int{1, 1}, []int{1}, "- tcp 127.0.0.1:80  app\n"},
		{[]int{1}, []int{1, 1, 1}, "+ tcp 127.0.0.1:80  app  2 sockets\n"},
		{[]int{1, 2}, []int{1}, "- tcp 127.0.0.1:80  app  netns=2\n"}, {[]int{1}, []int{1, 2}, "+ tcp 127.0.0.1:80  app  netns=2\n"},
		{[]int{1, 2}, []int{1, 3}, ""}, {[]int{1, 2, 2}, []int{3, 3, 4}, ""}, {[]int{1}, nil, "- tcp 127.0.0.1:80  app\n"},
		{[]int{1, 1, 2}, []int{1, 2, 2}, "- tcp 127.0.0.1:80  app  netns=1\n+ tcp 127.0.0.1:80  app  netns=2\n"},
	} {
		out, errs, code := command(t, "diff", file("before", c.before...), file("after", c.after...))
		if out != c.want || errs != "" || code != count(c.want != "") {
			t.Errorf("%v, %v: exit code %d, stderr %q, %q, want %q", c.before, c.after, code, errs, out, c.want)
		}
	}
}

// Without a second file it is compared with what is now, and network namespaces have their names.
func TestKernelDiffNow(t *testing.T) {
	testutil.NewNetNS(t)
	out, _, _ := command(t, "ls", "--json")
	before := filepath.Join(t.TempDir(), "before")
	if err := os.WriteFile(before, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("porthole-test-diff-%d", os.Getpid())
	shell(t, fmt.Sprintf("ip netns attach %s %d", name, unix.Gettid()))
	t.Cleanup(func() { shell(t, "ip netns del "+name) })
	port := listen(t, "127.0.0.1:0").Port
	want := regexp.MustCompile(fmt.Sprintf(`(?m)^\+ tcp 127\.0\.0\.1:%d  .*  netns=%s$`, port, name))
	if out, _, code := command(t, "diff", before); code != exitNo || !want.MatchString(out) {
		t.Errorf("exit code %d, %q, want %v in it", code, out, want)
	}
}
