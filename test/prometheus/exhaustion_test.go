package prometheus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// The range of the namespace that runs out of ports; who listens in it, and where
// the connections go.
const (
	low, high = 40000, 40063
	thief     = 40010
	port      = 8080
)

// TestExhaustion drives a network namespace to where connect() fails while a
// Prometheus scrapes an agent. The alerts fire and tell where and who, every query of
// the dashboard has data, and afterwards the alerts resolve.
func TestExhaustion(t *testing.T) {
	testutil.RequireRoot(t)
	bin := build(t)
	timeout, cancel := context.WithTimeout(t.Context(), 90*time.Second) // it takes 30
	defer cancel()
	ctx, fail := context.WithCancelCause(timeout)
	defer fail(nil)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME) // while this is open the kernel counts runs
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	target := startAgent(t, fail, bin)
	prom := startPrometheus(t, ctx, fail, target)
	await(t, ctx, "the first scrape", func() error { return prom.is(`up{job="porthole"}`, "1") })

	ns := fmt.Sprintf("porthole-test-%d", os.Getpid())
	u := new(user)
	defer u.close()
	defer testutil.UnnameNetNS(t, ns)
	t.Run("fill", func(t *testing.T) { u.fill(t, ns) }) // its goroutine leaves the namespace of this one
	if t.Failed() {
		return
	}
	checkFull(t, ctx, prom, u, ns)
	checkDashboard(t, ctx, prom)

	u.close()
	checkResolved(t, ctx, prom, ns)
}

// checkResolved waits until no alert of the namespace fires, nor that for refused
// calls, which does not tell a namespace: as long as other programs of the machine,
// such as other tests, are refused too, it rightly fires.
func checkResolved(t *testing.T, ctx context.Context, prom *server, ns string) {
	closed := time.Now()
	await(t, ctx, "the alerts resolve", func() error {
		firing, err := prom.firing()
		if err != nil {
			return err
		}
		for _, a := range firing {
			if a.Labels["netns"] == ns {
				return fmt.Errorf("these fire: %v", firing)
			}
			if a.Labels["alertname"] != "PortholePortExhaustion" {
				continue
			}
			refused, err := prom.Query(fmt.Sprintf("increase(porthole_port_failures_total{op=%q,proto=%q}[3s]) > 0", a.Labels["op"], a.Labels["proto"]))
			if err != nil || len(refused) == 0 || time.Since(closed) < 2*window {
				return fmt.Errorf("%v; these fire: %v", err, firing)
			}
			t.Logf("others are refused ports: %v", refused)
		}
		return nil
	})
}

// checkFull waits for the alerts of a namespace that is full, and for the series that
// tell why.
func checkFull(t *testing.T, ctx context.Context, prom *server, u *user, ns string) {
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	me := strings.TrimSpace(string(comm))
	remote := fmt.Sprintf("127.0.0.1:%d", port)
	for _, want := range []struct {
		name   string
		labels []string
		tells  []string // in its text
	}{
		{"PortholePortExhaustion", []string{"op=connect", "proto=tcp", "error=EADDRNOTAVAIL"}, []string{remote, ns, me}},
		{"PortholePortExhaustion", []string{"op=implicit_bind", "proto=udp", "error=EAGAIN"}, []string{ns}},
		{"PortholeEphemeralPortsCritical", []string{"proto=tcp", "netns=" + ns}, []string{remote, me}},
		{"PortholePortThief", []string{"netns=" + ns, "comm=" + me}, nil},
	} {
		await(t, ctx, "the alert", func() error {
			u.refused() // as a program that tries again
			a, err := prom.fires(want.name, want.labels...)
			if err != nil {
				return err
			}
			text := a.Annotations["summary"] + a.Annotations["description"]
			for _, part := range want.tells {
				if !strings.Contains(text, part) {
					return fmt.Errorf("%s does not tell %q: %q", want.name, part, text)
				}
			}
			return nil
		})
	}
	const capacity = high - low + 1
	to := fmt.Sprintf(`{netns=%q,local_ip="127.0.0.1",remote=%q}`, ns, remote)
	for expr, value := range map[string]int{
		`porthole_ephemeral_used_ports` + to:                                                    capacity - 1,
		`porthole_ephemeral_free_ports` + to:                                                    0,
		`porthole_ephemeral_time_wait_ports` + to:                                               0,
		fmt.Sprintf(`porthole_ephemeral_capacity_ports{netns=%q}`, ns):                          capacity,
		fmt.Sprintf(`porthole_ephemeral_blocked_ports{netns=%q}`, ns):                           1,
		fmt.Sprintf(`porthole_ephemeral_max_utilization_ratio{netns=%q,proto="tcp"}`, ns):       1,
		fmt.Sprintf(`porthole_ephemeral_max_utilization_ratio{netns=%q,proto="udp"}`, ns):       1,
		fmt.Sprintf(`porthole_ephemeral_listening_ports{netns=%q,comm=%q}`, ns, me):             1,
		fmt.Sprintf(`porthole_process_ports{comm=%q,proto="tcp"} >= bool %d`, me, capacity-1+2): 1,
		fmt.Sprintf(`porthole_process_ports{comm=%q,proto="udp"} >= bool %d`, me, capacity):     1,
		`porthole_events_submitted_total - porthole_events_decoded_total >= bool 0`:             1,
		`porthole_events_bad_total`:                                                             0,
		`min(porthole_listener_changes_total{change="added"}) > bool 0`:                         1,
		fmt.Sprintf(`porthole_listeners{netns=%q,proto="tcp",exposure="local"} > bool 0`, ns):   1,
		`porthole_build_info`:             1,
		`sum(porthole_read_errors_total)`: 0,
		`porthole_port_failures_total{op="connect",proto="tcp",error="EADDRNOTAVAIL"} > bool 0`:   1,
		`porthole_port_failures_total{op="implicit_bind",proto="udp",error="EAGAIN"} > bool 0`:    1,
		`sum(porthole_bpf_program_runs_total) > bool 0`:                                           1,
		`min(porthole_snapshot_duration_seconds) > bool 0`:                                        1,
		`min(rate(porthole_bpf_program_run_seconds_total[10s]) >= 0) >= bool 0`:                   1,
		`sum(porthole_events_total{event="connect",proto="tcp"}) >= bool ` + fmt.Sprint(capacity): 1,
	} {
		await(t, ctx, "a series", func() error { return prom.is(expr, fmt.Sprint(value)) })
	}
}

// checkDashboard asks what the dashboards ask: each query has data. What connect()
// searches only hooks of the fentry tier see; where they are not attached, it must be
// absent. Whether anything can be reached from elsewhere is this machine's affair.
func checkDashboard(t *testing.T, ctx context.Context, prom *server) {
	queries := append(loadDashboard(t, nodeDashboard).queries(), loadDashboard(t, fleetDashboard).queries()...)
	attached, err := prom.Query(`porthole_probe_attached{probe="fexit/inet_hash_connect"} == 1`)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queries {
		if strings.Contains(q.expr, "listeners_exposed") {
			continue
		}
		if strings.Contains(q.expr, "porthole_connect_port_search_seconds") && len(attached) == 0 {
			if found, err := prom.Query("porthole_connect_port_search_seconds"); err != nil || len(found) > 0 {
				t.Errorf("in the tracepoint tier porthole_connect_port_search_seconds is %v, %v", found, err)
			}
			continue
		}
		await(t, ctx, q.from, func() error {
			found, err := prom.Query(q.expr)
			if err == nil && len(found) == 0 {
				err = errors.New("no data for " + q.expr)
			}
			return err
		})
	}
}

// build builds porthole and returns its path.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "porthole")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", bin, "../../cmd/porthole")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// startAgent starts an agent and returns the address of its /metrics.
func startAgent(t *testing.T, fail context.CancelCauseFunc, bin string) string {
	t.Helper()
	addr, dir := freeAddr(t), t.TempDir()
	everything := filepath.Join(dir, "policy.yml")
	if err := os.WriteFile(everything, []byte("allow: [{name: everything}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	startProgram(t, fail, bin, "agent", "--socket", filepath.Join(dir, "porthole.sock"), "--web.listen-address", addr,
		"--history.dir", filepath.Join(dir, "history"), "--policy", everything,
		"--otlp.endpoint", "http://127.0.0.1:1") // where nobody listens: its metrics are there all the same
	return addr
}

// user is a process without measure: the sockets it has open.
type user struct {
	fds      []int
	tcp, udp int // without a port, to ask for one again
}

// fill takes every port of a new namespace, which it gives a name.
func (u *user) fill(t *testing.T, name string) {
	testutil.NewNetNS(t)
	testutil.WriteSysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("%d %d", low, high))
	testutil.NameNetNS(t, name)
	for _, p := range []int{port, thief} {
		l := u.socket(t, unix.SOCK_STREAM)
		if err := unix.Bind(l, local(p)); err != nil {
			t.Fatal(err)
		}
		if err := unix.Listen(l, 128); err != nil {
			t.Fatal(err)
		}
	}
	// The thief's port is one less for TCP, the listener's is outside of the range.
	u.tcp = u.take(t, unix.SOCK_STREAM, high-low, unix.EADDRNOTAVAIL)
	u.udp = u.take(t, unix.SOCK_DGRAM, high-low+1, unix.EAGAIN)
}

// take connects until the kernel refuses, which must be after n times, and returns
// the socket it refused.
func (u *user) take(t *testing.T, typ, n int, want error) int {
	t.Helper()
	for i := 0; ; i++ {
		fd := u.socket(t, typ)
		if err := unix.Connect(fd, local(port)); err != nil {
			if i != n || err != want {
				t.Fatalf("connect %d of type %d: %v; want %d, then %v", i, typ, err, n, want)
			}
			return fd
		}
	}
}

func (u *user) socket(t *testing.T, typ int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	u.fds = append(u.fds, fd)
	return fd
}

// refused asks for a port once more, of TCP and of UDP.
func (u *user) refused() {
	unix.Connect(u.tcp, local(port))
	unix.Connect(u.udp, local(port))
}

// close gives every port back. The listeners go first: what they have not accepted
// is reset, and leaves no TIME-WAIT.
func (u *user) close() {
	for _, fd := range u.fds {
		unix.Close(fd)
	}
	u.fds = nil
}

func local(port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: port, Addr: [4]byte(net.IPv4(127, 0, 0, 1).To4())}
}
