package identity

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// KubeletConfig says which kubelet to ask, and how.
type KubeletConfig struct {
	// URL is http or https, a host, a port, and where a proxy wants one a path: /pods goes behind it.
	URL string
	// TokenFile has the bearer token, which is sent over TLS alone; it is read for each request,
	// because tokens are renewed. CAFile has the certificates, as PEM, that the kubelet's is to be
	// signed by. "": those of the service account of the pod that this runs in, if it runs in one;
	// else there is no token, and the system's authorities count.
	TokenFile, CAFile string
}

// Where a pod has its service account.
const (
	serviceToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	serviceCA    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

const (
	// askPodsEvery is how often the kubelet is asked, askPodsSoon how long after the last time where
	// a pod has come up that it did not list, askPodsAgain where it gave no answer.
	askPodsEvery = 30 * time.Second
	askPodsSoon  = time.Second
	askPodsAgain = 5 * time.Second
	// askPodsWithin is how long an answer may take.
	askPodsWithin = 10 * time.Second
	// maxPodsAnswer is how long an answer may be: 500 pods of 64 kB.
	maxPodsAnswer = 32 << 20
	// maxPods is how many pods are kept, maxPodContainers how many containers of each kind of one.
	maxPods          = 4096
	maxPodContainers = 256
	// maxLabels is how many bytes the labels of a pod may have in all.
	maxLabels = 4096
	// maxSecret is how long a token or a file of certificates may be.
	maxSecret = 1 << 20
)

// Kubelet knows the pods of a node by what its kubelet says. Make it with NewKubelet.
type Kubelet struct {
	config KubeletConfig
	pods   string // URL
	soon   chan struct{}
	list   atomic.Pointer[podList]
	failed atomic.Pointer[error] // why the list is not of now; nil: it is
	client *http.Client          // of Run
	trust  []byte                // the certificates that client goes by
}

// podList is what the kubelet has listed.
type podList struct {
	byUID       map[string]*listedPod
	byContainer map[string]*listedPod // by its id
}

// listedPod is a pod, with its containers by id.
type listedPod struct {
	Pod
	containers map[string]Container
}

// NewKubelet checks a configuration. The kubelet is asked in Run.
func NewKubelet(config KubeletConfig) (*Kubelet, error) {
	u, err := url.Parse(config.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q: want a URL, as https://HOST:10250", config.URL)
	}
	if u.Scheme == "http" && config.TokenFile != "" {
		return nil, fmt.Errorf("%q: a token is sent over https alone", config.URL)
	}
	return &Kubelet{config: config, pods: u.JoinPath("pods").String(), soon: make(chan struct{}, 1)}, nil
}

// Err tells why what is known of pods is not what their kubelet knows now; nil: it is.
func (k *Kubelet) Err() error {
	if k == nil {
		return nil
	}
	if err := k.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Run asks for pods until ctx ends: every half a minute, and where one has come up that is not
// known. tell is called with what goes wrong, once until it goes well again.
func (k *Kubelet) Run(ctx context.Context, tell func(error)) {
	told := make(map[string]bool)
	for {
		err := k.ask(ctx)
		if ctx.Err() != nil {
			return
		}
		k.note(err, told, tell)
		if !k.wait(ctx, err != nil) {
			return
		}
	}
}

// maxTold is how many things that go wrong in a row are told.
const maxTold = 16

// note keeps what came of asking; told are the causes of errors that were told since it went well.
func (k *Kubelet) note(err error, told map[string]bool, tell func(error)) {
	if err == nil {
		clear(told)
		k.failed.Store(nil)
		return
	}
	k.failed.Store(&err)
	if cause := causeOf(err); !told[cause] && len(told) < maxTold {
		told[cause] = true
		tell(err)
	}
}

// wait waits until it is time to ask, again: because there was no answer; false: ctx has ended.
func (k *Kubelet) wait(ctx context.Context, again bool) bool {
	least, most := askPodsSoon, askPodsEvery
	if again {
		least, most = askPodsAgain, askPodsAgain
	}
	late := time.After(most)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(least):
	}
	select {
	case <-ctx.Done():
		return false
	case <-k.soon:
	case <-late:
	}
	return true
}

// causeOf is what an error comes from, without what differs each time: the port of a connection.
func causeOf(err error) string {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	} else if err != nil {
		return err.Error()
	}
	return ""
}

// want has the kubelet asked soon. It does not block.
func (k *Kubelet) want() {
	select {
	case k.soon <- struct{}{}:
	default: // it will be
	}
}

// find looks for the pod of a uid, else for that of a container; nil: it is not listed. It does not
// block.
func (k *Kubelet) find(uid, container string) *listedPod {
	list := k.list.Load()
	if list == nil {
		return nil
	}
	if p := list.byUID[uid]; p != nil {
		return p
	}
	return list.byContainer[container]
}

// ask asks for the pods, and keeps them.
func (k *Kubelet) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askPodsWithin)
	defer cancel()
	list, err := k.get(ctx)
	if err != nil {
		return fmt.Errorf("ask the kubelet for its pods: %w", err)
	}
	old := k.list.Load()
	for uid, p := range list.byUID { // what has not changed is seen to be the same
		if old == nil {
			break
		}
		if was := old.byUID[uid]; was != nil && reflect.DeepEqual(was, p) {
			list.byUID[uid] = was
			for id := range p.containers {
				list.byContainer[id] = was
			}
		}
	}
	k.list.Store(list)
	return nil
}

func (k *Kubelet) get(ctx context.Context) (*podList, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.pods, nil)
	if err != nil {
		return nil, err
	}
	if err := k.prepare(req); err != nil {
		return nil, err
	}
	resp, err := k.client.Do(req)
	if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
		return nil, fmt.Errorf("%w; give the certificate that signed it with --kubelet.ca-file", err)
	} else if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(k.pods, resp)
	}
	list, err := readPods(http.MaxBytesReader(nil, resp.Body, maxPodsAnswer))
	if long := (*http.MaxBytesError)(nil); errors.As(err, &long) {
		return nil, fmt.Errorf("the answer of %s is longer than %d MB", k.pods, maxPodsAnswer>>20)
	} else if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", k.pods, err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<10)) // so that the connection can be used again
	return list, nil
}

// refusal is the error that an answer with another status is.
func refusal(from string, resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
	said, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	hint := ""
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		hint = "; it wants a token, by --kubelet.token-file, of an account that it knows"
	case http.StatusForbidden:
		hint = "; it wants a token of an account that may get nodes/proxy, or nodes/pods"
	}
	return fmt.Errorf("%s answers %s: %s%s", from, Safe(resp.Status), Safe(said), hint)
}

// prepare makes the client, anew where the certificates have changed, and adds the token.
func (k *Kubelet) prepare(req *http.Request) error {
	var token, trust []byte
	var err error
	if req.URL.Scheme == "https" {
		if token, err = secret(k.config.TokenFile, serviceToken); err != nil {
			return fmt.Errorf("read the token: %w", err)
		}
		if trust, err = secret(k.config.CAFile, serviceCA); err != nil {
			return fmt.Errorf("read the certificates: %w", err)
		}
	}
	if token = bytes.TrimSpace(token); len(token) > 0 {
		if bytes.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return errors.New("read the token: the file has more than a token in it")
		}
		req.Header.Set("Authorization", "Bearer "+string(token))
	}
	if k.client != nil && bytes.Equal(trust, k.trust) {
		return nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if trust != nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(trust) {
			return fmt.Errorf("read the certificates: there is none in %s", cmp.Or(k.config.CAFile, serviceCA))
		}
	}
	if k.client != nil {
		k.client.CloseIdleConnections()
	}
	k.trust = trust
	k.client = &http.Client{
		Transport: &http.Transport{ // without a proxy: a token is for the kubelet alone
			TLSClientConfig: config, MaxIdleConns: 1, IdleConnTimeout: 3 * askPodsEvery,
			DialContext: (&net.Dialer{Timeout: askPodsWithin}).DialContext, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// secret reads a file, or where none is named the standard one, if there is one.
func secret(name, standard string) ([]byte, error) {
	f, err := os.OpenFile(cmp.Or(name, standard), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if name == "" && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() || st.Size() > maxSecret {
		return nil, fmt.Errorf("%s: want a file of at most %d bytes", f.Name(), maxSecret)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err == nil && len(b) == 0 {
		err = fmt.Errorf("%s is empty", f.Name())
	}
	return b, err
}

// apiPod is what is of use in a Pod of Kubernetes' API.
type apiPod struct {
	Metadata struct {
		Name      string            `json:"name"`
		Namespace string            `json:"namespace"`
		UID       string            `json:"uid"`
		Labels    map[string]string `json:"labels"`
	} `json:"metadata"`
	Status struct {
		Containers []apiContainer `json:"containerStatuses"`
		Init       []apiContainer `json:"initContainerStatuses"`
		Ephemeral  []apiContainer `json:"ephemeralContainerStatuses"`
	} `json:"status"`
}

// apiContainer is the same of a ContainerStatus.
type apiContainer struct {
	Name        string `json:"name"`
	Image       string `json:"image"`
	ContainerID string `json:"containerID"` // RUNTIME://ID, "": it has not been made yet
}

// readPods reads a PodList, one pod at a time.
func readPods(r io.Reader) (*podList, error) {
	list := &podList{byUID: make(map[string]*listedPod), byContainer: make(map[string]*listedPod)}
	dec := json.NewDecoder(r)
	if err := wantDelim(dec, '{'); err != nil {
		return nil, err
	}
	listed := false
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		if key == "items" {
			listed = true
			if err := list.readItems(dec); err != nil {
				return nil, err
			}
			continue
		}
		var skip json.RawMessage
		if err := dec.Decode(&skip); err != nil {
			return nil, err
		}
		if key == "kind" && string(skip) != `"PodList"` {
			return nil, fmt.Errorf("it is a %s, not a list of pods", Safe(bounded(string(skip), maxName)))
		}
	}
	if !listed {
		return nil, errors.New("it is no list of pods")
	}
	return list, wantDelim(dec, '}')
}

func (list *podList) readItems(dec *json.Decoder) error {
	first, err := dec.Token()
	if err != nil || first == nil { // null: there are none
		return err
	}
	if first != json.Delim('[') {
		return fmt.Errorf("items begin with %v", first)
	}
	for dec.More() {
		var p apiPod
		if err := dec.Decode(&p); err != nil {
			return err
		}
		if len(list.byUID) < maxPods {
			list.add(&p)
		}
	}
	return wantDelim(dec, ']')
}

func wantDelim(dec *json.Decoder, want json.Delim) error {
	got, err := dec.Token()
	if err == nil && got != want {
		err = fmt.Errorf("it has %v for %v", got, want)
	}
	return err
}

func (list *podList) add(p *apiPod) {
	meta := &p.Metadata
	if meta.UID == "" || meta.Name == "" || len(meta.UID) > maxName {
		return
	}
	pod := &listedPod{
		Pod:        Pod{Namespace: bounded(meta.Namespace, maxName), Name: bounded(meta.Name, maxName), UID: meta.UID},
		containers: make(map[string]Container),
	}
	pod.Labels, pod.LabelsCut = boundedLabels(meta.Labels)
	list.byUID[meta.UID] = pod
	for _, all := range [][]apiContainer{p.Status.Init, p.Status.Containers, p.Status.Ephemeral} {
		for _, c := range all[:min(len(all), maxPodContainers)] {
			runtime, id, ok := strings.Cut(c.ContainerID, "://")
			if !ok || id == "" || len(id) > maxName {
				continue
			}
			switch runtime {
			case runtimeContainerd, runtimeCRIO, runtimeDocker:
			default:
				runtime = ""
			}
			pod.containers[id] = Container{Name: bounded(c.Name, maxName), Image: bounded(c.Image, maxImage), Runtime: runtime}
			list.byContainer[id] = pod
		}
	}
}

// boundedLabels are those that fit into maxLabels, by their keys; cut tells that there are more.
func boundedLabels(labels map[string]string) (some map[string]string, cut bool) {
	size := 0
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if size += len(key) + len(labels[key]); size > maxLabels {
			return some, true
		}
		if some == nil {
			some = make(map[string]string, len(labels))
		}
		some[key] = labels[key]
	}
	return some, false
}

// podPattern is how the kubelet names the cgroup of a pod: podUID, or kubepods-besteffort-podUID.slice,
// which has _ for - in the uid.
var podPattern = regexp.MustCompile(`^(?:pod([0-9a-f-]+)|(?:[0-9a-z]+-)+pod([0-9a-f_]+)\.slice)$`)

// podUID is the uid of the pod that a container's cgroup is right below the cgroup of; "": of none.
func (w *where) podUID(container string) string {
	for _, c := range claims(w.parts) {
		if c.id != container || c.part == 0 {
			continue
		}
		if m := podPattern.FindStringSubmatch(w.parts[c.part-1]); m != nil {
			return m[1] + strings.ReplaceAll(m[2], "_", "-")
		}
	}
	return ""
}

// withPod is an answer with what the kubelet knows besides; before is what came of it last, which it
// stays where the pod is not listed any more. Where the kubelet may know more soon, it is asked.
func (r *Cgroups) withPod(k *known, a, before *answer) *answer {
	if r.Kubelet == nil || a.Container == nil || a.owner.user != nil {
		return a
	}
	uid := k.where.podUID(a.Container.ID)
	if a.Pod != nil {
		uid = a.Pod.UID
	}
	listed := r.Kubelet.find(uid, a.Container.ID)
	if uid != "" && (listed == nil || len(a.files) == 0 && listed.containers[a.Container.ID].Name == "") {
		r.wantPod(k)
	}
	if listed == nil && before != nil {
		listed = before.pod
	}
	if listed == nil || listed == a.pod {
		return a
	}
	c, pod := *a.Container, listed.Pod
	if a.Pod != nil {
		pod = *a.Pod
		pod.Labels, pod.LabelsCut = listed.Labels, listed.LabelsCut
	}
	of := listed.containers[c.ID]
	pod.Container = cmp.Or(pod.Container, of.Name)
	c.Name, c.Image, c.Runtime = cmp.Or(c.Name, of.Name), cmp.Or(c.Image, of.Image), cmp.Or(c.Runtime, of.Runtime)
	out := &answer{Cgroup: a.Cgroup, owner: a.owner, files: a.files, pod: listed}
	out.Container, out.Pod = &c, &pod
	return out
}

// wantPod has the kubelet asked for a pod, ever more seldom.
func (r *Cgroups) wantPod(k *known) {
	now := time.Since(r.start)
	if now < k.ask {
		return
	}
	k.ask = now + min(askPodsSoon<<min(k.asks, 16), lookLate)
	k.asks++
	r.Kubelet.want()
}
