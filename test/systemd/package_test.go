//go:build systemd

package systemd

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// The versions of the package that test/vm has built: the tests begin with the one, and upgrade to the other.
const installed, newer = "0.0.1", "0.0.2"

// deb is the file of a package.
func deb(version string) string {
	return fmt.Sprintf("/packages/%s/porthole_%[1]s-1_%s.deb", version, runtime.GOARCH)
}

const (
	defaults = "/etc/default/porthole"
	historyD = "/var/lib/porthole"
)

// show is a property of the service.
func show(t *testing.T, property string) string {
	t.Helper()
	return do(t, "systemctl", "show", "-P", property, "porthole")
}

// asked is whether a user of the group is answered by the agent.
func asked(t *testing.T, argv ...string) string {
	t.Helper()
	out, errs, code := command(t, member(t, shop), append([]string{"porthole"}, argv...)...)
	if code != 0 {
		t.Errorf("porthole %s: exit code %d\n%s%s", strings.Join(argv, " "), code, out, errs)
	}
	return out
}

// The package runs the service. An upgrade keeps the history, the configuration and what the administrator
// decided; removing keeps what is the administrator's, and purging leaves nothing.
func TestSystemdPackage(t *testing.T) {
	t.Cleanup(func() { do(t, "dpkg", "-i", deb(installed)) }) // for the tests that come after
	do(t, "systemctl", "start", "porthole")
	if state := do(t, "systemctl", "is-enabled", "porthole"); state != "enabled" {
		t.Errorf("after the installation the service is %s", state)
	}
	const port = 8095
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	remembered := func() bool {
		out, _, _ := command(t, member(t, shop), "porthole", "history", fmt.Sprint(port), "--agent", "--json")
		return strings.Contains(out, `"systemd.test"`)
	}
	testutil.AwaitWithin(t, atMost, "the history of the port", remembered)
	const flags = "--history.max-age 7d"
	if err := os.WriteFile(defaults, []byte("ARGS="+flags+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}

	before := show(t, "MainPID")
	do(t, "dpkg", "-i", deb(newer))
	if now := show(t, "MainPID"); show(t, "ActiveState") != "active" || now == before {
		t.Errorf("after the upgrade the service is %s, process %s, before it was %s", show(t, "ActiveState"), now, before)
	}
	if text := do(t, "porthole", "version"); !strings.Contains(text, newer) {
		t.Errorf("after the upgrade porthole is %s", text)
	}
	cmdline, err := os.ReadFile("/proc/" + show(t, "MainPID") + "/cmdline")
	if text := strings.ReplaceAll(string(cmdline), "\x00", " "); err != nil || !strings.Contains(text, flags) {
		t.Errorf("the agent runs as %q, %v: want %s of %s", text, err, flags, defaults)
	}
	if version := agentVersion(t); version != newer {
		t.Errorf("after the upgrade the agent is %s", version)
	}
	if !remembered() {
		t.Errorf("the upgrade lost the history:\n%s", asked(t, "history", "--agent"))
	}

	do(t, "systemctl", "stop", "porthole")
	do(t, "/var/lib/dpkg/info/porthole.postinst", "configure", installed) // as dpkg runs it after an upgrade
	if state := show(t, "ActiveState"); state != "inactive" {
		t.Errorf("a service that was stopped is %s after an upgrade", state)
	}
	do(t, "systemctl", "start", "porthole")

	do(t, "dpkg", "-r", "porthole")
	if state := show(t, "ActiveState"); state == "active" {
		t.Errorf("the service is %s without the package", state)
	}
	for name, want := range map[string]bool{"/usr/bin/porthole": false, "/run/porthole": false, defaults: true, historyD: true} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("removed, but not purged: %s: %v, is to be there: %t", name, err, want)
		}
	}
	do(t, "dpkg", "-P", "porthole")
	for _, name := range leftovers(t) {
		t.Errorf("%s is left of the purged package", name)
	}
	if _, err := user.LookupGroup("porthole"); err == nil {
		t.Error("the group is left of the purged package")
	}
}

// agentVersion is what the agent says that it is.
func agentVersion(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), atMost)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", "/run/porthole/porthole.sock")
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://porthole/v1/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var status struct{ Version string }
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	return status.Version
}

// leftovers are the files that have porthole in their names.
func leftovers(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, root := range []string{"/etc", "/run", "/usr", "/var"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // what is gone is not left
			}
			if strings.Contains(d.Name(), "porthole") {
				names = append(names, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}
