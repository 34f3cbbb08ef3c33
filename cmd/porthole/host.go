package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
)

// hostFlag is the flag of the machine that a command is run on, by ssh.
const hostFlag = "host"

// addHost gives --host to every command that answers a question. run is not among them: what it runs would
// be the other machine's command, and ssh does that.
func addHost(cmd *cobra.Command, e *env) {
	for _, sub := range cmd.Commands() {
		addHost(sub, e)
	}
	if name := cmd.Name(); cmd.HasSubCommands() || name == "agent" || name == "run" {
		return
	}
	cmd.Flags().String(hostFlag, "", "run it on `HOST` (as ssh takes it, such as root@web1) with your rights there")
	_ = cmd.RegisterFlagCompletionFunc(hostFlag, completed(func(*cobra.Command) []string { return knownHosts() })) // fails only for a flag that does not exist
	here := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed(hostFlag) {
			return here(cmd, args)
		}
		return onHost(cmd, e, args)
	}
}

// hostFirst moves --host behind the command where it is typed before it.
func hostFirst(args []string) []string {
	switch {
	case len(args) > 2 && args[0] == "--"+hostFlag:
		return append([]string{args[2], args[0], args[1]}, args[3:]...)
	case len(args) > 1 && strings.HasPrefix(args[0], "--"+hostFlag+"="):
		return append([]string{args[1], args[0]}, args[2:]...)
	}
	return args
}

// hostName matches what may be a destination of ssh: what a shell makes something of, which the commands of
// ssh_config(5) are given to, does not belong there, nor does an option.
var hostName = regexp.MustCompile(`^[\pL\pN:\[_.][\pL\pN:\[\]_.@%/+-]*$`)

// onHost runs a command on the machine that --host names.
func onHost(cmd *cobra.Command, e *env, args []string) error {
	host := cmd.Flag(hostFlag).Value.String()
	if !hostName.MatchString(host) {
		if strings.Contains(host, ",") {
			return usagef("--host: %q: want one machine; of several ask each", host)
		}
		return usagef("--host: %q: want what ssh takes, as web1, root@web1 or ssh://root@web1:2222", host)
	}
	ask := &remoteCommand{host: host}
	if err := ask.read(cmd, e, args); err != nil {
		return err
	}
	defer ask.close()
	return ask.run(cmd.Context(), e)
}

// remoteCommand is a command line for another machine.
type remoteCommand struct {
	host  string
	words []string
	stdin io.Reader // nil: it reads nothing
	file  *os.File  // that stdin is, if it is to be closed
	tty   bool      // it has a terminal there
}

// read takes the command as typed, but for --host. Files are this machine's: they become its standard input.
func (c *remoteCommand) read(cmd *cobra.Command, e *env, args []string) error {
	_, rest, err := cmd.Root().Find(e.args)
	if err != nil {
		return err
	}
	c.words = strings.Fields(cmd.CommandPath())
	flags := cmd.Flags()
	err = flags.ParseAll(rest, func(flag *pflag.Flag, value string) error {
		if flag.Name != hostFlag {
			c.words = append(c.words, "--"+flag.Name+"="+value)
		}
		return nil
	})
	if err != nil {
		return err
	}
	switch cmd.CommandPath() {
	case "porthole top":
		if _, _, err := terminals(e); err != nil {
			return err
		}
		c.tty = true
	case "porthole diff":
		if len(args) == 2 {
			return usagef("--host: not with two files, which are compared without a machine")
		}
		args, err = c.send(args, func(name string) error { _, err := listeningIn(name); return err })
	case "porthole policy check":
		args, err = c.send(args, func(name string) error { _, err := readPolicy(name); return err })
	case "porthole free":
		if flags.Changed("hold") {
			return usagef("--hold: not with --host: to run a command there, ssh %s porthole free --hold -- COMMAND", c.host)
		}
	}
	if err != nil {
		return err
	}
	if onTerminal := isTerminal(os.Stdin) && isTerminal(e.stdout) && isTerminal(e.stderr); onTerminal && c.stdin == nil {
		c.tty = true // it fits and colors what it writes, and has Ctrl-C itself
	}
	if at := flags.ArgsLenAtDash(); at >= 0 {
		args = slices.Insert(slices.Clone(args), at, "--")
	}
	c.words = append(c.words, args...)
	return nil
}

// send has a file read there as standard input, after it was read here once: what is wrong with it is said by
// its name.
func (c *remoteCommand) send(args []string, check func(name string) error) ([]string, error) {
	name := args[0]
	c.stdin = os.Stdin
	if name == "-" {
		return args, nil
	}
	if err := check(name); err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	c.stdin, c.file = f, f
	return []string{"-"}, nil
}

func (c *remoteCommand) close() {
	if c.file != nil {
		c.file.Close()
	}
}

// isTerminal tells whether an output is a terminal.
func isTerminal(out any) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// line is the command for a shell.
func (c *remoteCommand) line() string {
	words := c.words
	if c.tty && os.Getenv("NO_COLOR") != "" { // which ssh does not pass on
		words = append([]string{"env", "NO_COLOR=1"}, words...)
	}
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = render.ShellWord(word)
	}
	return strings.Join(quoted, " ")
}

// Exit codes that are not porthole's: of a shell that finds no command or may not run it, and of ssh.
const (
	exitNotRunnable = 126
	exitNotFound    = 127
	exitSSH         = 255
)

// signalWithin is how long it may take until a signal that has ended ssh is read here.
const signalWithin = 500 * time.Millisecond

// run runs ssh, which has this process's own outputs. Nothing that its configuration opens besides, as
// forwarded ports, is opened for it.
func (c *remoteCommand) run(ctx context.Context, e *env) error {
	args := []string{"-a", "-x", "-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none"}
	if c.tty {
		args = append(args, "-t", "-o", "LogLevel=ERROR") // else it says at the end that the connection is closed
	} else {
		args = append(args, "-T")
	}
	ssh := exec.CommandContext(ctx, "ssh", append(args, "--", c.host, c.line())...)
	ssh.Stdin, ssh.Stdout, ssh.Stderr = c.stdin, e.stdout, e.stderr
	if c.tty {
		ssh.Stdin = os.Stdin
	}
	ssh.Cancel = func() error { return ssh.Process.Signal(syscall.SIGTERM) }
	ssh.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // a signal ends this process at once
	runtime.LockOSThread()                                             // whose end would be taken for that of the process
	defer runtime.UnlockOSThread()
	err := ssh.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("--host takes ssh, Debian's package openssh-client: %w", err)
	case !errors.As(err, &exit):
		return fmt.Errorf("run ssh: %w", err)
	}
	code := exit.ExitCode()
	if code == exitSSH || code == -1 { // as after Ctrl-C, which is for both: then the signal ends this too
		time.Sleep(signalWithin)
	}
	switch code {
	case exitNotFound, exitNotRunnable:
		return fmt.Errorf("%s: porthole cannot be run there: install it, or put it into the PATH that commands of ssh have (ssh %[1]s 'echo $PATH')", identity.Safe(c.host))
	case exitSSH:
		return fmt.Errorf("%s: ssh did not reach it, or the connection was lost", identity.Safe(c.host))
	case -1:
		return fmt.Errorf("%s: ssh was ended: %w", identity.Safe(c.host), exit)
	default:
		return exitError(code)
	}
}

// knownHosts are the machines that the user's files of ssh name.
func knownHosts() (hosts []string) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil
	}
	config, _ := os.ReadFile(home + "/.ssh/config") // there may be none
	for line := range strings.Lines(string(config)) {
		words := strings.Fields(line)
		if len(words) < 2 || !strings.EqualFold(words[0], "host") {
			continue
		}
		for _, name := range words[1:] {
			if !strings.ContainsAny(name, "*?!\"") {
				hosts = append(hosts, name)
			}
		}
	}
	known, _ := os.ReadFile(home + "/.ssh/known_hosts")
	for line := range strings.Lines(string(known)) {
		names, _, _ := strings.Cut(line, " ")
		for name := range strings.SplitSeq(strings.TrimSpace(names), ",") {
			if name != "" && !strings.ContainsAny(name, "#@|[*?!") { // comments, marks, hashes, ports, patterns
				hosts = append(hosts, name)
			}
		}
	}
	return hosts
}
