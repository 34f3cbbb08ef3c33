package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// summary prints a line for each kernel and tier, then what was skipped and what
// failed.
func summary(w io.Writer, reports []*report) error {
	rows := [][]string{{"KERNEL", "VERSION", "TIER", "TESTS", "PASSED", "SKIPPED", "TIME"}}
	var skipped, failed []string
	for _, r := range reports {
		for _, t := range tiers {
			row := []string{r.kernel.String(), r.version, string(t)}
			if why := r.kernel.missing[t]; why != "" {
				row = append(row, "0", "0", "0", "0s")
				skipped = append(skipped, fmt.Sprintf("%s has no tier %s: %s", r.kernel, t, why))
			} else if why := r.kernel.untested[t]; why != "" {
				row = append(row, "0", "0", "0", "0s")
				skipped = append(skipped, fmt.Sprintf("%s is not tested in tier %s: %s", r.kernel, t, why))
			} else if c := r.tiers[t]; c != nil {
				row = append(row, fmt.Sprint(c.run), fmt.Sprint(c.passed), fmt.Sprint(len(c.skipped)), fmt.Sprintf("%.0fs", c.seconds))
				for _, s := range c.skipped {
					skipped = append(skipped, fmt.Sprintf("%s %s skips %s", r.kernel, t, s))
				}
			} else {
				continue
			}
			rows = append(rows, row)
		}
		for _, f := range r.failures {
			failed = append(failed, fmt.Sprintf("FAIL %s %s", r.kernel, f))
		}
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	for _, lines := range [][]string{skipped, failed} {
		if len(lines) == 0 {
			continue
		}
		if _, err := fmt.Fprintf(w, "\n%s\n", strings.Join(lines, "\n")); err != nil {
			return err
		}
	}
	return nil
}

func writeTable(w io.Writer, rows [][]string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	return table.Flush()
}
