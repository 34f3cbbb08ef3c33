package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// ownerEnv makes this binary the creator of a listener, or the heir that it hands the
// listener on to.
const ownerEnv = "PORTHOLE_TEST_OWNER"

// ownerMain ends with its standard input, which an heir has from the creator's
// descriptor 3. A creator says its port and the pid of its heir; at a byte of input it
// closes the listener, and says so.
func ownerMain(name string) error {
	if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
		return err
	}
	if name == "heir" {
		fmt.Println("named")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // not every kernel has it, and the answer tells
	l, err := plain.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	heir := exec.Command("/proc/self/exe")
	heir.Env = append(os.Environ(), ownerEnv+"=heir")
	heir.Stdin, heir.ExtraFiles = os.NewFile(3, "stdin"), []*os.File{file}
	out, err := heir.StdoutPipe()
	if err != nil {
		return err
	}
	one := make([]byte, 1)
	if err := heir.Start(); err != nil {
		return err
	}
	if _, err := out.Read(one); err != nil {
		return err
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port, heir.Process.Pid)
	if _, err := os.Stdin.Read(one); err != nil {
		return err
	}
	if err := errors.Join(l.Close(), file.Close()); err != nil {
		return err
	}
	fmt.Println("closed")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// testament is a creator and its heir.
type testament struct {
	*testing.T
	creator    *exec.Cmd
	in         io.WriteCloser // the creator's standard input
	out        *bufio.Reader
	endHeir    io.Closer
	port, heir int
}

func newTestament(t *testing.T) *testament {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	defer r.Close()
	c := &testament{T: t, creator: exec.Command("/proc/self/exe"), endHeir: w}
	c.creator.Env = append(os.Environ(), ownerEnv+"=creator")
	c.creator.ExtraFiles, c.creator.Stderr = []*os.File{r}, os.Stderr
	if c.in, err = c.creator.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.in.Close() })
	out, err := c.creator.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.creator.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(c.said(), &c.port, &c.heir); err != nil {
		t.Fatal(err)
	}
	return c
}

// said is the next line of the creator.
func (c *testament) said() string {
	c.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		c.Fatal(err)
	}
	return line
}

// closes makes the creator close its descriptor.
func (c *testament) closes() {
	c.Helper()
	if _, err := io.WriteString(c.in, "x"); err != nil {
		c.Fatal(err)
	}
	c.said()
}

// ends makes the creator end.
func (c *testament) ends() {
	c.Helper()
	c.in.Close()
	if err := c.creator.Wait(); err != nil {
		c.Fatal(err)
	}
}

// who demands what the answer about the port says of its owner and in words.
func (c *testament) who(when, status string, want []string, args ...string) {
	c.Helper()
	args = append([]string{"who", fmt.Sprintf("%d/tcp", c.port)}, args...)
	text, errs, code := command(c.T, args...)
	for _, w := range want {
		if !strings.Contains(text, w) || code != exitDone || errs != "" {
			c.Errorf("%s: who says %q, want %q in it; exit code %d, stderr %q", when, text, w, code, errs)
		}
	}
	text, _, _ = command(c.T, append(args, "--json")...)
	var answer render.Port
	if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer.Sockets) != 1 {
		c.Fatalf("%s: %v in %q", when, err, text)
	}
	owner := answer.Sockets[0].Owner
	if wantOwner := (render.Owner{PID: uint32(c.creator.Process.Pid), Comm: "creator", Status: status}); status == "" && owner != nil ||
		status != "" && (owner == nil || *owner != wantOwner) {
		c.Errorf("%s: owner %+v, want %+v", when, owner, wantOwner)
	}
}

// Who created a listener and who holds it now are told apart, where that was seen.
func TestKernelAgentOwner(t *testing.T) {
	testutil.NewNetNS(t)
	socket, _ := startAgent(t)
	c := newTestament(t)
	answer := func() (p render.Port) {
		if code, body := get(t, socket, "GET", fmt.Sprintf("/v1/ports/%d", c.port)); code != 200 || json.Unmarshal([]byte(body), &p) != nil {
			t.Fatalf("ports: %d %s", code, body)
		}
		return p
	}
	until := func(what string, done func(render.Port) bool) {
		for end := time.Now().Add(patience); !done(answer()); {
			if time.Now().After(end) {
				t.Fatalf("%s has not come through", what)
			}
		}
	}
	until("the listen", func(p render.Port) bool { return len(p.Sockets) == 1 && p.Sockets[0].Owner != nil })
	creator := fmt.Sprintf("creator (pid %d", c.creator.Process.Pid)
	heir := fmt.Sprintf("%d/tcp  heir (pid %d, user root) listens on 127.0.0.1:%d,\n", c.port, c.heir, c.port)
	agent := []string{"--agent", "--socket", socket}

	c.who("both hold it", "holder", []string{fmt.Sprintf("%d/tcp  2 processes listen on 127.0.0.1:%d,\n", c.port, c.port), " since "}, agent...)
	c.closes()
	c.who("the creator has closed it", "alive", []string{heir, "\n  created by " + creator + "), which does not hold it\n"}, agent...)
	c.ends()
	c.who("the creator is gone", "gone", []string{heir, "\n  created by " + creator + ", gone)\n"}, agent...)
	c.who("nobody saw the creator", "", []string{heir})
	text, _, _ := command(t, append([]string{"ls", "--json", "--lport", fmt.Sprint(c.port)}, agent...)...)
	if !strings.Contains(text, `"owner":{`) || strings.Contains(text, `"status"`) {
		t.Errorf("ls tells of the owner: %s", text)
	}
	c.endHeir.Close()
	until("the close", func(p render.Port) bool { return len(p.Sockets) == 0 && len(p.History) == 1 })
	text, _, code := command(t, append([]string{"who", fmt.Sprint(c.port)}, agent...)...)
	if want := "\npreviously:\n  " + creator + ", user root) on 127.0.0.1 (tcp)"; code != exitNo || !strings.Contains(text, want) {
		t.Errorf("who of the past: exit code %d, %q, want %q in it", code, text, want)
	}
}
