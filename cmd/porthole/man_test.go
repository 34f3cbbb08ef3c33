package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Every command has a man page, as make install makes it: with all of its flags, its examples and
// its exit codes, and nothing that man or mandoc warns about.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	write := exec.Command("go", "run", "-buildvcs=false", "-tags", "man", ".", dir, "2026-01-02")
	if out, err := write.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", write, err, out)
	}
	codes, mayBeNo := documentedExitCodes(t)
	var pages []string
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		page := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
		pages = append(pages, page)
		t.Run(page, func(t *testing.T) {
			text := manText(t, filepath.Join(dir, page))
			cmd.InitDefaultHelpFlag()
			options := section(text, "OPTIONS")
			cmd.Flags().VisitAll(func(f *pflag.Flag) {
				name := "--" + f.Name
				if f.Shorthand != "" {
					name = "-" + f.Shorthand + ", " + name
				}
				if got := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + `( |$)`).MatchString(options); got == f.Hidden {
					t.Errorf("OPTIONS has %s: %v, want %v:\n%s", name, got, !f.Hidden, options)
				}
			})
			examples := section(text, "EXAMPLES")
			for line := range strings.Lines(cmd.Example) {
				if line = strings.TrimSpace(line); !strings.Contains(examples, line) {
					t.Errorf("EXAMPLES has no %q:\n%s", line, examples)
				}
			}
			status := section(text, "EXIT STATUS")
			for _, code := range codes {
				want := code != "1" || slices.Contains(mayBeNo, strings.TrimPrefix(cmd.CommandPath(), "porthole "))
				if got := regexp.MustCompile(`(?m)^` + code + ` `).MatchString(status); got != want {
					t.Errorf("EXIT STATUS has code %s: %v, want %v, as docs/json.md:\n%s", code, got, want, status)
				}
			}
		})
		for _, c := range cmd.Commands() {
			check(c)
		}
	}
	root := newRoot(&env{unasked: true})
	check(root)
	made, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range made {
		if !slices.Contains(pages, file.Name()) {
			t.Errorf("%s is of no command", file.Name())
		}
	}
}

// documentedExitCodes are the exit codes of docs/json.md, and the commands that it says end with 1.
func documentedExitCodes(t *testing.T) (codes, mayBeNo []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n## Exit codes\n")
	rest, _, _ = strings.Cut(rest, "\n## ")
	for _, row := range regexp.MustCompile(`(?m)^\| (\d) \| (.*) \|$`).FindAllStringSubmatch(rest, -1) {
		codes = append(codes, row[1])
		if row[1] == "1" {
			for _, name := range regexp.MustCompile("`([a-z]+(?: [a-z]+)?)[ `]").FindAllStringSubmatch(row[2], -1) {
				mayBeNo = append(mayBeNo, name[1])
			}
		}
	}
	if len(codes) != 4 || len(mayBeNo) == 0 {
		t.Fatalf("docs/json.md has the exit codes %q, %q end with 1", codes, mayBeNo)
	}
	return codes, mayBeNo
}

// manText is what man shows of a page, without warnings.
func manText(t *testing.T, page string) string {
	t.Helper()
	var text, warnings bytes.Buffer
	for _, argv := range [][]string{
		{"man", "--warnings", "-E", "UTF-8", "-l", page},
		{"mandoc", "-T", "lint", "-W", "warning", page},
	} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "MANWIDTH=500", "MAN_KEEP_FORMATTING=", "PAGER=cat")
		cmd.Stdout, cmd.Stderr = &text, &warnings
		if argv[0] == "mandoc" {
			cmd.Stdout = &warnings // it says on stdout what it has found
		}
		if err := cmd.Run(); err != nil {
			fmt.Fprintf(&warnings, "%v: %v\n", cmd, err)
		}
	}
	if warnings.Len() > 0 {
		t.Errorf("man and mandoc warn:\n%s", warnings.String())
	}
	return text.String()
}

// section is the text of one section of a page, without its indentation.
func section(text, title string) string {
	_, rest, _ := strings.Cut(text, "\n"+title+"\n")
	var lines []string
	for line := range strings.Lines(rest) {
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, " ") {
			break
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	return strings.Join(lines, "\n")
}
