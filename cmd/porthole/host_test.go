package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// A machine that is none is refused before ssh is started, and so is what cannot be asked of one.
func TestHostWrong(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"ls", "--host", "-oProxyCommand=id"}, `"-oProxyCommand=id"`},
		{[]string{"ls", "--host="}, `""`},
		{[]string{"ls", "--host", "a b"}, `"a b"`},
		{[]string{"ls", "--host", "a;id"}, `"a;id"`},
		{[]string{"ls", "--host", "$(id)"}, `"$(id)"`},
		{[]string{"ls", "--host", "a\nb"}, `"a\nb"`},
		{[]string{"ls", "--host", "a,b"}, "one machine"},
		{[]string{"--host", "-v", "ls"}, `"-v"`},
		{[]string{"top", "--host", "a"}, "terminal"},
		{[]string{"diff", "a", "b", "--host", "a"}, "two files"},
		{[]string{"free", "--hold", "--host", "a", "--", "true"}, "ssh a porthole free --hold"},
		{[]string{"run", "--host", "a", "--", "true"}, "--host"},
		{[]string{"agent", "--host", "a"}, "--host"},
		{[]string{"ls", "--host", "a", "--local", "--agent"}, "--local"},
	} {
		stdout, stderr, code := invoke(t, test.args...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, test.want) {
			t.Errorf("%q: exit %d, want %d; stdout %q, stderr %q", test.args, code, exitUsage, stdout, stderr)
		}
	}
}

// TestCompleteHost looks whether machines are those of the user's files of ssh, and whether nothing of this
// machine is offered for another.
func TestCompleteHost(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	if err := os.Mkdir(home+"/.ssh", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"config":      "Host web1 web2 *.example.com !web3\n  HostName 192.0.2.1\nhost db\n",
		"known_hosts": "gw.example.com,192.0.2.9 ssh-ed25519 AAAA\n|1|abc=|def= ssh-ed25519 AAAA\n[web4]:2222 ssh-ed25519 AAAA\n# no\n@revoked bad ssh-ed25519 AAAA\n",
	} {
		if err := os.WriteFile(filepath.Join(home, ".ssh", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, _, _ := invoke(t, "__complete", "ls", "--host", ""); out != "192.0.2.9\ndb\ngw.example.com\nweb1\nweb2\n:4\n" {
		t.Errorf("completed: %s", out)
	}
	testutil.NewNetNS(t)
	listen(t, "127.0.0.1:0")
	for _, args := range [][]string{{"who", "--host", "db", ""}, {"ls", "--host", "db", "--pid", ""}} {
		if out, _, _ := invoke(t, append([]string{"__complete"}, args...)...); out != ":4\n" {
			t.Errorf("%q: offered: %s", args, out)
		}
	}
}

// sshServer starts Debian's sshd in a network namespace of the test's own, with keys of its own, and has ssh
// know three machines, which are all this one: there has porthole, words has a program of that name which
// writes its arguments, each with a zero byte, and bare has none. It returns the file that porthole is there.
func sshServer(t *testing.T) (porthole string) {
	t.Helper()
	testutil.NewNetNS(t)
	// A mount namespace of the thread's own: sshd wants a directory in /run.
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"), os.Mkdir("/run/sshd", 0o755)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"server", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen (Debian's package openssh-client): %v\n%s", err, out)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	write("words/porthole", "#!/bin/sh\nprintf '%s\\0' \"$@\"\n", 0o755)
	write("there/.keep", "", 0o644)
	write("bare/.keep", "", 0o644)
	if err := os.Symlink(self, filepath.Join(dir, "there/porthole")); err != nil {
		t.Fatal(err)
	}
	known, err := os.ReadFile(filepath.Join(dir, "server.pub"))
	if err != nil {
		t.Fatal(err)
	}
	write("known", "machine "+string(known), 0o600)
	server := "HostKey " + dir + "/server\nAuthorizedKeysFile " + dir + "/user.pub\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nListenAddress 127.0.0.1\n"
	client := ""
	for i, name := range []string{"there", "words", "bare"} {
		server += fmt.Sprintf("Port %d\n", 2200+i)
		client += fmt.Sprintf("Host %s\n  Port %d\n", name, 2200+i)
	}
	for i, name := range []string{"there", "words", "bare"} {
		server += fmt.Sprintf("Match LocalPort %[1]d\n  SetEnv HOME=%[2]s/%[3]s PATH=%[2]s/%[3]s:/usr/bin:/bin\n", 2200+i, dir, name) // a HOME whose shell has nothing to start
	}
	client += "Host *\n  HostName 127.0.0.1\n  HostKeyAlias machine\n  IdentitiesOnly yes\n  IdentityFile " + dir + "/user\n  UserKnownHostsFile " + dir + "/known\n  BatchMode yes\n"
	write("sshd_config", server, 0o600)
	write("ssh_config", client, 0o600)
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Fatal(err)
	}
	write("bin/ssh", "#!/bin/sh\nexec "+ssh+" -F "+dir+"/ssh_config \"$@\"\n", 0o755)
	t.Setenv("PATH", filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))

	var log bytes.Buffer
	sshd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	sshd.Stderr = &log
	sshd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := sshd.Start(); err != nil {
		t.Fatalf("%v (Debian's package openssh-server)", err)
	}
	t.Cleanup(func() {
		_ = sshd.Process.Kill()
		_ = sshd.Wait()
		if t.Failed() {
			t.Logf("sshd:\n%s", log.Bytes())
		}
	})
	testutil.Await(t, "sshd answers", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:2202")
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return filepath.Join(dir, "there/porthole")
}

// ran is how a process of porthole ended.
func ran(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	c := child(t, args...)
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// The commands that ask say the same by ssh as on that machine, and end as there.
func TestHost(t *testing.T) {
	sshServer(t)
	port := listen(t, "127.0.0.1:0").Port
	free := listen(t, "127.0.0.1:0")
	own := fmt.Sprint(identityOfNetNS(t))
	for i, args := range [][]string{
		{"who", fmt.Sprint(port), "--json", "--netns", own},
		{"who", "1", "--netns", own},
		{"ls", "-tlnH", "sport", "=", fmt.Sprintf(":%d", port)},
		{"ls", "--netns", own, "-l", "--comm", "no such"},
		{"headroom", "--json", "--netns", own, "--to", "127.0.0.1:1"},
		{"check", fmt.Sprint(free.Port)},
		{"wait", "1", "--timeout", "0"},
		{"wait", fmt.Sprint(port), "--timeout", "0", "-q"},
		{"headroom", "--agent", "--socket", "/nowhere"},
		{"history", "--local", "--history.dir", "/nowhere"},
		{"history", "--since", "never"},
		{"policy", "init", "--local"},
		{"version", "--json"},
		{"free", "--range", "8000-8000"},
	} {
		with := append(slices.Clone(args), "--host", "there")
		if i%2 == 1 {
			with = append([]string{"--host=there"}, args...)
		}
		says := func(args []string) string {
			out, errs, code := ran(t, args...)
			out = regexp.MustCompile(`\d+(\.\d+)?(µs|ms)`).ReplaceAllString(ago.ReplaceAllString(out, ""), "")
			return fmt.Sprintf("exit %d\n%s%s", code, out, errs)
		}
		var want, got string
		same := func() bool { // some are about the whole machine, where others listen now and then
			want, got = says(args), says(with)
			return want == got
		}
		for tries := 5; !same(); tries-- {
			if tries == 0 || want == says(args) {
				t.Errorf("%q: %s\nwant %s", with, got, want)
				break
			}
		}
	}
}

func identityOfNetNS(t *testing.T) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// Whatever an argument has, the other machine's porthole gets it, and nothing is done with it by a shell.
func TestHostArguments(t *testing.T) {
	sshServer(t)
	for _, word := range testutil.HardWords() {
		if word == "-x" || word == "--" {
			continue // an option, and the end of them
		}
		stdout, stderr, code := ran(t, "tail", "--comm", word, "--unit="+word, word, "--json", "--host", "words")
		want := []string{"tail", "--comm=" + word, "--unit=" + word, "--json=true", word}
		if got := strings.Split(strings.TrimSuffix(stdout, "\x00"), "\x00"); !slices.Equal(got, want) || code != exitDone || stderr != "" {
			t.Errorf("%q: exit %d, %s: arguments %q, want %q", word, code, stderr, got, want)
		}
	}
	if out, _, _ := ran(t, "--host", "words", "who", "--", "-x"); out != "who\x00--\x00-x\x00" {
		t.Errorf("behind --: %q", out)
	}
}

// A machine that is not reached, and one without porthole, are told from each other and from an answer.
func TestHostFails(t *testing.T) {
	sshServer(t)
	for host, want := range map[string]string{
		"bare":                 "bare: porthole cannot be run there: install it",
		"ssh://127.0.0.1:9":    "ssh://127.0.0.1:9: ssh did not reach it",
		"nobody-at-all@there":  "nobody-at-all@there: ssh did not reach it",
		"ssh://no-user@there/": "ssh://no-user@there/: ssh did not reach it",
	} {
		stdout, stderr, code := ran(t, "ls", "--host", host)
		if code != exitCant || stdout != "" || !strings.Contains(stderr, "porthole: "+want) {
			t.Errorf("%s: exit %d, want %d; stdout %q, stderr %q, want %q", host, code, exitCant, stdout, stderr, want)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, stderr, code := ran(t, "ls", "--host", "there"); code != exitCant || !strings.Contains(stderr, "openssh-client") {
		t.Errorf("without ssh: exit %d, stderr %q", code, stderr)
	}
}

// A file of this machine is read there, and what is wrong with it is said here.
func TestHostFiles(t *testing.T) {
	sshServer(t)
	listen(t, "127.0.0.1:0")
	dir := t.TempDir()
	t.Chdir(dir)
	list, _, _ := ran(t, "ls", "--json", "--local")
	allowed, _, _ := ran(t, "policy", "init", "--local")
	for name, text := range map[string]string{"before": list, "policy.yml": allowed, "none.yml": "allow: []\n", "bad.yml": "allow: 1\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"policy", "check", "bad.yml"}, exitUsage, "bad.yml"},
		{[]string{"policy", "check", "none.yml"}, exitNo, ""},
		{[]string{"diff", "nosuch"}, exitCant, "nosuch"},
	} {
		_, stderr, code := ran(t, append(test.args, "--host", "there")...)
		if code != test.code || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%q: exit %d, want %d; stderr %q", test.args, code, test.code, stderr)
		}
	}
	if out, _, code := ran(t, "diff", "before", "--host", "there"); code == exitUsage || code == exitCant || strings.Contains(out, "- tcp 127.0.0.1:2200") {
		t.Errorf("diff: exit %d:\n%s", code, out)
	}
	c := child(t, "diff", "-", "--host", "there")
	c.Stdin = strings.NewReader("no list\n")
	if out, err := c.CombinedOutput(); c.ProcessState.ExitCode() != exitUsage {
		t.Errorf("diff -: %v: %s", err, out)
	}
	in, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := writer.WriteString("of the next command"); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	c = child(t, "version", "--host", "there")
	c.Stdin = in
	if err := c.Run(); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(in); string(rest) != "of the next command" || err != nil {
		t.Errorf("it has read of the standard input: %q is left, %v", rest, err)
	}
}

// runningOf are the processes whose program was started by a path.
func runningOf(t *testing.T, path string) (pids []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		line, err := os.ReadFile("/proc/" + entry.Name() + "/cmdline")
		if err != nil {
			continue
		}
		env, _ := os.ReadFile("/proc/" + entry.Name() + "/environ")
		if strings.HasPrefix(string(line), "porthole\x00") && bytes.Contains(env, []byte("PATH="+filepath.Dir(path))) {
			pids = append(pids, entry.Name())
		}
	}
	return pids
}

// Events come as they happen, and whatever ends the command here ends it there, though nothing happens any more.
func TestHostEnds(t *testing.T) {
	porthole := sshServer(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		for _, args := range [][]string{
			{"tail", "--local", "--tier", testTier(), "--json", "--event", "listen", "--netns", fmt.Sprint(identityOfNetNS(t))},
			{"wait", "1", "--local", "--timeout", "10m"},
		} {
			out, errs := make(lineWriter, 64), make(lineWriter, 64)
			c := child(t, append(args, "--host", "there")...)
			c.Stdout, c.Stderr = out, errs
			c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // as a shell's job
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			testutil.Await(t, "porthole runs there", func() bool { return len(runningOf(t, porthole)) > 0 })
			if args[0] == "tail" {
				waitLine(t, errs, "attached: ")
				listen(t, "127.0.0.1:0")
				waitLine(t, out, `{"time":`) // before the command ends
			}
			to := c.Process.Pid
			if sig == syscall.SIGINT { // Ctrl-C is for the group
				to = -to
			}
			if err := syscall.Kill(to, sig); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = c.Wait(); close(ended) }()
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatalf("%q goes on after %v", args, sig)
			}
			if status := c.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != sig {
				t.Errorf("%q: %v after %v", args, c.ProcessState, sig)
			}
			testutil.Await(t, fmt.Sprintf("%q after %v has ended there too", args, sig), func() bool { return len(runningOf(t, porthole)) == 0 })
			for range len(errs) {
				if line := <-errs; !strings.HasPrefix(line, "attached: ") {
					t.Errorf("%q after %v says %q", args, sig, line)
				}
			}
		}
	}
}

// On a terminal there is one there: top is drawn, answers fit, and Ctrl-C is the other machine's.
func TestHostTerminal(t *testing.T) {
	sshServer(t)
	port := strconv.Itoa(listen(t, "127.0.0.1:0").Port)
	own := fmt.Sprint(identityOfNetNS(t))
	term := inTerminal(t, 80, 24, "top", "--netns", own, "--local", "--tier", testTier(), "--host", "there")
	term.awaits("kernel", port, "127.0.0.1", "q quit")
	term.press("q")
	if screen := term.awaits("exit 0"); strings.Contains(screen, "closed") {
		t.Errorf("ssh says that it ends:\n%s", screen)
	}
	term.restored(0)
	term = inTerminal(t, 80, 24, "tail", "--netns", own, "--local", "--tier", testTier(), "--event", "listen", "--host", "there")
	term.awaits("TIME")
	second := strconv.Itoa(listen(t, "127.0.0.1:0").Port)
	term.awaits("127.0.0.1:" + second)
	term.press("C-c")
	term.awaits("1 event, 0 lost", "exit 0")
	term.restored(0)
}
