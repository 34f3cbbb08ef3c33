package identity

import (
	"cmp"
	"encoding/json"
)

// ofCRIO completes the record of a container that CRI-O runs: the pod is among the labels of the
// kubelet.
func ofCRIO(r *record, spec *ociSpec) {
	const prefix = "io.kubernetes.cri-o."
	a := spec.Annotations
	r.container.Runtime = runtimeCRIO
	r.container.Image = cmp.Or(a[prefix+"ImageName"], a[prefix+"Image"], r.container.Image)
	var labels map[string]string
	if json.Unmarshal([]byte(a[prefix+"Labels"]), &labels) != nil || labels["io.kubernetes.pod.name"] == "" {
		labels = a
	}
	if r.pod = podOfLabels(labels); r.pod == nil {
		return
	}
	if a[prefix+"ContainerType"] == "sandbox" {
		r.pod.Container = ""
	}
	r.container.Name = r.pod.Container
}
