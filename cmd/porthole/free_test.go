package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// Of a range in which all but one port are taken, each in another way, that one is found.
func TestFree(t *testing.T) {
	testutil.NewNetNS(t)
	testutil.WriteSysctl(t, "ipv4/ip_local_port_range", "20101 20101")
	testutil.WriteSysctl(t, "ipv4/ip_local_reserved_ports", "20102")
	listen(t, "127.0.0.2:20103")
	listen(t, "[::1]:20104")
	if out, errs, code := command(t, "free", "--range", "20101-20105"); out != "20105\n" || errs != "" || code != exitDone {
		t.Errorf("exit code %d, %q, stderr %q", code, out, errs)
	}
	if out, _, code := command(t, "free", "--udp", "2", "--range", "20103-20104", "--json"); code != exitDone || strings.Count(out, `,"proto":"udp"}`) != 2 || strings.Count(out, `"port":20103`) != 1 {
		t.Errorf("UDP: exit code %d, %q", code, out)
	}
	if out, errs, code := command(t, "free", "2", "--range", "20101-20105"); code != exitNo || out != "" || !strings.Contains(errs, "1 of 2 ports") || !strings.Contains(errs, "20101-20101") {
		t.Errorf("too many: exit code %d, %q, stderr %q", code, out, errs)
	}
	if out, _, code := command(t, "free", "2", "--range", "20101-20105", "--ephemeral"); code != exitDone || len(strings.Fields(out)) != 2 {
		t.Errorf("with the ephemeral range: exit code %d, %q", code, out)
	}
	if out, errs, code := command(t, "free", "--range", "600-610", "--services"); code != exitNo || out != "" || !strings.Contains(errs, "--privileged") {
		t.Errorf("privileged ports: exit code %d, %q, stderr %q", code, out, errs)
	}
	if out, _, code := command(t, "free", "--range", "600-610", "--services", "--privileged"); code != exitDone || out == "" {
		t.Errorf("--privileged: exit code %d, %q", code, out)
	}
	if _, _, code := command(t, "free", "--range", "22-22"); code != exitNo {
		t.Errorf("a port of /etc/services: exit code %d", code)
	}
}

// Held ports are the command's descriptors from 3 on, as sd_listen_fds(3) wants them.
func TestFreeHold(t *testing.T) {
	testutil.NewNetNS(t)
	script := `test "$LISTEN_PID" = $$ && echo $LISTEN_FDS $PORT $PORTS $1 $2 && readlink /proc/self/fd/3 /proc/self/fd/4 && cat /proc/net/tcp && exit 7`
	out, errs, code := (&isolated{child(t, "free", "2", "--hold", "--", "sh", "-c", script, "sh", "{}", "x{2}")}).output(t)
	lines := strings.Split(out, "\n")
	words := strings.Fields(lines[0])
	if code != 7 || errs != "" || len(words) != 6 || words[0] != "2" || words[1] != words[2] || words[4] != words[1] || words[5] != "x"+words[3] {
		t.Fatalf("exit code %d, %q, stderr %q", code, out, errs)
	}
	for i := range 2 {
		port, err := strconv.Atoi(words[2+i])
		if err != nil {
			t.Fatal(err)
		}
		const listens = "0A"
		if !strings.HasPrefix(lines[1+i], "socket:[") || !strings.Contains(out, fmt.Sprintf(" 0100007F:%04X 00000000:0000 %s ", port, listens)) {
			t.Errorf("descriptor %d: %s, port %d, of\n%s", 3+i, lines[1+i], port, out)
		}
	}
	_, errs, code = (&isolated{child(t, "free", "--hold", "--", "/no/such/command")}).output(t)
	if code != 127 || !strings.Contains(errs, "/no/such/command") {
		t.Errorf("exit code %d, stderr %q", code, errs)
	}
}

// A command that is held ports for ends by SIGPIPE, as any.
func TestFreeHoldSignals(t *testing.T) {
	testutil.NewNetNS(t)
	c := child(t, "free", "--hold", "--", "sh", "-c", "kill -PIPE $$; exit 1")
	c.Stderr = os.Stderr
	c.Run()
	if ws, ok := c.ProcessState.Sys().(interface{ Signal() unix.Signal }); !ok || ws.Signal() != unix.SIGPIPE {
		t.Errorf("it ended with %v", c.ProcessState)
	}
}
