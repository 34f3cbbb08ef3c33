package main

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/porthole-dev/porthole/internal/render"
)

// fitHelp has help fit the terminal, or 80 columns where there is none: cobra writes what a flag does
// on one line.
func fitHelp(root *cobra.Command, style render.Style) {
	style.Width = cmp.Or(style.Width, helpWidth)
	write := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		out := cmd.OutOrStdout()
		var text bytes.Buffer
		cmd.SetOut(&text)
		write(cmd, args)
		cmd.SetOut(out)
		for _, line := range helpLines(text.String(), style.Width) {
			fmt.Fprintln(out, style.Wrap(describedAt(line), line))
		}
	})
}

// helpWidth is how wide the lines of paragraphs are as they stand in the code.
const helpWidth = 80

// helpLines are the lines of help; the paragraphs, which begin without a space, as one line each where
// the width has no room for the lines they have.
func helpLines(text string, width int) []string {
	var lines []string
	paragraph := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if last := len(lines) - 1; paragraph && width < helpWidth && line != "" && line[0] != ' ' {
			lines[last] += " " + line
			continue
		}
		lines = append(lines, line)
		paragraph = line != "" && line[0] != ' '
	}
	return lines
}

// unquoteUsage has completion describe flags as help does: a name of a value in backquotes is there
// without them.
func unquoteUsage(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) { _, f.Usage = pflag.UnquoteUsage(f) })
	for _, c := range cmd.Commands() {
		unquoteUsage(c)
	}
}

// describedAt is the column where it says what a flag or a command does: behind two spaces or more.
func describedAt(line string) int {
	name := strings.TrimLeft(line, " ")
	begin := len(line) - len(name)
	gap := strings.Index(name, "  ")
	if begin == 0 || gap < 0 {
		return begin
	}
	rest := name[gap:]
	return begin + gap + len(rest) - len(strings.TrimLeft(rest, " "))
}
