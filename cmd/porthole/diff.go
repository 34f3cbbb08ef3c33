package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

type diffOptions struct {
	agent    agentOptions
	jsonRows bool
}

func newDiff(e *env) *cobra.Command {
	var o diffOptions
	cmd := &cobra.Command{
		Use:   "diff BEFORE [AFTER]",
		Short: "Say what listens now that did not before, and the reverse",
		Long: "Compare two files written by ls --json, or one with what is there now; - is\n" +
			"standard input. Only sockets that wait for others are compared: TCP listeners,\n" +
			"and UDP sockets without a peer. They are matched by protocol, address, port,\n" +
			"device, program and unit, container or pod, never by pid: a restarted service is\n" +
			"the same. Exits with 1 when they differ.",
		Example: "  porthole ls --json > before\n" +
			"  porthole diff before\n" +
			"  ssh web1 porthole ls --json | porthole diff before -",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return usagef("want one or two files of ls --json; see %s --help", cmd.CommandPath())
			}
			if len(args) == 2 && args[0] == "-" && args[1] == "-" {
				return usagef("%q: want the standard input once", "-")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runDiff(cmd.Context(), e, &o, args) },
	}
	cmd.Flags().BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	o.agent.add(cmd)
	return cmd
}

// diffRow is a difference, in JSON.
type diffRow struct {
	Change string `json:"change"` // added or removed
	listening
	NetNS   uint32 `json:"netns,omitempty"`
	Sockets int    `json:"sockets"` // so many more, or fewer

	space string // what its network namespace is called; "": that says nothing
}

// listeners are how many sockets there are of each kind in each network namespace.
type listeners struct {
	kinds  map[listening]map[uint32]int
	spaces map[uint32]uint64 // the cookies of all network namespaces that there are
	names  *identity.Names   // what these are called; nil: not known, as of a file, which may be another machine's
}

func newListeners() *listeners {
	return &listeners{kinds: make(map[listening]map[uint32]int), spaces: make(map[uint32]uint64)}
}

// listening is what listens, without what differs each time it is started.
type listening struct {
	Proto     string     `json:"proto"`
	LocalIP   netip.Addr `json:"local_ip"`
	LocalPort uint16     `json:"local_port"`
	V6Only    bool       `json:"v6_only,omitempty"`
	Device    string     `json:"device,omitempty"`
	Comm      string     `json:"comm,omitempty"`
	Unit      string     `json:"unit,omitempty"`
	Container string     `json:"container,omitempty"`
	Pod       string     `json:"pod,omitempty"`
}

func runDiff(ctx context.Context, e *env, o *diffOptions, files []string) error {
	before, err := listeningIn(files[0])
	if err != nil {
		return err
	}
	var after *listeners
	if len(files) == 2 {
		after, err = listeningIn(files[1])
	} else {
		after, err = listeningNow(ctx, e, o)
	}
	if err != nil {
		return err
	}
	if after.names != nil {
		defer after.names.Cgroups.Close()
	}
	rows := differences(before, after)
	if !o.jsonRows {
		nameSpaces(rows, before, after)
	}
	for i := range rows {
		if o.jsonRows {
			err = render.WriteJSON(e.stdout, &rows[i])
		} else {
			_, err = fmt.Fprintln(e.style.Wrapper(e.stdout), rows[i].text(e.style))
		}
		if err != nil {
			return err
		}
	}
	if len(rows) > 0 {
		return errNo
	}
	return nil
}

// nameSpaces says where rows are whose container or pod does not say it: by the names that network
// namespaces have now, else by number.
func nameSpaces(rows []diffRow, before, after *listeners) {
	if len(before.spaces) <= 1 && len(after.spaces) <= 1 {
		return
	}
	names := after.names
	for i := range rows {
		r := &rows[i]
		cookie, exists := after.spaces[r.NetNS]
		switch {
		case r.Pod != "" || r.Container != "":
		case names == nil || !exists:
			r.space = strconv.FormatUint(uint64(r.NetNS), 10)
		case !names.NetNS.IsHost(identity.NetNS{Inode: r.NetNS}):
			r.space = names.NetNSName(identity.NetNS{Inode: r.NetNS, Cookie: cookie}, time.Now())
		}
	}
}

// listeningIn reads a file of ls --json.
func listeningIn(name string) (*listeners, error) {
	in := io.Reader(os.Stdin)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	all, n := newListeners(), 0
	for dec := json.NewDecoder(in); ; {
		var row render.Socket
		err := dec.Decode(&row)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err == nil && (row.Proto == "" || row.LocalPort == 0) {
			err = errors.New("no socket")
		}
		if err != nil {
			return nil, usagef("%s: line %d: want what ls --json writes: %w", identity.Safe(name), n+1, err)
		}
		n++
		all.add(&row)
	}
}

func listeningNow(ctx context.Context, e *env, o *diffOptions) (*listeners, error) {
	src, err := openWhole(e, &o.agent) // else what cannot be seen would be told as removed
	if err != nil {
		return nil, err
	}
	tellView(e, src.PartialView())
	rows, _, err := socketRows(ctx, e, src, query.Values{"listening": {"true"}})
	if err != nil {
		return nil, err
	}
	all := newListeners()
	for i := range rows {
		all.add(&rows[i])
	}
	all.names, err = src.Names(ctx)
	return all, err
}

// asJSON is a text as a file has it: what is no UTF-8 is replaced there.
func asJSON(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}

// add counts a socket, if it waits for others to begin.
func (all *listeners) add(s *render.Socket) {
	all.spaces[s.NetNS] = s.Cookie
	udp := s.Proto == tracer.UDP.String() && s.State == tracer.StateUnconn.String()
	if s.State != tracer.StateListen.String() && !udp {
		return
	}
	l := kindOf(s)
	if all.kinds[l] == nil {
		all.kinds[l] = make(map[uint32]int)
	}
	all.kinds[l][s.NetNS]++
}

// kindOf is a socket without what differs each time it is made.
func kindOf(s *render.Socket) listening {
	l := listening{Proto: s.Proto, LocalIP: s.LocalIP, LocalPort: s.LocalPort, V6Only: s.V6Only, Device: s.Device}
	if len(s.Holders) > 0 {
		l.Comm = asJSON(s.Holders[0].Comm)
	}
	switch {
	case s.Pod != nil:
		l.Pod, l.Container = asJSON(s.Pod.Namespace+"/"+s.Pod.Name), asJSON(s.Pod.Container)
	case s.Container != nil:
		l.Container = asJSON(cmp.Or(s.Container.Name, s.Container.ID))
	case !strings.HasSuffix(s.Unit, ".scope"): // one is made each time
		l.Unit = asJSON(s.Unit)
	}
	return l
}

// differences are ordered by port, then by what was before what is.
func differences(before, after *listeners) []diffRow {
	var rows []diffRow
	row := func(l listening, netns uint32, more int) {
		switch {
		case more > 0:
			rows = append(rows, diffRow{Change: "added", listening: l, NetNS: netns, Sockets: more})
		case more < 0:
			rows = append(rows, diffRow{Change: "removed", listening: l, NetNS: netns, Sockets: -more})
		}
	}
	kinds := maps.Clone(after.kinds)
	maps.Copy(kinds, before.kinds)
	for l := range kinds {
		was, is := before.kinds[l], after.kinds[l]
		for netns, n := range was {
			if _, there := after.spaces[netns]; there {
				row(l, netns, is[netns]-n)
			}
		}
		for netns, n := range is {
			if _, there := before.spaces[netns]; there && was[netns] == 0 {
				row(l, netns, n)
			}
		}
		gone, come := only(was, after.spaces), only(is, before.spaces)
		for i := range max(len(gone), len(come)) {
			switch {
			case i >= len(come):
				row(l, gone[i], -was[gone[i]])
			case i >= len(gone):
				row(l, come[i], is[come[i]])
			default: // the same under another number
				row(l, come[i], is[come[i]]-was[gone[i]])
			}
		}
	}
	slices.SortFunc(rows, func(a, b diffRow) int {
		return cmp.Or(cmp.Compare(a.LocalPort, b.LocalPort), cmp.Compare(a.Proto, b.Proto), a.LocalIP.Compare(b.LocalIP),
			-cmp.Compare(a.Change, b.Change), cmp.Compare(fmt.Sprint(a.listening), fmt.Sprint(b.listening)), cmp.Compare(a.NetNS, b.NetNS))
	})
	return rows
}

// only are the namespaces that the other file does not have, in an order that pairs those with as many
// sockets.
func only(counts map[uint32]int, other map[uint32]uint64) []uint32 {
	var out []uint32
	for netns := range counts {
		if _, there := other[netns]; !there {
			out = append(out, netns)
		}
	}
	slices.SortFunc(out, func(a, b uint32) int { return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b)) })
	return out
}

func (r *diffRow) text(style render.Style) string {
	sign := map[string]string{"added": "+", "removed": "-"}[r.Change]
	at := netip.AddrPortFrom(r.LocalIP, r.LocalPort).String()
	if r.LocalIP == netip.IPv6Unspecified() && !r.V6Only {
		at = fmt.Sprintf("*:%d", r.LocalPort)
	}
	if r.Device != "" {
		at += "%" + r.Device
	}
	line := fmt.Sprintf("%s %s %s  %s", sign, r.Proto, at, identity.Safe(cmp.Or(r.Comm, "-")))
	if where := cmp.Or(r.Pod, r.Container, r.Unit); where != "" {
		line += " (" + identity.Safe(where) + ")"
	}
	if r.Sockets > 1 {
		line += fmt.Sprintf("  %d sockets", r.Sockets)
	}
	if r.space != "" {
		line += "  netns=" + r.space
	}
	if r.Change == "added" {
		return style.Bold(line)
	}
	return line
}
