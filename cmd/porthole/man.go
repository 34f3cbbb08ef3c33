//go:build man

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/porthole-dev/porthole/internal/agent"
	"github.com/porthole-dev/porthole/internal/store"
)

// With the tag man this is a program that writes the man pages of all commands into a directory.
// They are made from the texts of --help, which porthole itself need not have twice.
func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: DIRECTORY DATE")
		os.Exit(exitUsage)
	}
	if err := writePages(newRoot(&env{}), os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitCant)
	}
}

// writePages writes the page of a command and those of its commands.
func writePages(cmd *cobra.Command, dir, date string) error {
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	p := page{cmd: cmd, date: date}
	p.write()
	for _, c := range cmd.Commands() {
		if err := writePages(c, dir, date); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, pageName(cmd)+".1"), p.out.Bytes(), 0o644)
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// entry is something and what it means.
type entry struct{ name, text string }

// exitNoMeans says what exit code 1 means. Commands that are not here never end with it.
var exitNoMeans = map[string]string{
	"who":     "Nothing uses any of the ports.",
	"check":   "bind() would fail, or no address could be connected to.",
	"wait":    "The time limit was reached first.",
	"free":    "Fewer ports were found than asked for.",
	"history": "There is nothing to show.",
	"diff":    "There are differences.",
	"tail":    "It ended before --count events.",
	"run":     "With --fail-on-leak: the command succeeded, and something still listens.",

	"policy check": "Something listens that may not.",
}

// commandName is what a command is called behind porthole.
func commandName(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

// exitOf are the exit codes of a command: docs/json.md has the contract.
func exitOf(cmd *cobra.Command) []entry {
	codes := []entry{{"0", "Done."}}
	if no := exitNoMeans[commandName(cmd)]; no != "" {
		codes = append(codes, entry{"1", no})
	}
	codes = append(codes, entry{"2", "Wrong usage; nothing was started."},
		entry{"3", "Not permitted or not supported here, or it failed."})
	switch cmd.Name() {
	case "run":
		codes = append(codes, entry{"others", "Those of the command; 128 and the number of the signal that ended it."})
	case "free":
		codes = append(codes, entry{"others", "With --hold, those of the command."})
	}
	return codes
}

// filesOf are the files that a command uses.
func filesOf(cmd *cobra.Command) []entry {
	var files []entry
	if cmd.Flags().Lookup("socket") != nil {
		files = append(files, entry{agent.DefaultSocket, "The socket of the agent, for root and the group porthole."})
	}
	if cmd.Flags().Lookup("history.dir") != nil {
		files = append(files, entry{store.DefaultDir, "Where the systemd unit has the agent keep its history."})
	}
	if cmd.Name() == "free" {
		files = append(files, entry{"/etc/services", "Ports with a name there are found with --services alone."})
	}
	return files
}

// page is one man page while it is written, in the macros of man(7).
type page struct {
	cmd  *cobra.Command
	date string
	out  bytes.Buffer
}

func (p *page) write() {
	name := pageName(p.cmd)
	fmt.Fprintf(&p.out, ".TH %s 1 %s \"porthole %s\" \"User Commands\"\n.ad l\n", strings.ToUpper(name), p.date, version)
	p.section("NAME", func() { fmt.Fprintf(&p.out, "%s \\- %s\n", escape(name), escape(lowerFirst(p.cmd.Short))) })
	p.section("SYNOPSIS", p.synopsis)
	p.section("DESCRIPTION", func() { p.text(cmp.Or(p.cmd.Long, p.cmd.Short+".")) })
	p.commands()
	p.options()
	p.entries("EXIT STATUS", exitOf(p.cmd))
	p.entries("ENVIRONMENT", []entry{
		{"NO_COLOR", "If it is set and not empty, nothing is coloured."},
		{"TERM", "If it is dumb, nothing is coloured."},
	})
	p.entries("FILES", filesOf(p.cmd))
	if p.cmd.Example != "" {
		p.section("EXAMPLES", func() { p.example(strings.Split(p.cmd.Example, "\n")) })
	}
	p.section("SEE ALSO", p.seeAlso)
}

func (p *page) section(title string, body func()) {
	fmt.Fprintf(&p.out, ".SH %s\n", title)
	body()
}

func (p *page) synopsis() {
	path := p.cmd.CommandPath()
	rest := strings.TrimPrefix(p.cmd.UseLine(), path)
	if p.cmd.HasSubCommands() {
		rest = " COMMAND [flags]"
	}
	fmt.Fprintf(&p.out, "\\fB%s\\fR%s\n", escape(path), escape(rest))
}

// text fills paragraphs; what is indented is an example.
func (p *page) text(s string) {
	for i, paragraph := range strings.Split(strings.TrimSpace(s), "\n\n") {
		lines := strings.Split(strings.Trim(paragraph, "\n"), "\n")
		if i > 0 {
			p.out.WriteString(".PP\n")
		}
		if strings.TrimLeft(lines[0], " \t") != lines[0] {
			p.example(lines)
			continue
		}
		for _, line := range lines {
			p.line(line)
		}
	}
}

func (p *page) example(lines []string) {
	p.out.WriteString(".EX\n")
	for _, line := range lines {
		p.line(strings.TrimPrefix(strings.ReplaceAll(line, "\t", "  "), "  "))
	}
	p.out.WriteString(".EE\n")
}

// line writes a line of text. An empty one would be a request for space.
func (p *page) line(s string) {
	if strings.TrimSpace(s) == "" {
		return
	}
	p.out.WriteString(escape(strings.TrimRight(s, " ")) + "\n")
}

func (p *page) entries(title string, entries []entry) {
	if len(entries) == 0 {
		return
	}
	p.section(title, func() {
		for _, t := range entries {
			fmt.Fprintf(&p.out, ".TP\n\\fB%s\\fR\n%s\n", escape(t.name), escape(t.text))
		}
	})
}

func (p *page) commands() {
	var entries []entry
	for _, c := range p.cmd.Commands() {
		entries = append(entries, entry{c.Name(), c.Short + "."})
	}
	p.entries("COMMANDS", entries)
}

func (p *page) options() {
	p.section("OPTIONS", func() {
		p.cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			value, usage := pflag.UnquoteUsage(f)
			p.out.WriteString(".TP\n")
			if f.Shorthand != "" {
				fmt.Fprintf(&p.out, "\\fB\\-%s\\fR, ", escape(f.Shorthand))
			}
			fmt.Fprintf(&p.out, "\\fB\\-\\-%s\\fR", escape(f.Name))
			if value != "" {
				fmt.Fprintf(&p.out, " \\fI%s\\fR", escape(value))
			}
			fmt.Fprintf(&p.out, "\n%s%s\n", escape(usage), escape(defaultOf(f)))
		})
	})
}

// defaultOf is what --help says of the value a flag has without being given.
func defaultOf(f *pflag.Flag) string {
	switch f.DefValue {
	case "", "0", "0s", "[]", "false":
		return ""
	}
	return fmt.Sprintf(" (default %s)", f.DefValue)
}

func (p *page) seeAlso() {
	var others []string
	if parent := p.cmd.Parent(); parent != nil {
		others = append(others, pageName(parent))
	}
	siblings := p.cmd.Root().Commands()
	for _, c := range siblings {
		if c != p.cmd && c != p.cmd.Parent() {
			others = append(others, pageName(c))
		}
	}
	for i, other := range others {
		comma := ","
		if i == len(others)-1 {
			comma = ""
		}
		fmt.Fprintf(&p.out, ".BR \\%%%s (1)%s\n", escape(other), comma)
	}
}

// escape is a text as roff shows it: with hyphens and quotes that can be copied into a shell.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `'`, `\(aq`, "`", `\(ga`, `^`, `\(ha`, `~`, `\(ti`).Replace(s)
	if strings.HasPrefix(s, ".") {
		return `\&` + s
	}
	return s
}

func lowerFirst(s string) string {
	if len(s) > 1 && strings.ToUpper(s[1:2]) != s[1:2] || strings.HasPrefix(s, "A ") {
		return strings.ToLower(s[:1]) + s[1:]
	}
	return s
}
