package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const wantDoc = docIntro + `
## Tier fentry

Not on 6.1 arm64: not attached.

| hook | 5.10 amd64 | edge amd64 |
| --- | --- | --- |
| ` + "`fexit/a`" + ` | yes | yes |
| ` + "`fexit/b`" + ` | no | yes |

Not attached:

- ` + "`fexit/b`" + `: no such function (5.10 amd64)

Not seen:

- what b sees (5.10 amd64)

## Tier tracepoint

| hook | 5.10 amd64 | edge amd64 | 6.1 arm64 |
| --- | --- | --- | --- |
| ` + "`tp/a`" + ` | yes | yes | yes |
| ` + "`tp/c`" + ` |  |  | yes |

Not seen:

- holders elsewhere
- io_uring (5.10 amd64)
` + docDifferences + `
## Tests

| kernel | tier | kernel tests |
| --- | --- | --- |
| 5.10 amd64 | fentry | all pass but what it lacks |
| 5.10 amd64 | tracepoint | all pass |
| edge amd64 | fentry | all pass |
| edge amd64 | tracepoint | not run: lossy |
| 6.1 arm64 | tracepoint | all pass |

Lacking:

- TestKernelB: no b (5.10 amd64 fentry)
`

func TestWriteDoc(t *testing.T) {
	read := func(text string) *doctor {
		var d doctor
		if err := json.Unmarshal([]byte(text), &d); err != nil {
			t.Fatal(err)
		}
		return &d
	}
	reports := []*report{
		{kernel: kernel{name: "5.10", arch: "amd64"}, tiers: map[tier]*tally{
			"fentry": {run: 3, passed: 2, skipped: []string{"TestKernelB: no b"}}, "tracepoint": {run: 3, passed: 3},
		}, doctors: map[tier]*doctor{
			"fentry":     read(`{"hooks":[{"hook":"fexit/a","attached":true},{"hook":"fexit/b","reason":"no such function"}],"not_seen":["what b sees"]}`),
			"tracepoint": read(`{"hooks":[{"hook":"tp/a","attached":true}],"not_seen":["holders elsewhere","io_uring"]}`),
		}},
		{kernel: kernel{name: "edge", arch: "amd64", untested: map[tier]string{"tracepoint": "lossy"}}, tiers: map[tier]*tally{
			"fentry": {run: 3, passed: 3},
		}, doctors: map[tier]*doctor{
			"fentry":     read(`{"hooks":[{"hook":"fexit/a","attached":true},{"hook":"fexit/b","attached":true}],"not_seen":[]}`),
			"tracepoint": read(`{"hooks":[{"hook":"tp/a","attached":true}],"not_seen":["holders elsewhere"]}`),
		}},
		{kernel: kernel{name: "6.1", arch: "arm64", missing: map[tier]string{"fentry": "not attached"}}, tiers: map[tier]*tally{
			"tracepoint": {run: 3, passed: 3},
		}, doctors: map[tier]*doctor{
			"tracepoint": read(`{"hooks":[{"hook":"tp/a","attached":true},{"hook":"tp/c","attached":true}],"not_seen":["holders elsewhere"]}`),
		}},
	}
	path := filepath.Join(t.TempDir(), "kernels.md")
	if err := writeDoc(path, reports); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantDoc, string(got)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
