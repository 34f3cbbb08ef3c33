package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChoose(t *testing.T) {
	known := []kernel{
		{name: "6.1", arch: "amd64", gating: true},
		{name: "6.1", arch: "arm64", gating: true},
		{name: "6.12", arch: "amd64", gating: true},
		{name: "edge", arch: "arm64"},
	}
	for _, test := range []struct {
		names string
		want  []string
		err   string
	}{
		{names: "", want: []string{"amd64/6.1", "arm64/6.1", "amd64/6.12"}},
		{names: "all", want: []string{"amd64/6.1", "arm64/6.1", "amd64/6.12", "arm64/edge"}},
		{names: "6.1", want: []string{"amd64/6.1", "arm64/6.1"}},
		{names: "edge,arm64/6.1", want: []string{"arm64/6.1", "arm64/edge"}},
		{names: "6.12,6.12", want: []string{"amd64/6.12"}},
		{names: "6.1,6.2", err: `kernel "6.2" is not known`},
		{names: "arm64", err: `kernel "arm64" is not known`},
		{names: "6.1,", err: `kernel "" is not known`},
	} {
		t.Run(test.names, func(t *testing.T) {
			got, err := choose(known, test.names)
			var names []string
			for _, k := range got {
				names = append(names, k.String())
			}
			if diff := cmp.Diff(test.want, names); diff != "" {
				t.Errorf("kernels (-want +got):\n%s", diff)
			}
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}

// What the table says must be complete, for nothing else says it.
func TestKernels(t *testing.T) {
	for _, k := range kernels {
		if _, ok := machines[k.arch]; !ok || k.name == "" || len(k.releases) == 0 {
			t.Errorf("%+v: want a name, a release and an architecture with a machine", k)
		}
		for _, l := range k.lacks {
			if !strings.HasPrefix(l.test, "TestKernel") || l.reason == "" {
				t.Errorf("%s lacks %+v: want a kernel test and a reason", k, l)
			}
		}
	}
}
