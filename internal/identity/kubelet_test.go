package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const (
	testPodUID  = "0d1b3c4e-5f60-4a7b-8c9d-0e1f2a3b4c5d"
	testPodList = `{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[{"metadata":{"name":"api-6d5f","namespace":"shop",
		"uid":"` + testPodUID + `","labels":{"app":"api","tier":"web"}},"spec":{"containers":[{"name":"api"}]},"status":{"containerStatuses":[
		{"name":"api","image":"shop/api:1.2","imageID":"","containerID":"containerd://` + testID + `"}]}},
		{"metadata":{"name":"waits","namespace":"shop","uid":"1"},"status":{"containerStatuses":[{"name":"api"}]}}]}`
)

// kubeletOf is one that asks a server, whose certificate it is told.
func kubeletOf(t *testing.T, h http.Handler, token string) *Kubelet {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // that the certificate is refused
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	k, err := NewKubelet(KubeletConfig{URL: server.URL, TokenFile: testFile(t, token), CAFile: testFile(t, string(ca))})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testFile(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func answers(body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) })
}

// What a kubelet lists names its pods by their uid and by their containers.
func TestKubelet(t *testing.T) {
	tokens := make(chan string, 2)
	k := kubeletOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tokens <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Authorization")
		_, _ = w.Write([]byte(testPodList))
	}), "secret\n")
	want := func(token string) {
		t.Helper()
		if err := k.ask(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := <-tokens; got != "GET /pods Bearer "+token {
			t.Errorf("asked %q", got)
		}
	}
	want("secret")
	labels := map[string]string{"app": "api", "tier": "web"}
	pod := Pod{Namespace: "shop", Name: "api-6d5f", UID: testPodUID, Labels: labels}
	p := k.find(testPodUID, "")
	if p == nil || p != k.find("", testID) || !reflect.DeepEqual(p.Pod, pod) {
		t.Fatalf("%+v, want %+v", p, pod)
	}
	if got := p.containers[testID]; got != (Container{Name: "api", Image: "shop/api:1.2", Runtime: "containerd"}) {
		t.Errorf("container %+v", got)
	}
	if k.find("1", "") == nil || k.find("2", "") != nil || k.find("", "") != nil {
		t.Error("a pod without containers is known, no other")
	}
	if err := os.WriteFile(k.config.TokenFile, []byte("renewed"), 0o600); err != nil {
		t.Fatal(err)
	}
	want("renewed")
	if k.find(testPodUID, "") != p || k.find("", testID) != p {
		t.Error("a pod that has not changed is another")
	}
}

// Whatever goes wrong is one error, which says what; what was known stays.
func TestKubeletErrors(t *testing.T) {
	status := func(code int, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, body, code) })
	}
	leaked := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer leaked.Close()
	plain := httptest.NewServer(answers(testPodList))
	defer plain.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for name, c := range map[string]struct {
		handler http.Handler
		change  func(k *Kubelet)
		want    string
	}{
		"no token that it knows": {handler: status(401, "Unauthorized"), want: "401 Unauthorized: Unauthorized; it wants a token"},
		"a token without rights": {handler: status(403, "Forbidden (user=x)\nmore"), want: "Forbidden (user=x); it wants a token of an account that may get nodes/proxy"},
		"control characters":     {handler: status(500, "\x1b[2J"), want: `"\x1b[2J"`},
		"a redirect":             {handler: http.RedirectHandler(leaked.URL, http.StatusFound), want: "302 Found"},
		"another certificate": {handler: answers(testPodList), change: func(k *Kubelet) {
			k.config.CAFile = ""
		}, want: "unknown authority; give the certificate"},
		"another name": {handler: answers(testPodList), change: func(k *Kubelet) {
			k.pods = strings.Replace(k.pods, "127.0.0.1", "localhost", 1)
		}, want: "certificate is valid for"},
		"nobody there":         {change: func(k *Kubelet) { k.pods = "https://" + closed.Addr().String() + "/pods" }, want: "connection refused"},
		"no TLS":               {change: func(k *Kubelet) { k.pods = strings.Replace(plain.URL, "http", "https", 1) }, want: "HTTP response to HTTPS client"},
		"no file with a token": {change: func(k *Kubelet) { k.config.TokenFile = "/nonexistent" }, want: "read the token: open /nonexistent: no such file"},
		"an empty one":         {change: func(k *Kubelet) { k.config.TokenFile = testFile(t, "") }, want: "is empty"},
		"a line too many":      {change: func(k *Kubelet) { k.config.TokenFile = testFile(t, "a\nb") }, want: "more than a token"},
		"a directory":          {change: func(k *Kubelet) { k.config.CAFile = "/" }, want: "want a file"},
		"no certificates":      {change: func(k *Kubelet) { k.config.CAFile = testFile(t, "none") }, want: "there is none in"},
		"another document":     {handler: answers(`{"kind":"Status","message":"no"}`), want: `it is a "Status", not a list of pods`},
		"no list":              {handler: answers(`{}`), want: "it is no list of pods"},
		"no object":            {handler: answers(`[]`), want: "it has [ for {"},
		"half of it":           {handler: answers(testPodList[:200]), want: "unexpected EOF"},
		"nothing":              {handler: answers(""), want: "EOF"},
		"without end": {handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, err := w.Write([]byte(`{"items":["`))
			for b := bytes.Repeat([]byte("x"), 1<<20); err == nil; {
				_, err = w.Write(b)
			}
		}), want: "is longer than 32 MB"},
		"no answer": {handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
			want: "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			handler := c.handler
			if handler == nil {
				handler = answers(testPodList)
			}
			k := kubeletOf(t, handler, "secret")
			before := &podList{}
			k.list.Store(before)
			if c.change != nil {
				c.change(k)
			}
			ctx := t.Context()
			if name == "no answer" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			err := k.ask(ctx)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "secret") {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if k.list.Load() != before {
				t.Error("what was known is gone")
			}
		})
	}
}

func TestKubeletConfig(t *testing.T) {
	for _, url := range []string{"", "x", "127.0.0.1:10250", "https://", "ftp://x", "https://user:x@y", "https://x/?a=b", "https://x#y", "https://x:port", "http://[::1"} {
		if _, err := NewKubelet(KubeletConfig{URL: url}); err == nil || !strings.Contains(err.Error(), "https://HOST:10250") {
			t.Errorf("%q: %v", url, err)
		}
	}
	if _, err := NewKubelet(KubeletConfig{URL: "http://127.0.0.1:10255", TokenFile: "x"}); err == nil {
		t.Error("a token would be sent to whoever reads along")
	}
	k, err := NewKubelet(KubeletConfig{URL: "https://proxy/api/v1/nodes/n1/proxy/"})
	if err != nil || k.pods != "https://proxy/api/v1/nodes/n1/proxy/pods" {
		t.Errorf("%v, %v", k, err)
	}
}

// Each thing that goes wrong is told once, until it goes well again.
func TestKubeletTellsOnce(t *testing.T) {
	k := new(Kubelet)
	told := make(map[string]bool)
	refused := func(port string) error {
		return fmt.Errorf("ask: %w", &net.OpError{Op: "read", Source: testAddr(port), Err: errors.New("refused")})
	}
	var all []string
	for _, err := range []error{refused("1"), refused("2"), errors.New("other"), refused("3"), nil, refused("4")} {
		k.note(err, told, func(err error) { all = append(all, err.Error()) })
		if got := k.Err(); (got == nil) != (err == nil) {
			t.Errorf("after %v the list is of now: %v", err, got)
		}
	}
	if want := []string{refused("1").Error(), "other", refused("4").Error()}; !reflect.DeepEqual(all, want) {
		t.Errorf("told %q, want %q", all, want)
	}
}

// The kubelet is asked at once, and again when somebody wants a pod that it did not list; it ends with
// its context, whatever the kubelet does.
func TestKubeletRun(t *testing.T) {
	asked, count := make(chan struct{}, 8), 0
	k := kubeletOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count++
		asked <- struct{}{}
		if count == 2 {
			<-r.Context().Done()
			return
		}
		_, _ = w.Write([]byte(testPodList))
	}), "x")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { k.Run(ctx, func(err error) { t.Error(err) }); close(ended) }()
	<-asked
	k.want()
	k.want()
	<-asked
	cancel()
	<-ended
}

type testAddr string

func (a testAddr) Network() string { return "tcp" }
func (a testAddr) String() string  { return string(a) }

// The kubelet completes what files say, and where they say nothing it is right below the pod's cgroup or
// in its list; it says nothing of a container elsewhere.
func TestPodOfKubelet(t *testing.T) {
	list, err := readPods(strings.NewReader(testPodList))
	if err != nil {
		t.Fatal(err)
	}
	const besteffort = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0d1b3c4e_5f60_4a7b_8c9d_0e1f2a3b4c5d.slice"
	other := strings.Repeat("7", 64)
	pod := func(container string) *Pod {
		p := list.byUID[testPodUID].Pod
		p.Container = container
		return &p
	}
	for _, c := range []struct {
		path, files string
		container   Container
		pod         *Pod
		wants       bool // that the kubelet is asked again
	}{
		{path: "/kubepods/pod" + testPodUID + "/" + testID, container: Container{ID: testID, Name: "api", Image: "shop/api:1.2", Runtime: "containerd"}, pod: pod("api")},
		{path: besteffort + "/crio-" + testID + ".scope", container: Container{ID: testID, Name: "api", Image: "shop/api:1.2", Runtime: "cri-o"}, pod: pod("api")},
		{path: besteffort + "/crio-" + testID + ".scope/container", container: Container{ID: testID, Name: "api", Image: "shop/api:1.2", Runtime: "cri-o"}, pod: pod("api")},
		{path: "/kubelet.slice/kubelet-pod1.slice/cri-containerd-" + other + ".scope", container: Container{ID: other, Runtime: "containerd"}, pod: &Pod{Namespace: "shop", Name: "waits", UID: "1"}, wants: true},
		{path: besteffort + "/cri-containerd-" + other + ".scope", container: Container{ID: other, Runtime: "containerd"}, pod: pod(""), wants: true}, // its sandbox, say
		{path: "/anywhere/" + testID, container: Container{ID: testID, Name: "api", Image: "shop/api:1.2", Runtime: "containerd"}, pod: pod("api")},
		{path: "/kubepods/pod2/" + other, container: Container{ID: other}, wants: true},
		{path: besteffort + "/cri-containerd-" + other + ".scope/docker/" + strings.Repeat("8", 64), container: Container{ID: strings.Repeat("8", 64), Runtime: "docker"}},
		{path: "/docker/" + other, container: Container{ID: other, Runtime: "docker"}},
	} {
		r := Cgroups{files: runtimeFiles{root: t.TempDir()}, whole: true, start: time.Now(), Kubelet: &Kubelet{soon: make(chan struct{}, 1)}}
		r.Kubelet.list.Store(list)
		k := &known{where: rootsOwn(c.path)}
		a := r.look(k, nil)
		if got, want := (Cgroup{Container: a.Container, Pod: a.Pod}), (Cgroup{Container: &c.container, Pod: c.pod}); !reflect.DeepEqual(got, want) {
			g, _ := json.Marshal(got)
			w, _ := json.Marshal(want)
			t.Errorf("%s:\ngot  %s\nwant %s", c.path, g, w)
		}
		if got := len(r.Kubelet.soon) > 0; got != c.wants {
			t.Errorf("%s: asked again: %v, want %v", c.path, got, c.wants)
		}
	}
}

// Labels are those of now; a pod that is no longer listed keeps what it had, as does one whose files
// are gone.
func TestPodLabelsFollow(t *testing.T) {
	const id = "1b57424c9146c644d4bad4e4bf4a6cf026699977f75b54a54d123744d69079e4"
	dir := filepath.Join(t.TempDir(), "run/containerd", taskDir, "k8s.io", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	spec, err := os.ReadFile(filepath.Join("testdata/containerd-1.6.20/run/containerd", taskDir, "k8s.io", id, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), spec, 0o600); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "../../../../..")
	r := Cgroups{files: runtimeFiles{root: root}, whole: true, start: time.Now(), Kubelet: &Kubelet{soon: make(chan struct{}, 1)}}
	r.Kubelet.list.Store(&podList{})
	k := &known{where: rootsOwn("/kubepods/besteffort/pod" + testPodUID + "/" + id)}
	now := func(want string) {
		t.Helper()
		a := r.look(k, k.now.Load())
		k.now.Store(a)
		if a.Pod == nil || a.Pod.Name != "api-6d5f" || a.Pod.Container != "api" || a.Pod.Labels["app"] != want {
			t.Errorf("pod %+v, want the label %q", a.Pod, want)
		}
	}
	list := func(label string) {
		t.Helper()
		l, err := readPods(strings.NewReader(`{"items":[{"metadata":{"name":"api-6d5f","namespace":"shop","uid":"` + testPodUID + `","labels":{"app":"` + label + `"}}}]}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Kubelet.list.Store(l)
	}
	now("")
	if len(r.Kubelet.soon) == 0 {
		t.Error("the kubelet is not asked for a pod that it did not list")
	}
	list("one")
	now("one")
	list("two")
	now("two")
	r.Kubelet.list.Store(&podList{})
	now("two")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	list("three")
	now("three")
}

// What comes from others is bounded.
func TestKubeletBounds(t *testing.T) {
	long := strings.Repeat("ü", 1000)
	var labels []string
	for i := range 100 {
		labels = append(labels, fmt.Sprintf(`"label-%02d":%q`, i, strings.Repeat("x", 63)))
	}
	l, err := readPods(strings.NewReader(`{"items":[{"metadata":{"name":"` + long + `","namespace":"` + long + `","uid":"1","labels":{` + strings.Join(labels, ",") + `}},
		"status":{"initContainerStatuses":[{"name":"` + long + `","image":"` + long + `","containerID":"x://1"},{"containerID":"x://` + long + `"}]}},
		{"metadata":{"name":"x","uid":"` + long + `"}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	p := l.byUID["1"]
	if len(l.byUID) != 1 || len(l.byContainer) != 1 || p.LabelsCut != true || len(p.Labels) != maxLabels/(8+63) || p.Labels["label-00"] == "" {
		t.Errorf("%d pods, %d containers, %d labels", len(l.byUID), len(l.byContainer), len(p.Labels))
	}
	for _, s := range []string{p.Name, p.Namespace, p.containers["1"].Name} {
		if len(s) > maxName {
			t.Errorf("a name has %d bytes", len(s))
		}
	}
	if _, err := readPods(strings.NewReader(`{"kind":"PodList","items":null}`)); err != nil {
		t.Errorf("no pods: %v", err)
	}
}
