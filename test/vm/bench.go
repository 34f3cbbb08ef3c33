package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/porthole-dev/porthole/test/vm/guest"
)

// benchmark measures what the hooks cost on a kernel: first in time, then in a
// machine whose clock counts instructions, which says the same on every host. That
// one may have the tools of bcc, to measure the agent beside them.
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
	bcc := ""
	if k.bcc {
		c := &cache{dir: m.cache, update: m.update, log: m.log}
		if bcc, err = c.bcc(ctx, k, m.files[k.String()]); err != nil {
			m.log("%v", err) // and the table says that they are not here
		}
	}
	for _, counting := range []bool{false, true} {
		v := variant{counting: counting}
		argv := []string{"/bin/bench", "-porthole", "/bin/porthole", "-hooks", strings.Join(has, ","), "-runs", "5", "-cycles", "500"}
		if counting {
			argv = append(argv, "-counting")
			if k.bcc {
				argv = append(argv, "-beside", "/usr/sbin/tcptracer-bpfcc /usr/sbin/tcplife-bpfcc")
				v.systems = []string{bcc}
			}
		}
		plan := guest.Plan{Modules: modules, Jobs: []guest.Job{{Name: "bench", Argv: argv}}}
		jobs, console, err := m.start(ctx, "bench", k, plan, v, func(string) {})
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
