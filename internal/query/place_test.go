package query

import (
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/identity"
)

func TestPlaces(t *testing.T) {
	all := map[string]identity.Cgroup{
		"web":  {Unit: "docker.service", Container: &identity.Container{ID: "0123456789abcdef", Name: "web"}},
		"anon": {Container: &identity.Container{ID: "4567"}},
		"shop": {Unit: "shop.service"},
		"ssh":  {Unit: "session-3.scope"},
		"api": {
			Container: &identity.Container{ID: "89ab", Name: "api"},
			Pod:       &identity.Pod{Namespace: "shop", Name: "api-6d5f", UID: "0d1b", Container: "api"},
		},
		"none": {},
	}
	for _, test := range []struct {
		name, values, want string
		refused            bool
	}{
		{name: "nothing", want: "anon api none shop ssh web"},
		{name: "container", values: "container=web", want: "web"},
		{name: "containers", values: "container=web,api", want: "api web"},
		{name: "the start of an id", values: "container=0123", want: "web"},
		{name: "not the start of an id", values: "container=123"},
		{name: "an id of one that has no name", values: "container=4567", want: "anon"},
		{name: "a pattern", values: "container=?[eo]b", want: "web"},
		{name: "any", values: "container=*", want: "anon api web"},
		{name: "part of a name", values: "container=we"},
		{name: "empty, as a variable of a script that is not set", values: "container="},
		{name: "empty, pod", values: "pod="},
		{name: "unit", values: "unit=shop.service", want: "shop"},
		{name: "unit without its type", values: "unit=shop", want: "shop"},
		{name: "units", values: "unit=*.scope,sh*", want: "shop ssh"},
		{name: "pod", values: "pod=shop/api-6d5f", want: "api"},
		{name: "pod in any namespace", values: "pod=api-*", want: "api"},
		{name: "namespace", values: "pod=shop/*", want: "api"},
		{name: "pod by uid", values: "pod=0d1b", want: "api"},
		{name: "another namespace", values: "pod=kube-system/*"},
		{name: "all must match", values: "container=web unit=docker", want: "web"},
		{name: "all must", values: "container=web unit=shop"},
		{name: "no pattern", values: "container=[", refused: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			values := make(Values)
			for field := range strings.FieldsSeq(test.values) {
				name, list, _ := strings.Cut(field, "=")
				values[name] = strings.Split(list, ",")
			}
			f, err := ParseFilter(OfSockets, values)
			if (err != nil) != test.refused {
				t.Fatal(err)
			} else if err != nil {
				return
			}
			var got []string
			for _, name := range []string{"anon", "api", "none", "shop", "ssh", "web"} {
				if !f.Any() || f.Match(all[name]) {
					got = append(got, name)
				}
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("%v, want %s", got, test.want)
			}
		})
	}
}

func TestListed(t *testing.T) {
	var many []identity.Cgroup
	for name := range strings.FieldsSeq("j i h g f e d c b a a") {
		many = append(many, identity.Cgroup{Unit: name + ".service"})
	}
	for _, test := range []struct {
		of   []identity.Cgroup
		want string
	}{
		{nil, "none"},
		{many[9:], "a.service"},
		{[]identity.Cgroup{{Unit: "docker-0123.scope", Container: &identity.Container{ID: "0123456789abcdef", Name: "web"}}, {Unit: "a.service"}}, "a.service"},
		{many, "a.service, b.service, c.service, d.service, e.service, f.service, g.service, h.service and 2 more"},
		{[]identity.Cgroup{{Unit: "a\x1b[2J.service"}}, `"a\x1b[2J.service"`},
	} {
		if got := listed(test.of, unitAlone); got != test.want {
			t.Errorf("%s, want %s", got, test.want)
		}
	}
}
