//go:build kubelet

package containers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v2"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

const (
	manifests = "../../deploy/kubernetes/"
	chart     = "../../deploy/helm/porthole"
)

// kubectl runs Kubernetes' own client as the administrator.
func (n *node) kubectl(args ...string) (string, error) {
	n.Helper()
	return try(n.T, "../kubelet/bin/kubectl", append([]string{"--kubeconfig", n.kubeconfig()}, args...)...)
}

// What is in deploy/kubernetes is what a real API server takes, with every field known to it; one that is
// misspelt it refuses.
func TestKubernetesManifests(t *testing.T) {
	n := newNode(t)
	n.startAPI()
	n.post("/api/v1/namespaces", `{"metadata":{"name":"porthole"}}`) // which a dry run does not make
	for _, name := range []string{"podmonitors", "prometheusrules"} {
		if out, err := n.kubectl("create", "-f", operatorCRD(t, name)); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if out, err := n.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/"+name+".monitoring.coreos.com"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	dry := []string{"apply", "--server-side", "--dry-run=server", "--validate=strict", "-f"}
	for dir, want := range map[string][]string{
		"base":       {"daemonset.apps/porthole", "namespace/porthole", "priorityclass.scheduling.k8s.io/porthole", "serviceaccount/porthole"},
		"labels":     {"daemonset.apps/porthole", "clusterrole.rbac.authorization.k8s.io/porthole", "clusterrolebinding.rbac.authorization.k8s.io/porthole"},
		"prometheus": {"daemonset.apps/porthole", "podmonitor.monitoring.coreos.com/porthole", "prometheusrule.monitoring.coreos.com/porthole"},
		"chart": {
			"daemonset.apps/porthole", "priorityclass.scheduling.k8s.io/porthole", "serviceaccount/porthole", "clusterrole.rbac.authorization.k8s.io/porthole",
			"clusterrolebinding.rbac.authorization.k8s.io/porthole", "podmonitor.monitoring.coreos.com/porthole", "prometheusrule.monitoring.coreos.com/porthole",
		},
	} {
		t.Run(dir, func(t *testing.T) {
			text := made(t, dir)
			file := filepath.Join(t.TempDir(), "all.yaml")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := n.kubectl(append(dry, file)...)
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, object := range want {
				if !strings.Contains(out, object+" serverside-applied (server dry run)") {
					t.Errorf("no %s:\n%s", object, out)
				}
			}
			t.Log(out)
			for right, wrong := range map[string]string{
				"readOnlyRootFilesystem: true": "readonlyRootFilesystem: true", "hostPID: true": "hostPid: true", "failureThreshold: 60": "failureTreshold: 60",
			} {
				if !strings.Contains(text, right) {
					t.Fatalf("no %q:\n%s", right, text)
				}
				misspelt := filepath.Join(t.TempDir(), "misspelt.yaml")
				if err := os.WriteFile(misspelt, bytes.Replace([]byte(text), []byte(right), []byte(wrong), 1), 0o600); err != nil {
					t.Fatal(err)
				}
				field, _, _ := strings.Cut(wrong, ":")
				if out, err := n.kubectl(append(dry, misspelt)...); err == nil || !strings.Contains(err.Error(), field) {
					t.Errorf("%q is taken: %v: %s", wrong, err, out)
				}
			}
		})
	}
}

// made is what a directory of deploy/kubernetes makes, or the chart with everything that it has.
func made(t *testing.T, what string) string {
	t.Helper()
	if what == "chart" {
		return helm(t, "--set=kubelet.enabled=true,prometheus.enabled=true")
	}
	return run(t, "../kubelet/bin/kubectl", "kustomize", manifests+what)
}

// helm makes the objects of the chart.
func helm(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "../kubelet/bin/helm", append([]string{"template", "porthole", chart, "--namespace=porthole", "--kube-version=1.34.4"}, args...)...)
}

// The chart is without fault by Helm's own rules, and runs the pods that deploy/kubernetes does.
func TestKubernetesChart(t *testing.T) {
	t.Log(run(t, "../kubelet/bin/helm", "lint", "--strict", chart, "--set=kubelet.enabled=true,prometheus.enabled=true"))
	for dir, args := range map[string][]string{"base": nil, "labels": {"--set=kubelet.enabled=true"}} {
		got, want := podOf(t, helm(t, args...)), podOf(t, made(t, dir))
		// The chart has a version where an overlay names it, and mounts as many directories of the runtime as it is told.
		ours := want["containers"].([]any)[0].(map[string]any)
		ours["image"] = ours["image"].(string) + ":0.1.0"
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte(`"name":"containerd"`), []byte(`"name":"runtime-0"`))
		if dir == "labels" {
			text = bytes.Replace(text, []byte(`"env":[`), []byte(`"env":[{"name":"NODE_IP","valueFrom":{"fieldRef":{"fieldPath":"status.hostIP"}}},`), 1)
		}
		want = nil
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatal(err)
		}
		byName := cmpopts.SortSlices(func(a, b any) bool { return fmt.Sprint(a) < fmt.Sprint(b) })
		if d := cmp.Diff(want, got, byName); d != "" {
			t.Errorf("%s: -kustomize +chart:\n%s", dir, d)
		}
	}
}

// podOf is the pod of the DaemonSet among objects.
func podOf(t *testing.T, objects string) map[string]any {
	t.Helper()
	for _, text := range strings.Split(objects, "\n---\n") {
		var object struct {
			Kind string
			Spec struct {
				Template struct{ Spec map[any]any }
			}
		}
		if err := yaml.Unmarshal([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		if object.Kind == "DaemonSet" {
			return asJSON(object.Spec.Template.Spec).(map[string]any)
		}
	}
	t.Fatalf("no DaemonSet:\n%s", objects)
	return nil
}

// asJSON is what YAML has, as JSON would.
func asJSON(v any) any {
	switch v := v.(type) {
	case map[any]any:
		object := make(map[string]any)
		for key, of := range v {
			object[fmt.Sprint(key)] = asJSON(of)
		}
		return object
	case []any:
		for i := range v {
			v[i] = asJSON(v[i])
		}
	case int:
		return float64(v)
	}
	return v
}

// operator is the module of Prometheus Operator, of which nothing is built.
const operator = "github.com/prometheus-operator/prometheus-operator@v0.85.0"

// operatorCRD is the file of a resource definition of Prometheus Operator.
func operatorCRD(t *testing.T, name string) string {
	t.Helper()
	var module struct{ Dir string }
	if err := json.Unmarshal([]byte(run(t, "go", "mod", "download", "-json", operator)), &module); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(module.Dir, "example/prometheus-operator-crd/monitoring.coreos.com_"+name+".yaml")
}

// asStaticPod is the pod of the DaemonSet of a directory, as a kubelet runs it without being told by the API server,
// which is what knows service accounts and priorities.
func (n *node) asStaticPod(dir string) string {
	n.Helper()
	file := n.write("daemonset.yaml", run(n.T, "../kubelet/bin/kubectl", "kustomize", manifests+dir))
	text, err := n.kubectl("create", "--dry-run=client", "-o", "json", "-f", file)
	if err != nil {
		n.Fatal(err)
	}
	for dec := json.NewDecoder(strings.NewReader(text)); ; {
		var object struct {
			Kind  string
			Items []json.RawMessage
			Spec  struct {
				Template struct {
					Spec map[string]any
				}
			}
		}
		if err := dec.Decode(&object); err != nil {
			n.Fatalf("no DaemonSet: %v:\n%s", err, text)
		}
		for _, item := range object.Items {
			if err := json.Unmarshal(item, &object); err != nil {
				n.Fatal(err)
			}
			if object.Kind == "DaemonSet" {
				break
			}
		}
		if object.Kind != "DaemonSet" {
			continue
		}
		spec := object.Spec.Template.Spec
		delete(spec, "serviceAccountName")
		delete(spec, "priorityClassName")
		container := spec["containers"].([]any)[0].(map[string]any)
		container["image"], container["imagePullPolicy"] = "docker.io/library/"+portholeImage, "Never"
		pod, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Pod", "metadata": map[string]string{"name": "porthole", "namespace": "shop"}, "spec": spec,
		})
		if err != nil {
			n.Fatal(err)
		}
		return string(pod)
	}
}

// isReady tells whether the kubelet's probes find a pod ready.
func (n *node) isReady(name string) bool {
	n.Helper()
	resp, err := n.ask(http.MethodGet, "https://127.0.0.1:10250/pods", adminToken, "")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct{ ContainerStatuses []struct{ Ready bool } }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		n.Fatal(err)
	}
	for _, p := range list.Items {
		if p.Metadata.Name == name {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Ready
		}
	}
	return false
}

// The pod of the DaemonSet, with porthole's image and the rights that the manifest gives it, becomes ready by the
// kubelet's probes, and names its neighbours.
func TestKubernetesPod(t *testing.T) {
	if err := unix.Mount("", "/run", "", unix.MS_SHARED, ""); err != nil { // as systemd has it on a node
		t.Fatal(err)
	}
	n := startNode(t)
	run(t, "ctr", "-n", "k8s.io", "images", "import", "--snapshotter", "native", portholesImage(t))
	n.static("web", podSpec("web", "httpd", "80", "}]"))
	web := n.listed("web-" + nodeName)
	n.static("porthole", n.asStaticPod("base"))
	own := n.listed("porthole-" + nodeName)
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		logs, _ := filepath.Glob("/var/log/pods/*porthole*/porthole/*.log")
		for _, name := range logs {
			text, _ := os.ReadFile(name)
			t.Logf("%s:\n%s", name, text)
		}
	})
	testutil.AwaitWithin(t, 2*time.Minute, "the kubelet finds the agent ready", func() bool { return n.isReady("porthole-" + nodeName) })
	socket := filepath.Join(t.TempDir(), "s") // the path itself is too long for a socket
	if err := os.Symlink("/var/lib/kubelet/pods/"+own.Pod.UID+"/volumes/kubernetes.io~empty-dir/run/porthole/porthole.sock", socket); err != nil {
		t.Fatal(err)
	}
	ask := func(args ...string) []render.Socket {
		var rows []render.Socket
		for dec := json.NewDecoder(strings.NewReader(run(t, porthole(t), append(args, "--agent", "--socket", socket, "--json")...))); dec.More(); {
			var row render.Socket
			if err := dec.Decode(&row); err != nil {
				t.Fatal(err)
			}
			rows = append(rows, row)
		}
		return rows
	}
	rows := ask("ls", "--pod", "shop/web-*", "--lport", "80", "--role", "listener")
	if len(rows) != 1 {
		t.Fatalf("%d listeners, want 1: %+v", len(rows), rows)
	}
	if d := cmp.Diff(web.ofFiles(), of(rows[0].Place)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if len(rows[0].Holders) != 1 || rows[0].Holders[0].Comm != "httpd" {
		t.Errorf("held by %+v", rows[0].Holders)
	}
	if rows := ask("ls", "--pod", "shop/porthole-*", "--lport", "9655", "--role", "listener"); len(rows) != 1 {
		t.Errorf("%d sockets of its own for metrics: %+v", len(rows), rows)
	}
	out, _ := try(t, porthole(t), "doctor", "--agent", "--socket", socket)
	t.Logf("doctor, in the pod:\n%s", out)
	out, _ = try(t, porthole(t), "who", "80", "--pod", "shop/web-*", "--agent", "--socket", socket)
	t.Logf("who 80, by the agent of the pod:\n%s", out)
}
