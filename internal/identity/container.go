package identity

import (
	"cmp"
	"strings"
	"unicode/utf8"
)

// Container is what is known of one. Name, Image and Runtime are what its runtime wrote and
// may hold any characters, bounded in length; each is "" where it is not known. Where a
// runtime has no ids, as LXC, the ID is the name.
type Container struct {
	ID      string `json:"id"`
	Name    string `json:"name,omitempty"`
	Image   string `json:"image,omitempty"`
	Runtime string `json:"runtime,omitempty"` // docker, podman, containerd, cri-o, lxc, nspawn, machined, buildkit, ecs
	// User is the uid of whose runtime it is; nil: the system's.
	User *uint32 `json:"user,omitempty"`
}

// Label names the container for people: its name, or the start of its id.
func (c *Container) Label() string {
	if c.Name != "" {
		return c.Name
	}
	return c.ID[:min(12, len(c.ID))]
}

// Pod is a pod of Kubernetes, and which of its containers it is; Container is "" of what
// keeps the pod's namespaces, and where that is not known. They may hold any characters, bounded in
// length.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
	Container string `json:"container,omitempty"`
	// Labels are what a kubelet says they are, with LabelsCut not all of them; nil: none is asked.
	Labels    map[string]string `json:"labels,omitempty"`
	LabelsCut bool              `json:"labels_cut,omitempty"`
}

// Label names the pod for people: NAMESPACE/NAME.
func (p *Pod) Label() string { return p.Namespace + "/" + p.Name }

// Cgroup is what a cgroup id stands for. The zero value: not known.
type Cgroup struct {
	Path string // below the root of the cgroup v2 hierarchy
	// Unit is the systemd unit, of the system or of the service manager of UnitUser; "": none.
	Unit      string
	UnitUser  *uint32
	Container *Container // nil: none
	Pod       *Pod       // nil: none
}

// UnitName is the name of the unit; "": none is known.
func (c Cgroup) UnitName() string { return c.Unit }

// ContainerName is the Label of the container; "": none is known.
func (c Cgroup) ContainerName() string {
	if c.Container == nil {
		return ""
	}
	return c.Container.Label()
}

// PodName is the Label of the pod; "": none is known.
func (c Cgroup) PodName() string {
	if c.Pod == nil {
		return ""
	}
	return c.Pod.Label()
}

// Label is the most telling name there is for people: of the pod, the container, the unit;
// "" where none is known.
func (c Cgroup) Label() string { return cmp.Or(c.PodName(), c.ContainerName(), c.Unit) }

const (
	// maxName is how long the names of containers, pods and units may be, in bytes: systemd
	// and Kubernetes allow no longer ones. maxImage is the same of images.
	maxName  = 255
	maxImage = 512
)

// bounded cuts what is longer than a name may be, and says so.
func bounded(s string, most int) string {
	if len(s) <= most {
		return s
	}
	const cut = "…"
	end := most - len(cut)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return strings.Clone(s[:end]) + cut
}
