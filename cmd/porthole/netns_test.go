package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// netnsName is a name for a namespace that no other test uses.
func netnsName(t *testing.T, kind string) string {
	t.Helper()
	name := fmt.Sprintf("porthole%d%s", os.Getpid(), kind)
	t.Cleanup(func() { testutil.UnnameNetNS(t, name) })
	return name
}

// listenIn listens on a port in a new namespace of that name, and returns its inode
// number.
func listenIn(t *testing.T, name string, port int) (inode uint32) {
	t.Helper()
	elsewhere(t, func() {
		inode = testutil.NewNetNS(t)
		testutil.NameNetNS(t, name)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			t.Cleanup(func() { unix.Close(fd) })
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		}
		if err == nil {
			err = unix.Listen(fd, 1)
		}
		if err != nil {
			t.Errorf("listen on %d: %v", port, err)
		}
	})
	return inode
}

// tailing follows listens until the test ends.
func tailing(t *testing.T, args ...string) (out lineWriter) {
	t.Helper()
	out, errs, ended := make(lineWriter, 64), make(lineWriter, 64), make(chan int, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(func() { cancel(); <-ended })
	go func() {
		ended <- run(ctx, &env{unasked: true, stdout: out, stderr: errs}, append([]string{"tail", "--event", "listen"}, args...))
	}()
	waitLine(t, errs, "attached: ")
	return out
}

// Namespaces come and go while events are followed.
func TestKernelTailNamesNetNS(t *testing.T) {
	testutil.NewNetNS(t)
	first, late := netnsName(t, "first"), netnsName(t, "late")
	listenIn(t, first, 80)
	socket, _ := startAgent(t)
	for _, source := range [][]string{{"--tier", testTier()}, {"--agent", "--socket", socket}} {
		t.Run(source[0], func(t *testing.T) {
			named := tailing(t, append(source, "--netns", first, "--lport", "82,83", "--count", "1")...)
			all := tailing(t, append(source, "--lport", "81,82,83", "--count", "3")...)
			testutil.UnnameNetNS(t, late)
			listenIn(t, late, 81)
			all.wantIn(t, 81, late)
			testutil.UnnameNetNS(t, late)
			listenIn(t, late, 82) // another, of the same name
			all.wantIn(t, 82, late)
			testutil.UnnameNetNS(t, first)
			listenIn(t, first, 83) // as is this one
			all.wantIn(t, 83, first)
			named.wantIn(t, 83, first) // the first line that it has
		})
	}
}

// wantIn waits for the next line of a tail, which is of a listener in a namespace.
func (w lineWriter) wantIn(t *testing.T, port int, name string) {
	t.Helper()
	for text := ""; ; {
		select {
		case some := <-w:
			text += some
		case <-time.After(patience):
			t.Fatalf("no listener on %d is seen in %q", port, text)
		}
		lines := strings.SplitAfter(strings.TrimPrefix(text, render.EventHead(render.Style{})+"\n"), "\n")
		if len(lines) < 2 {
			continue // the head, or not all of the line
		}
		if !strings.Contains(lines[0], fmt.Sprintf(" 127.0.0.1:%d ", port)) || !strings.HasSuffix(lines[0], " netns="+name+"\n") {
			t.Errorf("%q, want a listener on %d in %s", lines[0], port, name)
		}
		return
	}
}

// A name that looks like a number is a name; a number of no namespace is wrong.
func TestKernelNetNSNumber(t *testing.T) {
	const name = "4026539998" // as the numbers of namespaces are
	t.Cleanup(func() { testutil.UnnameNetNS(t, name) })
	inode := fmt.Sprint(listenIn(t, name, 80))
	for _, given := range []string{name, inode} {
		if out, errs, code := command(t, "ls", "--netns", given); code != exitDone || !strings.Contains(out, "127.0.0.1:80 ") || !strings.Contains(out, " "+name) {
			t.Errorf("ls --netns %s: exit code %d, stderr %q\n%s", given, code, errs, out)
		}
		if out, errs, code := command(t, "headroom", "--netns", given); code != exitDone || !strings.HasPrefix(out, name+": ") {
			t.Errorf("headroom --netns %s: exit code %d, stderr %q\n%s", given, code, errs, out)
		}
	}
	socket, _ := startAgent(t)
	for _, c := range [][]string{{"ls"}, {"tail", "--duration", "1s"}, {"headroom"}} {
		for _, source := range [][]string{nil, {"--agent", "--socket", socket}} {
			args := append(append(c, source...), "--netns", "4026539999")
			if _, errs, code := command(t, args...); code != exitUsage || !strings.Contains(errs, "no such network namespace: inode number 4026539999") {
				t.Errorf("%v: exit code %d, stderr %q", args, code, errs)
			}
		}
	}
}
