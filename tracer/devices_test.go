package tracer

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// ip gives commands to ip(8) in the namespace of the test.
func ip(t testing.TB, commands ...string) {
	t.Helper()
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
}

// twoLinks makes two devices that have the same link-local address, and on each a neighbour
// that never answers.
func twoLinks(t testing.TB) {
	t.Helper()
	commands := []string{"link add left type veth peer name right"}
	for _, dev := range []string{"left", "right"} {
		commands = append(commands,
			"link set "+dev+" addrgenmode none", "link set "+dev+" up", "addr add fe80::1/64 dev "+dev+" nodad",
			"neigh add fe80::2 lladdr 02:00:00:00:00:02 dev "+dev+" nud permanent")
	}
	ip(t, commands...)
}

// interfaces are the devices of the namespace of the test, as its own system calls show them.
func interfaces(t testing.TB) map[uint32]string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[uint32]string)
	for _, i := range all {
		out[uint32(i.Index)] = i.Name
	}
	return out
}

// The names of devices are those of now, however many there are, in both objects.
func TestKernelDevices(t *testing.T) {
	r := idle(t)
	twoLinks(t)
	var many []string
	for i := range 520 { // pairs: more than one call of the program reads
		many = append(many, fmt.Sprintf("link add many%d type veth peer name peer%d", i, i))
	}
	ip(t, many...)
	for _, old := range []bool{false, true} {
		s, err := newSnapshotter(ReadsSockets, old)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		look := func() map[uint32]string {
			devices, err := s.Devices()
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[uint32]string)
			for id, name := range devices {
				if id.NetNS == r.netns {
					got[id.Index] = name
				}
			}
			return got
		}
		if diff := cmp.Diff(interfaces(t), look()); diff != "" {
			t.Errorf("-kernel +read:\n%s", diff)
		}
		ip(t, "link set many7 name other", "link del many8")
		if diff := cmp.Diff(interfaces(t), look()); diff != "" {
			t.Errorf("one renamed, one gone: -kernel +read:\n%s", diff)
		}
		ip(t, "link set other name many7", "link add many8 type veth peer name peer8")
	}
}

// A walk of devices while they come and go ends, tells every device that was there all the time, and
// none under a name that it never had.
func TestKernelDevicesInMotion(t *testing.T) {
	r := idle(t)
	twoLinks(t)
	still := interfaces(t)
	s, err := snapshotter()
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for i := range 60 {
		commands = append(commands, fmt.Sprintf("link add moves%d type veth peer name moves%d.", i, i), fmt.Sprintf("link del moves%d", i))
	}
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for reads := 0; ; reads++ {
		devices, err := s.Devices()
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for id, name := range devices {
			switch {
			case id.NetNS != r.netns:
			case still[id.Index] == name:
				found++
			case still[id.Index] != "" || !strings.HasPrefix(name, "moves"):
				t.Errorf("device %d is %q", id.Index, name)
			}
		}
		if found != len(still) {
			t.Errorf("%d of %d devices were found", found, len(still))
		}
		select {
		case err := <-ended:
			if err != nil || reads < 10 {
				t.Errorf("%d reads, error %v", reads, err)
			}
			return
		default:
		}
	}
}

// Rows have the device of a socket, also where bind() or connect() to a link-local address
// has set it.
func TestKernelSnapshotDevices(t *testing.T) {
	r := idle(t)
	twoLinks(t)
	for i, dev := range []string{"left", "right"} {
		fd := r.socket(unix.AF_INET6, unix.SOCK_STREAM)
		r.bind(fd, "[fe80::1%"+dev+"]:7001")
		r.listen(fd)
		udp := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
		r.device(udp, dev)
		r.bind(udp, fmt.Sprintf("0.0.0.0:%d", 7002+i))
		out := r.socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
		r.fails(unix.Connect(out, sockaddr(unix.AF_INET6, fmt.Sprintf("[fe80::2%%%s]:%d", dev, 7004+i))), unix.EINPROGRESS)
	}
	free := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	r.bind(free, "0.0.0.0:7006")
	snap := snapshot(t, 0)
	got := make(map[string]bool)
	for _, so := range snap.Sockets {
		if so.NetNS != r.netns {
			continue
		}
		port := so.Local.Port()
		if so.Remote.IsValid() {
			port = so.Remote.Port()
		}
		got[fmt.Sprintf("%s %d %s", so.Proto, port, snap.Devices.Name(so.DeviceID()))] = true
	}
	want := map[string]bool{
		"tcp 7001 left": true, "tcp 7001 right": true, "udp 7002 left": true, "udp 7003 right": true,
		"tcp 7004 left": true, "tcp 7005 right": true, "udp 7006 ": true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What was read serves for a while, and is read again for a device that is not in it.
func TestDeviceNames(t *testing.T) {
	reads := 0
	one, two := DeviceID{NetNS: 1, Index: 1}, DeviceID{NetNS: 1, Index: 2}
	now := Devices{one: "lo"}
	d := deviceNames{read: func() (Devices, error) { reads++; return now, nil }}
	for range 3 {
		if got := d.name(one); got != "lo" || reads != 1 {
			t.Errorf("name %q after %d reads, want lo after 1", got, reads)
		}
	}
	now = Devices{one: "lo", two: "eth0"}
	d.at = d.at.Add(-noNameServes)
	if got := d.name(two); got != "eth0" || reads != 2 {
		t.Errorf("name %q after %d reads, want eth0 after 2", got, reads)
	}
	now = Devices{one: "lo", two: "eth1"}
	d.at = d.at.Add(-namesServe)
	if got := d.name(two); got != "eth1" || reads != 3 {
		t.Errorf("name %q after %d reads, want eth1 after 3", got, reads)
	}
	if got := d.name(DeviceID{NetNS: 1, Index: 3}); got != "" || time.Since(d.at) > time.Minute {
		t.Errorf("name %q of a device that there is not", got)
	}
}

// A device is found by its name, else by its index.
func TestDevicesIndex(t *testing.T) {
	d := Devices{{NetNS: 1, Index: 1}: "lo", {NetNS: 1, Index: 2}: "7", {NetNS: 1, Index: 7}: "eth0", {NetNS: 2, Index: 9}: "eth1"}
	for name, want := range map[string]uint32{"lo": 1, "7": 2, "eth0": 7, "2": 2, "1": 1, "eth1": 0, "9": 0, "": 0, "-1": 0} {
		if got := d.Index(1, name); got != want {
			t.Errorf("%q: index %d, want %d", name, got, want)
		}
	}
}
