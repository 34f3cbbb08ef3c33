package identity

import (
	"errors"
	"path/filepath"
	"strings"
)

// bundleDirs are where containerd keeps the bundles of the containers that run, by namespace and id:
// its own, that of k3s and RKE2, of k0s, of MicroK8s, of Docker.
var bundleDirs = []string{
	"/run/containerd", "/run/k3s/containerd", "/run/k0s/containerd", "/var/snap/microk8s/common/run/containerd",
	"/run/docker/containerd/daemon", "/run/snap.docker/containerd/daemon",
}

const taskDir = "io.containerd.runtime.v2.task"

// dockersNamespace is the namespace of containerd in which Docker has its containers.
const dockersNamespace = "moby"

// containerd reads config.json of a bundle: what CRI and nerdctl write down there, or else the id
// alone.
func containerd(o owner, c claim) (*record, error) {
	if c.named && c.namespace == "" {
		return nil, nil
	}
	spec, namespace, f, err := o.bundle(c)
	if spec == nil || namespace == dockersNamespace {
		return nil, err
	}
	a := spec.Annotations
	r := &record{
		container: Container{ID: c.id, Name: a["nerdctl/name"], Image: a["io.kubernetes.cri.image-name"], Runtime: runtimeContainerd},
		place:     spec.Linux.CgroupsPath, files: []file{f},
	}
	if name := a["io.kubernetes.cri.sandbox-name"]; name != "" {
		r.pod = &Pod{
			Namespace: a["io.kubernetes.cri.sandbox-namespace"], Name: name, UID: a["io.kubernetes.cri.sandbox-uid"],
			Container: a["io.kubernetes.cri.container-name"],
		}
		r.container.Name = r.pod.Container
	}
	return r, nil
}

// ociSpec is what is of use in a container's configuration by OCI.
type ociSpec struct {
	Annotations map[string]string `json:"annotations"`
	Linux       struct {
		CgroupsPath string `json:"cgroupsPath"`
	} `json:"linux"`
}

// bundle is the configuration that containerd runs a container with; nil: it runs none of that id.
func (o owner) bundle(c claim) (spec *ociSpec, namespace string, f file, err error) {
	dirs := bundleDirs
	if o.user != nil {
		dirs = []string{filepath.Join(o.runDir(), "docker/containerd/daemon"), filepath.Join(o.runDir(), "containerd"), "/run/containerd"}
	}
	for _, dir := range dirs {
		dir = filepath.Join(dir, taskDir)
		namespaces := []string{c.namespace}
		if c.namespace == "" {
			if namespaces, err = o.list(dir); err != nil {
				return nil, "", file{}, err
			}
		}
		for _, namespace := range namespaces {
			spec := new(ociSpec)
			f, err := o.parse(filepath.Join(dir, namespace), filepath.Join(c.id, "config.json"), spec)
			if err == nil {
				return spec, namespace, f, nil
			} else if !errors.Is(err, errNone) {
				return nil, "", file{}, err
			}
		}
	}
	return nil, "", file{}, nil
}

// bundlePlace is the place of a container whose runtime has containerd run it; "": not known.
func (o owner) bundlePlace(c claim) (string, error) {
	spec, _, _, err := o.bundle(c)
	if spec == nil {
		return "", err
	}
	return spec.Linux.CgroupsPath, nil
}

// podOfLabels is the pod that the kubelet wrote into the labels of a container; nil: none.
func podOfLabels(labels map[string]string) *Pod {
	name := labels["io.kubernetes.pod.name"]
	if name == "" {
		return nil
	}
	p := &Pod{
		Namespace: labels["io.kubernetes.pod.namespace"], Name: name, UID: labels["io.kubernetes.pod.uid"],
		Container: labels["io.kubernetes.container.name"],
	}
	if p.Container == "POD" || strings.EqualFold(labels["io.kubernetes.docker.type"], "podsandbox") {
		p.Container = ""
	}
	return p
}
