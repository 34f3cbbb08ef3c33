package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

const (
	// soakEnv is how long TestAgentOverload goes on; make soak sets it, and an hour of
	// that is a minute of this.
	soakEnv     = "PORTHOLE_SOAK"
	overloadFor = 5 * time.Second
	soakLoad    = time.Minute
	// moreThanKept is a number of events that an agent does not keep for a client.
	moreThanKept = 300_000
)

// loadEnv makes this binary a process that makes connections for the time in it.
const loadEnv = "PORTHOLE_TEST_LOAD"

// loadMain makes connections as fast as one processor can, and prints how many; each
// is reset, so that no port waits.
func loadMain(text string) error {
	long, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	made := 0
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(l)
	if err := unix.Listen(l, 16); err != nil {
		return err
	}
	to, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	to.(*unix.SockaddrInet4).Addr = [4]byte{127, 0, 0, 1}
	for until := time.Now().Add(long); time.Now().Before(until); made++ {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(c, to); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if err := unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
		unix.Close(c)
		unix.Close(s)
	}
	_, err = fmt.Println(made)
	return err
}

// Connections are made as fast as two processors can, while three clients read every
// event and a fourth reads none. Where they leave the agent too little time the three
// lose events as well; but nothing is lost that is not told, to each its own number,
// and who does not read costs the others nothing: it loses more than any.
func TestAgentOverload(t *testing.T) {
	ns := testutil.NewNetNS(t)
	socket := t.TempDir() + "/porthole.sock"
	cmd := agentProcess(t, socket)
	streams := eventStreams(t, socket, ns, 4)
	counts := make([]chan told, len(streams))
	count := func(i int) { counts[i] <- tally(t, streams[i], 0, nil) }
	for i := range streams {
		counts[i] = make(chan told, 1)
		if i > 0 {
			go count(i)
		}
	}
	long := overloadFor
	if os.Getenv(soakEnv) != "" {
		long = soakLoad
	}
	made := makeLoad(t, 2, long)
	if peak := peakOf(t, cmd.Process.Pid); peak > mostMemory {
		t.Errorf("the agent had %d MB, want at most %d", peak>>20, mostMemory>>20)
	} else {
		t.Logf("the agent had %d MB at most", peak>>20)
	}
	go count(0)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	want := 4*made + 2 // connect, accept, and a close of each end; and of each listener
	t.Logf("%d connections a second", made/uint64(long/time.Second))
	var most uint64
	for i := 1; i < len(streams); i++ {
		got := <-counts[i]
		t.Logf("client %d has %d of %d events; lost by itself %d, by the kernel %d", i, got.events, want, got.byClient, got.byKernel)
		if got.events > want || got.events+got.byClient+got.byKernel < want {
			t.Errorf("client %d has %+v, want %d events together", i, got, want)
		}
		most = max(most, got.byClient)
	}
	// Lost are events of the whole machine.
	if got := <-counts[0]; want > moreThanKept && got.byClient <= most || got.events+got.byClient+got.byKernel < want {
		t.Errorf("who does not read has %+v, want %d events together, and more than %d lost", got, want, most)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the agent: %v", err)
	}
}

// makeLoad runs processes that make connections, and returns how many they made.
func makeLoad(t *testing.T, processes int, long time.Duration) (made uint64) {
	t.Helper()
	var cmds []*exec.Cmd
	outs := make([]bytes.Buffer, processes)
	for i := range processes {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), loadEnv+"="+long.String())
		cmd.Stdout, cmd.Stderr = &outs[i], os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseUint(strings.TrimSpace(outs[i].String()), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		made += n
	}
	return made
}

// eventStreams are clients that read what happens to connections.
func eventStreams(t *testing.T, socket string, ns uint32, n int) []*bufio.Reader {
	t.Helper()
	var out []*bufio.Reader
	for range n {
		client := overUnix(socket)
		client.Timeout = 0
		resp, err := client.Get(fmt.Sprintf("http://porthole/v1/events?netns=%d&event=connect,accept,close", ns))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		out = append(out, bufio.NewReaderSize(resp.Body, 1<<16))
	}
	return out
}
