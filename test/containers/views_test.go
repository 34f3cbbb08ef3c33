package containers

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

const goarch = runtime.GOARCH

var build struct {
	once sync.Once
	path string
	err  error
}

// porthole is the path of the program.
func porthole(t *testing.T) string {
	t.Helper()
	testutil.RequireRoot(t)
	build.once.Do(func() {
		build.path = filepath.Join("/run", "porthole-test")
		out, err := exec.Command("go", "build", "-o", build.path, "../../cmd/porthole").CombinedOutput()
		if err != nil {
			build.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.path
}

// views are those of an agent, and of the commands that ask the kernel.
type views struct {
	*testing.T
	porthole string
	agent    *http.Client

	mu     sync.Mutex
	events []render.Event
}

// watch starts an agent, with flags besides, and follows its events.
func watch(t *testing.T, flags ...string) *views {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	v := &views{T: t, porthole: porthole(t), agent: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
	start(t, func() bool {
		resp, err := v.agent.Get("http://porthole/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, v.porthole, append([]string{"agent", "--socket", socket, "--web.listen-address="}, flags...)...)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://porthole/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := v.agent.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer resp.Body.Close()
		for dec := json.NewDecoder(bufio.NewReader(resp.Body)); ; {
			var ev render.Event
			if dec.Decode(&ev) != nil {
				return
			}
			v.mu.Lock()
			v.events = append(v.events, ev)
			v.mu.Unlock()
		}
	}()
	return v
}

// seen are the events so far that pass.
func (v *views) seen(pass func(*render.Event) bool) []render.Event {
	v.mu.Lock()
	events := v.events // to which others are only appended
	v.mu.Unlock()
	var out []render.Event
	for i := range events { // without the lock: there can be many, and whoever reads them must not fall behind
		if pass(&events[i]) {
			out = append(out, events[i])
		}
	}
	return out
}

// rows decodes objects, a line each.
func rows[T any](t *testing.T, text string) []T {
	t.Helper()
	var out []T
	for line := range strings.Lines(text) {
		var row T
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out = append(out, row)
	}
	return out
}

// get asks the agent for rows.
func get[T any](v *views, path string, params ...string) []T {
	v.Helper()
	values := make(url.Values)
	for _, p := range params {
		key, value, _ := strings.Cut(p, "=")
		values.Add(key, value)
	}
	resp, err := v.agent.Get("http://porthole" + path + "?" + values.Encode())
	if err != nil {
		v.Fatal(err)
	}
	defer resp.Body.Close()
	var text strings.Builder
	if _, err := bufio.NewReader(resp.Body).WriteTo(&text); err != nil || resp.StatusCode != http.StatusOK {
		v.Fatalf("%s: %s, %v: %s", path, resp.Status, err, text.String())
	}
	return rows[T](v.T, text.String())
}

// place is what is expected of a place: units are those of the machine the test runs on.
type place struct {
	Container *identity.Container
	Pod       *identity.Pod
}

func of(p render.Place) place { return place{p.Container, p.Pod} }

// ofFiles is a place without what a kubelet alone says of it.
func (p place) ofFiles() place {
	if p.Pod != nil {
		pod := *p.Pod
		pod.Labels = nil
		p.Pod = &pod
	}
	return p
}

// began looks whether an event says that a container began to listen on a port.
func (v *views) began(port uint16, want place) {
	v.Helper()
	eventually(v.T, "the event of "+want.Container.ID, func() bool {
		return len(v.seen(func(ev *render.Event) bool {
			return ev.Event == "listen" && ev.LocalPort == port && cmp.Equal(of(ev.Place).ofFiles(), want.ofFiles())
		})) > 0
	})
}

// listens looks whether every view says that a container, found by a filter, listens on a port.
func (v *views) listens(filter string, port uint16, want place) {
	v.Helper()
	v.Run("listens "+filter, func(t *testing.T) {
		number := fmt.Sprint(port)
		isNamed := func(view string, sockets []render.Socket, want place) {
			t.Helper()
			i := slices.IndexFunc(sockets, func(s render.Socket) bool {
				return s.Role == "listener" && s.LocalPort == port && len(s.Holders) > 0 && of(s.Place).Container != nil
			})
			if i < 0 {
				t.Errorf("%s: no listener with a container among %+v", view, sockets)
			} else if d := cmp.Diff(want, of(sockets[i].Place)); d != "" {
				t.Errorf("%s: -want +got:\n%s", view, d)
			}
		}
		listed := func() []render.Socket {
			return get[render.Socket](v, "/v1/sockets", filter, "role=listener", "lport="+number)
		}
		eventually(t, "it listens", func() bool { return len(listed()) > 0 })
		name, value, _ := strings.Cut(filter, "=")
		eventually(t, "labels are known", func() bool { // the kubelet is asked once a second
			all := listed()
			return want.Pod == nil || want.Pod.Labels == nil || len(all) > 0 && all[0].Pod != nil && all[0].Pod.Labels != nil
		})
		isNamed("/v1/sockets", listed(), want)
		isNamed("ls", rows[render.Socket](t, run(t, v.porthole, "ls", "--json", "--lport", number, "--"+name, value)), want.ofFiles())
		var who render.Port
		if err := json.Unmarshal([]byte(run(t, v.porthole, "who", "--json", number)), &who); err != nil {
			t.Fatal(err)
		}
		isNamed("who", slices.DeleteFunc(who.Sockets, func(s render.Socket) bool {
			return s.Container == nil || s.Container.ID != want.Container.ID
		}), want.ofFiles())
		for _, h := range who.Sockets[0].Holders {
			if of(h.Place).Container == nil {
				t.Errorf("who: holder %+v has no container", h)
			}
		}
		label := want.Container.Label()
		if text := run(t, v.porthole, "who", number); !strings.Contains(text, label) {
			t.Errorf("who does not say %s:\n%s", label, text)
		}
		if want.Pod != nil {
			label = want.Pod.Label()
		}
		if text := run(t, v.porthole, "ls", "--lport", number, "--"+name, value); !strings.Contains(text, label) {
			t.Errorf("ls does not say %s:\n%s", label, text)
		}
	})
}

// shortLived looks whether events name containers that are gone at once: all but one, at least, of n
// whose connect was seen. begin runs one, of which the events are of a port.
func (v *views) shortLived(n int, remotePort uint16, begin func(name string)) {
	v.Helper()
	v.Run("short-lived", func(t *testing.T) {
		connects := func() []render.Event {
			return v.seen(func(ev *render.Event) bool { return ev.Event == "connect" && ev.RemotePort == remotePort })
		}
		ran, named := make(map[string]bool), 0
		for len(connects()) < n {
			if len(ran) == 2*n { // a flood of others' events can have some lost
				t.Fatalf("of %d containers %d connects were seen", len(ran), len(connects()))
			}
			name := fmt.Sprint("brief", len(ran))
			ran[name] = true
			begin(name)
		}
		for _, ev := range connects() {
			if ev.Container != nil && ran[ev.Container.Name] {
				named++
			}
		}
		if named < n-1 {
			t.Errorf("of %d containers %d are named", n, named)
		}
	})
}
