package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/policy"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

type policyOptions struct {
	agent    agentOptions
	jsonRows bool
}

func newPolicy(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Compare what listens with a list of what may",
		Long:  "Compare what listens with a list of what may. docs/policy.md describes the file.",
		Example: "  porthole policy init > policy.yml\n" +
			"  porthole policy check policy.yml",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q: want check or init; see %s --help", args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPolicyCheck(e), newPolicyInit(e))
	return cmd
}

func newPolicyCheck(e *env) *cobra.Command {
	var o policyOptions
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say what listens that the list does not allow",
		Long: "Say which listeners no rule of a file allows, who they are, since when, and how\n" +
			"to stop them. Listeners are listening TCP sockets, and UDP sockets without a\n" +
			"peer that were bound to a port by its number, in every network namespace. The\n" +
			"file - is standard input. Exits with 1 when any listener is not allowed.",
		Example: "  porthole policy check policy.yml\n" +
			"  porthole policy check policy.yml --json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("want a file, as policy.yml; see %s --help", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runPolicyCheck(cmd.Context(), e, &o, args[0]) },
	}
	cmd.Flags().BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	o.agent.add(cmd)
	return cmd
}

func newPolicyInit(e *env) *cobra.Command {
	var o policyOptions
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a list of what listens now, to start from",
		Long: "Write a policy that allows what listens now, with a rule for each port of each\n" +
			"program. Read and narrow it: names of pods, for example, change with each\n" +
			"rollout.",
		Example: "  porthole policy init > policy.yml",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runPolicyInit(cmd.Context(), e, &o) },
	}
	o.agent.add(cmd)
	return cmd
}

// violation is a listener that no rule allows, in JSON.
type violation struct {
	Rule     string        `json:"rule"`
	Reason   string        `json:"reason"`
	Exposure string        `json:"exposure"`
	Stop     []string      `json:"stop,omitempty"`
	Socket   render.Socket `json:"socket"`
}

// readPolicy reads a file, - is standard input; what is wrong with it is wrong usage.
func readPolicy(name string) (*policy.Policy, error) {
	if name == "-" {
		p, err := policy.Parse(os.Stdin)
		if err != nil {
			return nil, usagef("standard input: %w", err)
		}
		return p, nil
	}
	p, err := policy.Read(name)
	var unread *fs.PathError
	if err != nil && !errors.As(err, &unread) {
		return nil, usagef("%w", err)
	}
	return p, err
}

func runPolicyCheck(ctx context.Context, e *env, o *policyOptions, file string) error {
	allowed, err := readPolicy(file)
	if err != nil {
		return err
	}
	if name := allowed.NamedUser(); name != "" && o.agent.far.URL != "" {
		return usagef("%s: uid: %q: want a number with --%s: the names of users are those of this machine", identity.Safe(file), name, urlFlag)
	}
	src, err := openWhole(e, &o.agent) // what cannot be seen cannot be allowed
	if err != nil {
		return err
	}
	rows, err := listenersNow(ctx, e, src)
	if err != nil {
		return err
	}
	names, err := src.Names(ctx)
	if err != nil {
		return err
	}
	defer names.Cgroups.Close()
	var found []violation
	for i := range rows {
		s := &rows[i]
		l := policy.Of(&s.Socket, s.exposed)
		ok, rule, why := allowed.Check(&l)
		if !ok {
			found = append(found, violation{rule, why, l.Exposure(), render.New(names).StopCommands(&s.Socket), s.Socket})
		}
	}
	for i := range found {
		if o.jsonRows {
			err = render.WriteJSON(e.stdout, &found[i])
		} else {
			_, err = e.style.Wrapper(e.stdout).Write(found[i].text(src.Elsewhere()))
		}
		if err != nil {
			return err
		}
	}
	if len(found) > 0 {
		return errNo
	}
	return nil
}

// openListener is a socket that others can begin to talk to.
type openListener struct {
	render.Socket
	exposed bool
}

// listenersNow are those of every namespace, ordered by port.
func listenersNow(ctx context.Context, e *env, src source.Source) ([]openListener, error) {
	tellView(e, src.PartialView())
	all, _, err := socketRows(ctx, e, src, query.Values{"listening": {"true"}})
	if err != nil {
		return nil, err
	}
	reached, _, err := socketRows(ctx, e, src, query.Values{"exposed": {"true"}})
	if err != nil {
		return nil, err
	}
	exposed := make(map[string]bool)
	for i := range reached {
		exposed[socketKey(&reached[i])] = true
	}
	var out []openListener
	for i := range all {
		s := &all[i]
		if s.State == tracer.StateListen.String() || s.FixedPort {
			out = append(out, openListener{*s, exposed[socketKey(s)]})
		}
	}
	slices.SortStableFunc(out, func(a, b openListener) int {
		return cmp.Or(cmp.Compare(a.LocalPort, b.LocalPort), cmp.Compare(a.Proto, b.Proto), a.LocalIP.Compare(b.LocalIP))
	})
	return out, nil
}

// socketKey tells the sockets of two answers apart.
func socketKey(s *render.Socket) string {
	return fmt.Sprint(s.Proto, s.LocalIP, s.LocalPort, s.Device, s.Index, s.NetNS, s.Cookie, s.Inode)
}

// text says a violation in words; elsewhere is where it is, if not here.
func (v *violation) text(elsewhere string) []byte {
	s := &v.Socket
	var b bytes.Buffer
	rule := ""
	if v.Rule != policy.None {
		rule = "rule " + identity.Safe(v.Rule) + ": "
	}
	fmt.Fprintf(&b, "%d/%s on %s, %s: not allowed: %s%s\n", s.LocalPort, s.Proto, s.Host(), v.Exposure, rule, v.Reason)
	who := "no process that is seen here holds it"
	if len(s.Holders) > 0 {
		who = fmt.Sprintf("%s (pid %d)", identity.Safe(s.Holders[0].Comm), s.Holders[0].PID)
		if label := s.Place.Label(); label != "" {
			who += " of " + identity.Safe(label)
		}
	}
	since := "since before porthole looked"
	if !s.Since.IsZero() {
		since = "since " + s.Since.Local().Format("2006-01-02 15:04:05")
	}
	fmt.Fprintf(&b, "  %s, %s\n", who, since)
	if len(v.Stop) > 0 {
		where := ""
		if elsewhere != "" {
			where = ", on " + elsewhere
		}
		fmt.Fprintf(&b, "  stop it%s: %s\n", where, strings.Join(v.Stop, "; "))
	}
	return b.Bytes()
}

func runPolicyInit(ctx context.Context, e *env, o *policyOptions) error {
	src, err := openWhole(e, &o.agent) // what is not seen would not be allowed
	if err != nil {
		return err
	}
	rows, err := listenersNow(ctx, e, src)
	if err != nil {
		return err
	}
	var of []policy.Listener
	for i := range rows {
		of = append(of, policy.Of(&rows[i].Socket, rows[i].exposed))
	}
	return policy.Write(e.stdout, of)
}
