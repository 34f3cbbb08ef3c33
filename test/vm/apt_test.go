package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A mirror is the machine's own, and nothing is asked of another.
func TestSources(t *testing.T) {
	const own = "Debian http://mirror.example/debian/\nDebian http://mirror.example/debian/\nDebian-Security http://mirror.example/security/\n"
	line := func(path, suite string) string {
		return "deb [target=Packages check-valid-until=no signed-by=/key] http://mirror.example/" + path + "/ " + suite + " main\n"
	}
	for _, test := range []struct {
		name, targets string
		releases      []string
		want, err     string
	}{
		{"a release", own, []string{"trixie"}, line("debian", "trixie") + line("security", "trixie-security"), ""},
		{"with backports", own, []string{"trixie", "trixie-backports"},
			line("debian", "trixie") + line("security", "trixie-security") + line("debian", "trixie-backports"), ""},
		{"sid", own, []string{"sid"}, line("debian", "sid"), ""},
		{"no mirror of updates", "Debian http://mirror.example/debian/\n", []string{"trixie"}, line("debian", "trixie"), ""},
		{"nothing", "", []string{"trixie"}, "", "apt knows no mirror of Debian here"},
		{"another distribution", "Other http://other.example/\n", []string{"trixie"}, "", "apt knows no mirror of Debian here"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := sourcesOf(test.targets, "/key", test.releases)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("sources (-want +got):\n%s", diff)
			}
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}

func TestNewestImage(t *testing.T) {
	names := "linux-image-6.18.9+deb13-cloud-amd64\nlinux-image-6.18.15+deb13-cloud-amd64\n" +
		"linux-image-6.18.16+deb13-amd64\nlinux-image-6.18.15+deb13-cloud-amd64-unsigned\n"
	got, err := newestImage(names, "linux-image-6.18.", "-cloud-amd64")
	if err != nil || got != "linux-image-6.18.15+deb13-cloud-amd64" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := newestImage(names, "linux-image-6.18.", "-cloud-arm64"); err == nil {
		t.Errorf("%q, want an error", got)
	}
}
