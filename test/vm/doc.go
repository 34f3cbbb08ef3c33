package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

const docIntro = `# Kernels

<!-- Written by make docs from what the kernels showed: do not edit. -->

porthole needs Linux 5.10 or newer, with BTF. Which hooks it uses is tried at the start, part of the job by part: those of
the fentry tier, and where the kernel refuses one of them, those of the tracepoint tier that see the same. The kernels
below are Debian's for virtual machines, run in qemu.
`

const docDifferences = `
## What differs

TestKernelTiersAgree shows both tiers the same work at the same time and compares every event. Before Linux 5.18 one
thing is seen by the fentry tier alone: an accept by io_uring that does not ask for the peer's address, and so the close
of what it accepted. The rest of what a tier does not see is listed with it above.

TestKernelTiersDiffer shows two more: a connect that a cgroup program refuses is told in the tracepoint tier alone, for
it never comes to TCP; and a TCP connect with TCP_FASTOPEN_CONNECT is told in the fentry tier when its port is picked, in
the tracepoint tier when the SYN leaves, with the first data.

| until | the kernel | so porthole |
| --- | --- | --- |
| 5.11 | counts BPF maps as locked memory | lifts that limit, which takes CAP_SYS_RESOURCE |
| 5.15 | has tcp_tw_reuse in four bytes | reads as many as BTF says |
| 5.17 | has no bpf_loop(), until 5.14 no syscall programs | walks the port tables in bursts, from an iterator |
| 5.18 | does not say which io_uring request is done | sees its accepts when they ask for the peer's address |
| 5.19 | gives inet_csk_listen_start() two arguments | picks the program by the number in the kernel's BTF |
| 6.1 | has the death row, which leads to the TCP tables, behind a pointer in 5.19 and 6.0 | looks in BTF which |
| 6.1 | returns 1 from a listen() that gets no port, in 5.19 and 6.0 | shows no event: the program sees no error either |
| 6.2 | has no bpf_rdonly_cast() | reads by bpf_probe_read_kernel(), about half as fast |
| 6.2 | has one UDP table for all namespaces | finds it by way of a UDP socket of its own |
| 6.4 | refuses trampolines on arm64 | uses the tracepoint tier there |
| 6.8 | keeps the owners of a TCP port in one list | walks that instead of those by address |
| 6.8 | has the ephemeral range as two numbers | looks in BTF which |
| 6.12 | lets connect() take over a port in FIN-WAIT-2 whose socket was closed, but for stable releases since autumn 2024 | reckons without: there may be more ports than headroom says |
| 6.14 | lets connect() take over a port in TIME-WAIT when a new second has begun, not after tcp_tw_reuse_delay | reckons with either |
| 6.17 | gives io_uring_complete the result as a number | picks the program by the arguments in the kernel's BTF |

From 7.2 on the kernel may give the processor to another task within a program at the end of a system call, and skips the
program for that task's calls. Only the tracepoint tier has such a hook. What is skipped counts as lost, and the table is
rebuilt.
`

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
	b.WriteString(docIntro)
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
	b.WriteString(docDifferences)
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
	docRow(b, "kernel", "tier", "kernel tests")
	docRow(b, slices.Repeat([]string{"---"}, 3)...)
	skipped := newNotes()
	for _, r := range reports {
		for _, t := range tiers {
			if why := r.kernel.untested[t]; why != "" {
				docRow(b, column{r, t}.name(), string(t), "not run: "+why)
			} else if c := r.tiers[t]; c != nil {
				name := column{r, t}.name()
				result := "all pass"
				if len(c.skipped) > 0 {
					result = "all pass but what it lacks"
				}
				docRow(b, name, string(t), result)
				for _, s := range c.skipped {
					skipped.add(s, name+" "+string(t))
				}
			}
		}
	}
	skipped.write(b, "Lacking:", 0)
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
