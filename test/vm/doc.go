package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// column is a kernel and a tier of it.
type column struct {
	*report
	tier tier
}

func (c column) name() string { return c.kernel.name + " " + c.kernel.arch }

// writeDoc writes what each kernel can do. Nothing in it depends on the run but
// what was found: no times, no exact versions.
func writeDoc(path string, reports []*report) error {
	var b strings.Builder
	b.WriteString("# Kernels\n\n<!-- Written by go run ./test/vm -doc: do not edit. -->\n")
	for _, t := range tiers {
		var columns []column
		fmt.Fprintf(&b, "\n## Tier %s\n\n", t)
		for _, r := range reports {
			if why := r.kernel.missing[t]; why != "" {
				fmt.Fprintf(&b, "Not on %s %s: %s.\n\n", r.kernel.name, r.kernel.arch, why)
			} else if r.doctors[t] != nil {
				columns = append(columns, column{r, t})
			}
		}
		if len(columns) > 0 {
			docHooks(&b, columns)
			docNotSeen(&b, columns)
		}
	}
	docTests(&b, reports)
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

// docHooks writes a row for each hook, and the reasons of those that could not
// be attached.
func docHooks(b *strings.Builder, columns []column) {
	header, names := []string{"hook"}, []string(nil)
	cells := make(map[string][]string) // by hook
	reasons := newNotes()
	for i, c := range columns {
		header = append(header, c.name())
		for _, h := range c.doctors[c.tier].Hooks {
			if cells[h.Hook] == nil {
				names = append(names, h.Hook)
				cells[h.Hook] = slices.Repeat([]string{""}, len(columns))
			}
			cells[h.Hook][i] = "yes"
			if !h.Attached {
				cells[h.Hook][i] = "no"
				reasons.add("`"+h.Hook+"`: "+h.Reason, c.name())
			}
		}
	}
	docRow(b, header...)
	docRow(b, slices.Repeat([]string{"---"}, len(header))...)
	for _, name := range names {
		docRow(b, append([]string{"`" + name + "`"}, cells[name]...)...)
	}
	reasons.write(b, "Not attached:", len(columns))
}

func docNotSeen(b *strings.Builder, columns []column) {
	spots := newNotes()
	for _, c := range columns {
		for _, s := range c.doctors[c.tier].NotSeen {
			spots.add(s, c.name())
		}
	}
	spots.write(b, "Not seen:", len(columns))
}

func docTests(b *strings.Builder, reports []*report) {
	b.WriteString("\n## Tests\n\n")
	docRow(b, "kernel", "tier", "tests", "passed", "skipped")
	docRow(b, slices.Repeat([]string{"---"}, 5)...)
	skipped := newNotes()
	for _, r := range reports {
		for _, t := range tiers {
			if c := r.tiers[t]; c != nil {
				name := column{r, t}.name()
				docRow(b, name, string(t), fmt.Sprint(c.run), fmt.Sprint(c.passed), fmt.Sprint(len(c.skipped)))
				for _, s := range c.skipped {
					skipped.add(s, name+" "+string(t))
				}
			}
		}
	}
	skipped.write(b, "Skipped:", 0)
}

func docRow(b *strings.Builder, cells ...string) {
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

// notes are sentences, each of some columns, in the order they were added.
type notes struct {
	texts   []string
	columns map[string][]string
}

func newNotes() *notes { return &notes{columns: make(map[string][]string)} }

func (n *notes) add(text, column string) {
	if n.columns[text] == nil {
		n.texts = append(n.texts, text)
	}
	n.columns[text] = append(n.columns[text], column)
}

// write writes the notes as a list. One that holds for all columns names none.
func (n *notes) write(b *strings.Builder, title string, all int) {
	if len(n.texts) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s\n\n", title)
	for _, text := range n.texts {
		if of := n.columns[text]; len(of) != all {
			text += " (" + strings.Join(of, ", ") + ")"
		}
		fmt.Fprintf(b, "- %s\n", text)
	}
}
