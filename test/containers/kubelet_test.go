//go:build kubelet

package containers

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

const (
	nodeName   = "node1"
	nodeIP     = "10.99.0.1"
	apiServer  = "https://127.0.0.1:16443"
	kubeletURL = "https://" + nodeName + ":10250"
	adminToken = "of-the-administrator"
	podImage   = "docker.io/" + image
	pauseImage = "shop/pause:1" // of what keeps the namespaces of a pod
)

// node is a node of Kubernetes: etcd, an API server, a kubelet and containerd, for which to be ready
// takes half a minute.
type node struct {
	*testing.T
	dir    string
	ca     string // the certificate that signed the kubelet's
	client *http.Client
}

func newNode(t *testing.T) *node {
	t.Helper()
	return &node{T: t, dir: t.TempDir(), client: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // it made its certificate itself
	}}}
}

func startNode(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	run(t, "ip", "link", "add", "uplink", "type", "veth", "peer", "name", "nowhere")
	run(t, "ip", "addr", "add", nodeIP+"/24", "dev", "uplink")
	run(t, "ip", "link", "set", "uplink", "up")
	run(t, "ip", "link", "set", "nowhere", "up")
	run(t, "ip", "route", "add", "default", "dev", "uplink")
	n.write("/etc/hosts", "127.0.0.1 localhost "+nodeName+"\n")
	if err := unix.Mount("tmpfs", "/var/log", "tmpfs", 0, ""); err != nil { // where the kubelet takes what there is for its own
		t.Fatal(err)
	}
	n.startContainerd()
	n.startAPI()
	n.startKubelet()
	return n
}

func (n *node) write(name, content string) string {
	n.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(n.dir, name)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		n.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		n.Fatal(err)
	}
	return name
}

// startContainerd starts Debian's containerd with CRI; pods get an address of a bridge, and host ports by
// DNAT, from Debian's CNI plugins.
func (n *node) startContainerd() {
	n.Helper()
	n.write("/etc/cni/net.d/10-pods.conflist", `{"cniVersion":"0.4.0","name":"pods","plugins":[
		{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.88.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`)
	config := n.write("containerd.toml", `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/`+pauseImage+`"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
`)
	start(n.T, func() bool { _, err := try(n.T, "ctr", "version"); return err == nil }, "containerd", "-c", config)
	n.Cleanup(func() { // they outlive the kubelet
		tasks, _ := try(n.T, "ctr", "-n", "k8s.io", "tasks", "ls", "-q")
		for _, id := range strings.Fields(tasks) {
			_, _ = try(n.T, "ctr", "-n", "k8s.io", "tasks", "rm", "-f", id)
		}
	})
	for _, tar := range []string{archive(n.T), archiveOf(n.T, pauseImage, "/bin/sleep", "100000")} {
		run(n.T, "ctr", "-n", "k8s.io", "images", "import", "--snapshotter", "native", tar)
	}
}

// startAPI starts etcd and an API server, which the kubelet asks whose a token is.
func (n *node) startAPI() {
	n.Helper()
	const etcd = "http://127.0.0.1:12379"
	start(n.T, func() bool { return n.isUp(etcd + "/health") }, "etcd", "--data-dir", filepath.Join(n.dir, "etcd"), "--listen-client-urls", etcd,
		"--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:12380", "--logger", "zap")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		n.Fatal(err)
	}
	signer := n.write("signer.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	start(n.T, func() bool { return n.isUp(apiServer + "/readyz") }, "../kubelet/bin/kube-apiserver", "--etcd-servers", etcd,
		"--bind-address", "127.0.0.1", "--secure-port", "16443", "--advertise-address", nodeIP, "--external-hostname", "localhost",
		"--cert-dir", filepath.Join(n.dir, "apiserver"), "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.96.0.0/24",
		"--service-account-issuer", "https://kubernetes.default", "--service-account-key-file", signer, "--service-account-signing-key-file", signer,
		"--authorization-mode", "RBAC", "--token-auth-file", n.write("tokens.csv", adminToken+",admin,1,system:masters\n"),
		"--disable-admission-plugins", "ServiceAccount")
	n.post("/api/v1/namespaces", `{"metadata":{"name":"shop"}}`)
}

func (n *node) isUp(url string) bool {
	resp, err := n.ask(http.MethodGet, url, adminToken, "")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (n *node) ask(method, url, token, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return n.client.Do(req)
}

// post makes an object of the API, and returns it.
func (n *node) post(path, body string) []byte {
	n.Helper()
	resp, err := n.ask(http.MethodPost, apiServer+path, adminToken, body)
	if err != nil {
		n.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusCreated {
		n.Fatalf("POST %s: %s, %v: %s", path, resp.Status, err, b)
	}
	return b
}

// account makes a service account, with some rights of the API if any are given, and returns a file with
// a token of it.
func (n *node) account(name, resources string) string {
	n.Helper()
	const accounts = "/api/v1/namespaces/shop/serviceaccounts"
	n.post(accounts, `{"metadata":{"name":"`+name+`"}}`)
	if resources != "" {
		const rbac = "/apis/rbac.authorization.k8s.io/v1/"
		n.post(rbac+"clusterroles", `{"metadata":{"name":"`+name+`"},"rules":[{"apiGroups":[""],"resources":["`+resources+`"],"verbs":["get"]}]}`)
		n.post(rbac+"clusterrolebindings", `{"metadata":{"name":"`+name+`"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"`+name+`"},
			"subjects":[{"kind":"ServiceAccount","name":"`+name+`","namespace":"shop"}]}`)
	}
	var request struct {
		Status struct {
			Token string `json:"token"`
		} `json:"status"`
	}
	if err := json.Unmarshal(n.post(accounts+"/"+name+"/token", `{"spec":{}}`), &request); err != nil || request.Status.Token == "" {
		n.Fatalf("no token: %v", err)
	}
	return n.write("token-"+name, request.Status.Token)
}

// kubeconfig is the file by which clients of the API server are its administrator.
func (n *node) kubeconfig() string {
	n.Helper()
	return n.write("kubeconfig", `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":"`+apiServer+`","insecure-skip-tls-verify":true}}],"users":[{"name":"u","user":{"token":"`+adminToken+`"}}]}`)
}

// startKubelet starts a kubelet that runs the pods of a directory, and wants a token of the API server's.
func (n *node) startKubelet() {
	n.Helper()
	for _, dir := range cgroupsOf("") { // in every hierarchy
		if strings.Count(dir, "/") == 4 { // /sys/fs/cgroup/NAME
			_ = os.Mkdir(filepath.Join(dir, parent()), 0o755)
		}
	}
	certs := filepath.Join(n.dir, "certs")
	n.ca = filepath.Join(certs, "kubelet.crt")
	config := n.write("kubelet.json", `{"apiVersion":"kubelet.config.k8s.io/v1beta1","kind":"KubeletConfiguration","staticPodPath":"`+n.pods()+`",
		"fileCheckFrequency":"1s","address":"127.0.0.1","port":10250,"readOnlyPort":0,"healthzPort":0,"cgroupDriver":"cgroupfs","cgroupRoot":"/`+parent()+`",
		"authentication":{"anonymous":{"enabled":false},"webhook":{"enabled":true}},"authorization":{"mode":"Webhook"},"failSwapOn":false,
		"failCgroupV1":false,"enforceNodeAllocatable":[],"makeIPTablesUtilChains":false,"localStorageCapacityIsolation":false,"resolvConf":"",
		"containerRuntimeEndpoint":"unix:///run/containerd/containerd.sock","shutdownGracePeriod":"0s"}`)
	if err := os.MkdirAll(n.pods(), 0o755); err != nil {
		n.Fatal(err)
	}
	start(n.T, func() bool {
		resp, err := n.ask(http.MethodGet, "https://127.0.0.1:10250/pods", adminToken, "")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, "../kubelet/bin/kubelet", "--config", config, "--kubeconfig", n.kubeconfig(), "--root-dir", "/var/lib/kubelet", "--cert-dir", certs,
		"--hostname-override", nodeName, "--node-ip", nodeIP)
}

// pods is the directory of what the kubelet runs without being told by the API server.
func (n *node) pods() string { return filepath.Join(n.dir, "manifests") }

// podSpec is a pod in namespace shop with a container that listens on a port of the pod; fields are added to
// the container's, or begin with those of the pod behind a }.
func podSpec(name, container, port, fields string) string {
	return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `","namespace":"shop","labels":{"app":"` + name + `","tier":"front"}},
		"spec":{"terminationGracePeriodSeconds":1,"containers":[{"name":"` + container + `","image":"` + podImage + `","imagePullPolicy":"Never",
		"command":["/bin/httpd","-f","-p","` + port + `"]` + fields + `}}`
}

// static has the kubelet run a pod without being told by the API server; its name ends with that of the node.
func (n *node) static(name, spec string) {
	n.Helper()
	if err := os.Rename(n.write(name, spec), filepath.Join(n.pods(), name+".json")); err != nil {
		n.Fatal(err)
	}
}

// listed waits until the kubelet lists a container of a pod, and returns what porthole should say of it.
func (n *node) listed(name string) place {
	n.Helper()
	var want place
	eventually(n.T, "the kubelet runs "+name, func() bool {
		resp, err := n.ask(http.MethodGet, "https://127.0.0.1:10250/pods", adminToken, "")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var list struct {
			Items []struct {
				Metadata struct {
					Name, UID string
					Labels    map[string]string
				}
				Status struct {
					ContainerStatuses []struct{ Name, ContainerID, Image string }
				}
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
			n.Fatal(err)
		}
		for _, p := range list.Items {
			if p.Metadata.Name != name {
				continue
			}
			for _, c := range p.Status.ContainerStatuses {
				if id, ok := strings.CutPrefix(c.ContainerID, "containerd://"); ok {
					want = place{
						&identity.Container{ID: id, Name: c.Name, Image: c.Image, Runtime: "containerd"},
						&identity.Pod{Namespace: "shop", Name: p.Metadata.Name, UID: p.Metadata.UID, Container: c.Name, Labels: p.Metadata.Labels},
					}
				}
			}
		}
		return want.Container != nil
	})
	return want
}

// Pods of a kubelet are named on every view, by the files of containerd; their labels come from the kubelet.
func TestKubelet(t *testing.T) {
	n := startNode(t)
	v := watch(t, "--kubelet", kubeletURL, "--kubelet.token-file", n.account("porthole", "nodes/pods"), "--kubelet.ca-file", n.ca)
	n.static("web", podSpec("web", "httpd", "80", `,"ports":[{"containerPort":80,"hostPort":18090}]}]`))
	n.static("edge", podSpec("edge", "proxy", "18091", `}],"hostNetwork":true`))
	n.post("/api/v1/namespaces/shop/pods", podSpec("api", "api", "82", `}],"nodeName":"`+nodeName+`"`))
	web, edge, api := n.listed("web-"+nodeName), n.listed("edge-"+nodeName), n.listed("api")
	for name, p := range map[string]place{"web": web, "edge": edge, "api": api} {
		if want := map[string]string{"app": name, "tier": "front"}; !cmp.Equal(p.Pod.Labels, want) {
			t.Fatalf("labels %v, want %v", p.Pod.Labels, want)
		}
	}
	v.listens("pod=shop/web-*", 80, web)
	v.began(80, web)
	v.listens("container=proxy", 18091, edge)
	v.began(18091, edge)
	v.listens("pod=shop/api", 82, api)
	v.began(82, api)
	n.namesForward(v, web)
	n.labelsEvents(v, web)
	n.followsLabels(v)
	n.keepsOn(t)
}

// namesForward looks whether it is said that NAT leads a port of the host to a pod.
func (n *node) namesForward(v *views, web place) {
	n.Helper()
	text, _ := try(n.T, v.porthole, "who", "18090") // nobody listens there
	said := regexp.MustCompile(`^nothing listens on 18090/tcp here, but iptables sends it to 10\.88\.0\.\d+:80, chain\n` +
		`  CNI-DN-[0-9a-f]+\n  there: httpd \(pid \d+, user root\), pod shop/web-` + nodeName + `,\s+container httpd\n`)
	if !said.MatchString(text) {
		n.Errorf("who 18090:\n%s", text)
	}
	n.Logf("who 18090, by NAT:\n%s", text)
	n.Logf("who 18091, hostNetwork:\n%s", run(n.T, v.porthole, "who", "18091"))
	var who render.Port
	out, _ := try(n.T, v.porthole, "who", "--json", "18090")
	if err := json.Unmarshal([]byte(out), &who); err != nil {
		n.Fatal(err)
	}
	if i := slices.IndexFunc(who.ForwardsTo, func(f render.Forward) bool { return f.Pod != nil }); i < 0 {
		n.Errorf("forwards to %+v", who.ForwardsTo)
	} else if d := cmp.Diff(web.ofFiles(), of(who.ForwardsTo[i].Place)); d != "" {
		n.Errorf("-want +got:\n%s", d)
	}
}

// labelsEvents looks whether events have the labels of a pod.
func (n *node) labelsEvents(v *views, web place) {
	n.Helper()
	eventually(n.T, "an event with labels", func() bool {
		conn, err := net.Dial("tcp", nodeIP+":18090")
		if err == nil {
			conn.Close()
		}
		return len(v.seen(func(ev *render.Event) bool { return ev.Event == "accept" && cmp.Equal(of(ev.Place), web) })) > 0
	})
}

// followsLabels looks whether the labels of a pod are those of now, within the half minute that the kubelet
// is asked after, and how to stop it.
func (n *node) followsLabels(v *views) {
	n.Helper()
	resp, err := n.ask(http.MethodPatch, apiServer+"/api/v1/namespaces/shop/pods/api", adminToken, `{"metadata":{"labels":{"tier":"back"}}}`)
	if err != nil {
		n.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		n.Fatal(resp.Status)
	}
	testutil.Await(n.T, "the label is the new one", func() bool {
		rows := get[render.Socket](v, "/v1/sockets", "pod=shop/api", "lport=82", "role=listener")
		return len(rows) == 1 && rows[0].Pod.Labels["tier"] == "back"
	})
	if text := run(n.T, v.porthole, "who", "82"); !strings.Contains(text, "stop it: kubectl -n shop delete pod api\n") {
		n.Errorf("who 82:\n%s", text)
	}
}

// keepsOn looks whether an agent that the kubelet does not answer names pods by files, and has in partial_view
// why they have no labels.
func (n *node) keepsOn(t *testing.T) {
	wrong := n.write("token-wrong", "of-nobody")
	for name, c := range map[string]struct{ flags, want string }{
		"a token of nobody":     {"--kubelet.token-file " + wrong + " --kubelet.ca-file " + n.ca, "401 Unauthorized"},
		"a token without right": {"--kubelet.token-file " + n.account("nobody", "") + " --kubelet.ca-file " + n.ca, "403 Forbidden"},
		"an unknown authority":  {"--kubelet.token-file " + wrong, "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			v := watch(t, append([]string{"--kubelet", kubeletURL}, strings.Fields(c.flags)...)...)
			eventually(t, "partial_view has it", func() bool {
				status := get[api.Status](v, "/v1/status")[0]
				return strings.Contains(strings.Join(status.PartialView, "\n"), c.want)
			})
			rows := get[render.Socket](v, "/v1/sockets", "pod=shop/web-*", "lport=80", "role=listener")
			if len(rows) != 1 || rows[0].Pod == nil || rows[0].Pod.Labels != nil {
				t.Errorf("%+v", rows)
			}
		})
	}
	t.Run("nodes/proxy", func(t *testing.T) { // which is what kubelets before Kubernetes 1.33 want
		v := watch(t, "--kubelet", kubeletURL, "--kubelet.token-file", n.account("older", "nodes/proxy"), "--kubelet.ca-file", n.ca)
		eventually(t, "the pod has labels", func() bool {
			rows := get[render.Socket](v, "/v1/sockets", "pod=shop/web-*", "lport=80", "role=listener")
			return len(rows) == 1 && len(rows[0].Pod.Labels) == 2
		})
	})
}
