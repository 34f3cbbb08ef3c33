package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/porthole-dev/porthole/test/vm/guest"
)

// benchmark measures what the hooks cost on a kernel: first in time, then in a
// machine whose clock counts instructions, which says the same on every host.
func (m *runner) benchmark(ctx context.Context, k kernel) error {
	modules, err := m.modules(k)
	if err != nil {
		return err
	}
	var has []string
	for _, t := range tiers {
		if k.missing[t] == "" {
			has = append(has, string(t))
		}
	}
	for _, counting := range []bool{false, true} {
		argv := []string{"/bin/bench", "-porthole", "/bin/porthole", "-hooks", strings.Join(has, ","), "-runs", "5", "-cycles", "500"}
		if counting {
			argv = append(argv, "-counting")
		}
		plan := guest.Plan{Modules: modules, Jobs: []guest.Job{{Name: "bench", Argv: argv}}}
		jobs, console, err := m.start(ctx, "bench", k, plan, counting, func(string) {})
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", k, err, lastLines(console, 20))
		}
		fmt.Printf("%s\n%s\n\n", k, jobs["bench"].text())
		if o := jobs["bench"]; !o.ended || o.exit != 0 {
			return fmt.Errorf("%s: bench: exit code %d", k, o.exit)
		}
	}
	return nil
}
