package main

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/render"
)

// keysOf are the JSON keys of a struct; those of a doctor.Report in it are told apart.
func keysOf(object any) []string {
	var keys []string
	typ := reflect.TypeOf(object)
	for i := range typ.NumField() {
		if f := typ.Field(i); f.Anonymous && f.Type != reflect.TypeFor[doctor.Report]() {
			keys = append(keys, keysOf(reflect.Zero(f.Type).Interface())...)
		} else if name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
			keys = append(keys, name)
		}
	}
	slices.Sort(keys)
	return keys
}

var (
	quoted = regexp.MustCompile("`([^`]+)`")
	braced = regexp.MustCompile("`\\{([^}]+)\\}`")
)

// tableKeys are the keys in the first column of the table of a section.
func tableKeys(section string) []string {
	var keys []string
	for line := range strings.Lines(section) {
		if cells := strings.SplitN(line, "|", 3); len(cells) == 3 && cells[0] == "" {
			for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
				keys = append(keys, m[1])
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// bracedKeys are those of the nth object that a section spells out.
func bracedKeys(section string, n int) []string {
	all := braced.FindAllStringSubmatch(section, -1)
	if len(all) <= n {
		return nil
	}
	keys := strings.Split(all[n][1], ", ")
	slices.Sort(keys)
	return keys
}

// Every key that is printed is in docs/json.md, and every key that is there is printed.
func TestJSONDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	section := func(head string) string {
		_, rest, found := strings.Cut(string(text), "\n## "+head)
		if !found {
			t.Fatalf("docs/json.md has no section %q", head)
		}
		out, _, _ := strings.Cut(rest, "\n## ")
		return out
	}
	machine := section("This machine")
	bindHalf, connectHalf, _ := strings.Cut(section("Would it work"), "With a HOST")
	_, besides, _ := strings.Cut(machine, "Of an agent")
	var status []string
	for _, m := range quoted.FindAllStringSubmatch(besides, -1) {
		status = append(status, m[1])
	}
	slices.Sort(status)
	for _, c := range []struct {
		what   string
		object any
		docs   []string
	}{
		{"an event", render.Event{}, tableKeys(section("Events"))},
		{"a socket", render.Socket{}, tableKeys(section("Sockets"))},
		{"a port", render.Port{}, bracedKeys(section("A port"), 0)},
		{"a tenancy", render.Tenancy{}, tableKeys(section("A port"))},
		{"headroom", render.Headroom{}, tableKeys(section("Ports left"))},
		{"a bind that is checked", bindAnswer{}, tableKeys(bindHalf)},
		{"a connection that is checked", connectAnswer{}, tableKeys(connectHalf)},
		{"a wait", waitAnswer{}, bracedKeys(section("A wait"), 0)},
		{"a difference", diffRow{}, bracedKeys(section("Differences"), 0)},
		{"a port that a command used", usedPort{}, bracedKeys(section("Ports of a command"), 0)},
		{"a free port", freePort{}, bracedKeys(section("A free port"), 0)},
		{"the machine", doctor.Report{}, bracedKeys(machine, 0)},
		{"a hook", doctor.Hook{}, bracedKeys(machine, 1)},
		{"an agent", api.Status{}, status},
	} {
		if d := cmp.Diff(c.docs, keysOf(c.object)); d != "" {
			t.Errorf("the keys of %s (-docs/json.md +printed):\n%s", c.what, d)
		}
	}
}
