package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/render"
)

// fitHelp has help fit the terminal: cobra writes what a flag does on one line.
func fitHelp(root *cobra.Command, style render.Style) {
	if style.Width == 0 {
		return
	}
	write := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		out := cmd.OutOrStdout()
		var text bytes.Buffer
		cmd.SetOut(&text)
		write(cmd, args)
		cmd.SetOut(out)
		for line := range strings.Lines(text.String()) {
			fmt.Fprintln(out, style.Wrap(describedAt(line), strings.TrimSuffix(line, "\n")))
		}
	})
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
