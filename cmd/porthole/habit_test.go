package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// What people type by habit means in the words of ls what it meant there.
func TestHabit(t *testing.T) {
	for typed, want := range map[string]string{
		// ss
		"-tlnp": "-t -l -n -p", "-tlnp 8080": "-t -l -n -p 8080", "-Htan": "--no-header -t -a -n", "-tie": "-t", "-4tl": "-4 -t -l", "-N blue": "--netns blue",
		"sport = :80": "--lport 80", "-t sport=:http": "-t --lport http", "dport eq 443": "--rport 443", "sport :22": "--lport 22",
		"( sport = :22 or dport = :22 )": "--port 22", "sport = :22 or sport = :23": "--lport 22,23", "sport >= :1024": "--lport 1024-65535",
		"dport < 1024": "--rport 1-1023", "state listening": "--state listening", "-o state time-wait dport = :443": "--state time-wait --rport 443",
		"state established and sport = :22": "--state established --lport 22", "state all": "", "-f inet6": "-6", "-A tcp,udp": "-t -u",
		// netstat
		"-tulpn": "-t -u -l -p -n", "-plant": "-p -l -a -n -t", "-ano": "-a -n", "--tcp --listening --program": "--tcp --listening", "-atW --inet": "-a -t --wide -4", "-t -o wide": "-t --wide", "-to": "-t",
		"-tnlv": "-t -n -l", "-tQ": "-t", "--query udp": "-u", "--family=inet6 --no-queues": "-6",
		// lsof
		"-i": "", "-i :8080": "--end :8080", "-i:8080": "--end :8080", "-nP -iTCP -sTCP:LISTEN": "-n --proto tcp --state LISTEN",
		"-iTCP:80,443 -s TCP:LISTEN,ESTABLISHED": "--end tcp/:80 --end tcp/:443 --state LISTEN,ESTABLISHED", "-Pni tcp:8000-8100": "-n --end tcp/:8000-8100",
		"-i4UDP@192.0.2.1:53": "-4 --end udp/192.0.2.1:53", "-i @192.0.2.1": "--addr 192.0.2.1", "-i6 -a": "-6 -a", "-i tcp@[::1]:80": "--end tcp/[::1]:80",
		"-p 1234 -a": "--pid 1234 -a", "-p1,2": "--pid 1,2", "-u root": "--uid root", "-c ngi -i": "--comm ngi*", "-u 80": "-u 80",
		// its own, with values that look like others
		"--lport 80 --state LISTEN": "--lport 80 --state LISTEN", "--comm state -l": "--comm state -l", "--role=bound 80-90": "--role=bound 80-90", "-- -x": "-- -x",
	} {
		ls, _, err := newRoot(&env{}).Find([]string{"ls"})
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Fields(typed)
		for _, args := range [][]string{words, splitOptions(words)} {
			if got, _, err := fromHabit(ls, args); err != nil || strings.Join(got, " ") != want {
				t.Errorf("%q: %q, %v; want %q", args, strings.Join(got, " "), err, want)
			}
		}
	}
	for _, typed := range []string{
		"-r", "-E", "-K", "--unix", "-tuw", "dst 192.0.2.1", "sport != :80", "sport = :1 or dport = :2", "sport = :1 and sport = :2", "state", "( sport",
		"-sUDP:Idle", "-sTCP:^LISTEN", "-A unix", "src 192.0.2.1:80", "sport = :1 or dport = :1 and state listening", "-c",
	} {
		ls, _, err := newRoot(&env{}).Find([]string{"ls"})
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := fromHabit(ls, strings.Fields(typed)); err == nil {
			t.Errorf("%q: %q, want it refused", typed, got)
		}
	}
}

// Whatever ss, netstat and lsof have and ls does not is refused with what does it.
func TestHabitInstead(t *testing.T) {
	for typed, want := range map[string]string{
		"-Z": "ss -Z", "-tM": "tcp+mp", "--bpf": "ss -b", "--vsock": "TCP and UDP", "--cgroup": "--json", "-D dump": "diff FILE", "-g": "ip maddr",
		"-C": "ip route", "-U": "lsof -U", "-F pcn": "--json", "-r": "names of hosts", "-r 2": "porthole top", "+c 15": "who PORT", "-c": "porthole tail",
		"dst = 192.0.2.1": "--addr 192.0.2.1", "src [::1]": "--addr ::1", "src 192.0.2.1:80": "--end 192.0.2.1:80", "dst": "--addr ADDRESS",
		"exclude time-wait": "--state", "not dport :22": "--lport", "!( sport = :1 )": "--lport", "sport neq 80": "--lport", "cgroup /a": "--unit", "dev lo": "--addr",
	} {
		ls, _, err := newRoot(&env{}).Find([]string{"ls"})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := fromHabit(ls, strings.Fields(typed)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", typed, err, want)
		}
	}
}

// splitOptions makes one word of what follows the options, as in ss -t 'sport = :80'.
func splitOptions(words []string) []string {
	for i, w := range words {
		if isExpression(w) && !strings.HasPrefix(words[max(i-1, 0)], "--") {
			return append(append([]string{}, words[:i]...), strings.Join(words[i:], " "))
		}
	}
	return words
}

// The same sockets are listed however they are asked for.
func TestKernelHabits(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t)) // others may have the port elsewhere
	port := fmt.Sprint(listen(t, "127.0.0.1:0").Port)
	want, _, _ := command(t, "ls", "--netns", ns, "-t", "--lport", port)
	if strings.Count(want, "\n") != 2 || !strings.Contains(want, "127.0.0.1:"+port) {
		t.Fatalf("ls --lport:\n%s", want)
	}
	for _, typed := range []string{
		"-tlnp sport = :" + port, "-i :" + port, "-iTCP:" + port + " -sTCP:LISTEN", ":" + port, "127.0.0.1:" + port, "http://localhost:" + port + "/",
		"-p " + fmt.Sprint(os.Getpid()) + " -i :" + port, "--tree " + fmt.Sprint(os.Getppid()) + " " + port, "--addr 127.0.0.0/8 " + port, "state listening sport = :" + port,
	} {
		if got, errs, code := command(t, append([]string{"ls", "--netns", ns}, strings.Fields(typed)...)...); got != want || code != exitDone || errs != "" {
			t.Errorf("ls %s: exit code %d, stderr %q\n%s\nwant\n%s", typed, code, errs, got, want)
		}
	}
	_, body, _ := strings.Cut(want, "\n")
	if got, _, _ := command(t, "ls", "--netns", ns, "-Ht", port); got != body {
		t.Errorf("ls -H: %q, want %q", got, body)
	}
	if out, errs, code := command(t, "ls", "--netns", ns, "--since", "1h", port, "--local"); code != exitDone || strings.Count(out, "\n") != 1 || !strings.Contains(errs, "1 more socket matches") {
		t.Errorf("--since of the kernel: exit code %d, %q, stderr %q", code, out, errs)
	}
}

// Of several ports and ranges who answers about each that somebody has.
func TestKernelWhoSeveral(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	a, b := listen(t, "127.0.0.1:20101").Port, listen(t, "127.0.0.1:20103").Port
	for args, want := range map[string][]int{"20101 20103": {a, b}, "20100-20110": {a, b}, "20102 20103": {20102, b}, "20104-20110": nil, "20103 20101-20102": {b, a}} {
		out, errs, code := command(t, append([]string{"who", "--json", "--netns", ns}, strings.Fields(args)...)...)
		if code != count(len(want) == 0) || errs != "" || strings.Count(out, "\n") != len(want) {
			t.Errorf("who %s: exit code %d, stderr %q\n%s", args, code, errs, out)
		}
		for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
			if i < len(want) && !strings.HasPrefix(line, fmt.Sprintf(`{"port":%d,`, want[i])) {
				t.Errorf("who %s: line %d is %s, want port %d", args, i, line, want[i])
			}
		}
	}
	if out, _, code := command(t, "who", "20104-20110"); code != exitNo || out != "nothing uses ports 20104-20110\n" {
		t.Errorf("who of a range: exit code %d, %q", code, out)
	}
}
