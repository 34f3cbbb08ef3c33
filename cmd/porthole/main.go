// Command porthole shows who holds every TCP and UDP port of a Linux machine,
// live, in every network namespace.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

// version is set by the linker.
var version = "unknown"

// The exit codes are a contract.
const (
	exitDone  = 0
	exitNo    = 1 // the answer is no
	exitUsage = 2 // wrong usage
	exitCant  = 3 // not permitted, or not supported here; and whatever else went wrong
)

// env is what a command may touch of the world.
type env struct {
	args           []string // of the command line, the command first
	stdout, stderr io.Writer
	style          render.Style // of stdout
	errStyle       render.Style // of stderr
	width          func() int   // columns that stdout has now; nil: it is no terminal
	alone          bool         // the process is for this one command: it may give up what the command has no use for
	gentle         *gentleness  // see untilSignal; nil: no signal is waited for
	unasked        bool         // an agent whose socket is not named is asked only where the kernel may not be: a test is of its own agents
}

// errNo ends a command whose answer is no: it has been printed already.
var errNo = errors.New("no")

// usageError is wrong input: nothing was started.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// runAlone is run in a process of its own.
func runAlone(e *env, args []string) int {
	// A reader that goes away is seen as an error of the write, not a signal.
	signal.Ignore(syscall.SIGPIPE)
	e.alone, e.gentle = true, new(gentleness)
	e.style, e.errStyle = styleOf(os.Stdout), styleOf(os.Stderr)
	e.stdout, e.stderr = os.Stdout, os.Stderr
	if e.style.Width > 0 {
		e.width = func() int { return widthOf(os.Stdout) }
	}
	return run(untilSignal(e.gentle), e, args)
}

// notes is stderr, for sentences.
func (e *env) notes() io.Writer { return e.errStyle.Wrapper(e.stderr) }

// styleOf is how text may look in a file.
func styleOf(f *os.File) render.Style {
	if !term.IsTerminal(int(f.Fd())) {
		return render.Style{}
	}
	return render.Style{Color: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb", Width: widthOf(f)}
}

// widthOf is how many columns a terminal has; of one that does not say, 80.
func widthOf(f *os.File) int {
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		return 80
	}
	return width
}

// addWide declares --wide.
func addWide(cmd *cobra.Command, wide *bool) {
	cmd.Flags().BoolVar(wide, "wide", false, "cut nothing to fit the terminal")
}

// wideOr is a style that cuts nothing if that is wanted.
func wideOr(style render.Style, wide bool) render.Style {
	if wide {
		style.Width = 0
	}
	return style
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, e *env, args []string) int {
	root := newRoot(e)
	if len(args) > 0 && args[0] == cobra.ShellCompRequestCmd {
		unquoteUsage(root)
	}
	args, err := translate(e, root, hostFirst(args))
	if err == nil {
		e.args = args
		root.SetArgs(args)
		err = root.ExecuteContext(ctx)
	}
	return ended(e, err)
}

// ended says why a command failed, and returns its exit code.
func ended(e *env, err error) int {
	var usage usageError
	var wrong *query.Wrong
	var exit exitError
	var start startError
	var signal signaled
	tell := func(prefix string) { fmt.Fprintf(e.notes(), "porthole: %s%s\n", prefix, safeLines(err)) }
	switch {
	case errors.As(err, &signal):
		die(syscall.Signal(signal))
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &start):
		tell("")
		return start.exitCode()
	case err == nil, errors.Is(err, syscall.EPIPE):
		return exitDone
	case errors.Is(err, errNo):
		return exitNo
	case errors.As(err, &usage):
		tell("")
		return exitUsage
	case errors.As(err, &wrong):
		flag := ""
		if wrong.Param {
			flag = "--"
		}
		tell(flag)
		return exitUsage
	}
	tell("")
	for _, hint := range hints(err) {
		fmt.Fprintf(e.notes(), "  %s\n", hint)
	}
	return exitCant
}

// translate says in words of ours what was typed by habit from other tools.
func translate(e *env, root *cobra.Command, args []string) ([]string, error) {
	if len(args) == 0 || args[0] != "ls" {
		return args, nil
	}
	ls, _, err := root.Find([]string{"ls"})
	if err != nil {
		return nil, err
	}
	words, note, err := fromHabit(ls, args[1:])
	if err == nil {
		tellNote(e, note)
	}
	return append([]string{"ls"}, words...), err
}

// safeLines is the text of an error, whatever names it has, as a terminal may show it.
func safeLines(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		lines[i] = identity.Safe(line)
	}
	return strings.Join(lines, "\n")
}

// hints says what a person can do about an error.
func hints(err error) []string {
	switch {
	case errors.Is(err, tracer.ErrUserNamespace):
		return []string{
			"run it outside of the user namespace, as root of the host; a rootless container cannot trace",
			"or query an agent of the host: mount its socket, and join group porthole there",
		}
	case errors.Is(err, tracer.ErrFiltered):
		return []string{
			"run the container with --security-opt seccomp=unconfined: its runtime lets nobody use bpf(), or only who has CAP_SYS_ADMIN",
			"or query an agent of the host: mount its socket, and join group porthole there",
		}
	case errors.Is(err, tracer.ErrNotPermitted):
		return []string{
			"run it as root: sudo porthole ...",
			"or give the binary what it needs:",
			"  sudo setcap cap_bpf,cap_perfmon,cap_net_admin,cap_dac_read_search+ep \\", // whole where lines are folded, to be pasted
			"    $(command -v porthole)",
			"or query an agent: start it as root, sudo porthole agent, and join group porthole",
			"if you are root already, a container or the kernel's lockdown may forbid it",
		}
	case errors.Is(err, syscall.EMFILE):
		return []string{"let it open more files: ulimit -n, or LimitNOFILE= of the systemd unit"}
	case errors.Is(err, syscall.ENOMEM):
		return []string{"let it use more memory, MemoryMax= of the systemd unit: an agent takes some 100 MB"}
	case errors.Is(err, source.ErrSilent):
		return []string{
			"see whether it is stopped (STAT T): ps -C porthole -o pid,stat,args; then kill -CONT its pid, or restart it",
			"as root you can query the kernel instead: --local",
		}
	case errors.Is(err, tracer.ErrNotSupported):
		return []string{"porthole doctor says what this machine lacks"}
	}
	return nil
}

func newRoot(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "porthole",
		Short: "Who holds every TCP and UDP port of this machine",
		Long: "porthole shows who holds every TCP and UDP port of this machine, in every\n" +
			"network namespace, and every bind, listen, connect, accept and close as it\n" +
			"happens.",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q%s; see porthole --help", args[0], meantCommand(cmd, args[0]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(newTail(e), newLs(e), newWho(e), newHeadroom(e), newCheck(e), newWait(e), newRun(e), newFree(e), newHistory(e), newDiff(e), newPolicy(e), newTop(e), newAgent(e), newDoctor(e), newVersion(e))
	addHost(root, e)
	refuseUnknown(root)
	fitHelp(root, e.style)
	return root
}

// meantCommand asks whether another command was meant.
func meantCommand(root *cobra.Command, word string) string {
	if meant := map[string]string{
		"ss": "ls", "netstat": "ls", "lsof": "ls", "list": "ls", "show": "ls", "ps": "ls", "sockets": "ls",
		"fuser": "who", "port": "who", "whois": "who", "kill": "who",
		"watch": "tail", "follow": "tail", "monitor": "tail", "events": "tail", "trace": "tail", "log": "tail", "logs": "tail",
		"nc": "check", "ping": "check", "probe": "check", "connect": "check", "bind": "check", "test": "check",
		"exec": "run", "daemon": "agent", "serve": "agent", "status": "doctor", "compare": "diff",
	}[strings.ToLower(word)]; meant != "" {
		if c, _, err := root.Find([]string{meant}); err == nil && c != root {
			return fmt.Sprintf("; did you mean %s?", meant)
		}
	}
	if _, err := query.ParseEndsWord(word); err == nil && strings.ContainsAny(word, "0123456789:/") {
		return fmt.Sprintf("; did you mean who %s?", identity.Safe(word))
	}
	var names []string
	for _, cmd := range root.Commands() {
		names = append(names, cmd.Name())
	}
	return query.Meant(word, names)
}

// flagError names the value of a flag and what is accepted.
func flagError(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		meant := ""
		var unknown *pflag.NotExistError
		if errors.As(err, &unknown) && len(unknown.GetSpecifiedName()) > 1 {
			var flags []string
			cmd.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, "--"+f.Name) })
			meant = query.Meant("--"+unknown.GetSpecifiedName(), flags)
		} else if unknown != nil && !cmd.HasParent() {
			meant = fmt.Sprintf("; did you mean ls -%s?", identity.Safe(unknown.GetSpecifiedShortnames()))
		}
		return usagef("%s%s; see %s --help", identity.Safe(err.Error()), meant, cmd.CommandPath())
	}
	want := map[string]string{
		"uint64": "a number from 0 up", "duration": "a time, as 90s or 5m", "bool": "true or false",
		"tier": "one of fentry, tracepoint, auto", "int": "a number from 0 up",
	}[invalid.GetFlag().Value.Type()]
	if want == "" {
		want = "another value"
	}
	return usagef("--%s: %q: want %s; see %s --help", invalid.GetFlag().Name, invalid.GetValue(), want, cmd.CommandPath())
}

// refuseUnknown makes cobra's own commands fail on what they do not know, instead
// of showing help as if that had been asked for.
func refuseUnknown(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				if found, _, err := root.Find(args); err != nil || found == root && len(args) > 0 {
					return usagef("unknown command %q; see porthole --help", strings.Join(args, " "))
				}
				return nil
			}
		case "completion":
			cmd.Args = func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return usagef("shell %q: want one of bash, fish, powershell, zsh", args[0])
				}
				return nil
			}
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
}

// noArgs refuses positional arguments as wrong usage.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q; see %s --help", args[0], cmd.CommandPath())
	}
	return nil
}

// tellView says on stderr what is not seen, one sentence each.
func tellView(e *env, notSeen []string) {
	for _, s := range notSeen {
		fmt.Fprintf(e.notes(), "porthole: %s\n", s)
	}
}

// tellPIDs says whose process numbers are shown, where they are not those of this
// process's namespace: as of source.Source.
func tellPIDs(whose string, to io.Writer) {
	if whose != "" {
		fmt.Fprintf(to, "porthole: %s\n", whose)
	}
}
