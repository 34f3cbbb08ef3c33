package main

import (
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
)

// completeWithin is how long who presses a key waits at most; then nothing is offered.
const completeWithin = 500 * time.Millisecond

// completed offers the words that list finds in time and that begin as what was typed. A word may be
// followed by a tab and a description. No file names are offered.
func completed(list func(cmd *cobra.Command) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		if cmd.Flags().Changed(hostFlag) || cmd.Flags().Changed(urlFlag) { // what is here is not there
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		found := make(chan []string, 1)
		go func() { found <- list(cmd) }() // which may hang, and ends with the process
		var words []string
		select {
		case words = <-found:
		case <-time.After(completeWithin):
		}
		words = slices.DeleteFunc(words, func(w string) bool {
			return !strings.HasPrefix(w, typed) || identity.Safe(w) != w && !strings.Contains(w, "\t")
		})
		slices.SortFunc(words, compareWords)
		return slices.Compact(words), cobra.ShellCompDirectiveNoFileComp
	}
}

// compareWords has numbers in their order.
func compareWords(a, b string) int {
	if len(a) > 0 && len(b) > 0 && a[0] >= '0' && a[0] <= '9' && b[0] >= '0' && b[0] <= '9' {
		x, _, _ := strings.Cut(a, "\t")
		y, _, _ := strings.Cut(b, "\t")
		if len(x) != len(y) {
			return len(x) - len(y)
		}
	}
	return strings.Compare(a, b)
}

// described is a word and what it is.
func described(word, what string) string {
	if what = identity.Safe(what); what == "" {
		return word
	}
	return word + "\t" + what
}

// completePorts offers the ports that somebody listens on.
func completePorts(e *env, o *agentOptions) cobra.CompletionFunc {
	return completed(func(cmd *cobra.Command) []string {
		quiet := *e
		quiet.stderr = io.Discard
		choice := *o
		choice.within = completeWithin
		src, err := openSource(&quiet, &choice)
		if err != nil {
			return nil
		}
		rows, _, err := socketRows(cmd.Context(), &quiet, src, query.Values{"listening": {"true"}})
		if err != nil {
			return nil
		}
		what := make(map[uint16]string)
		for i := range rows {
			if s := &rows[i]; len(s.Holders) > 0 && what[s.LocalPort] == "" {
				what[s.LocalPort] = s.Holders[0].Comm
			} else if _, ok := what[s.LocalPort]; !ok {
				what[s.LocalPort] = s.Service
			}
		}
		var words []string
		for port, comm := range what {
			words = append(words, described(strconv.Itoa(int(port)), comm))
		}
		return words
	})
}

// runningProcesses are the processes that can be seen, but for the kernel's own threads.
func runningProcesses(each func(pid, comm string, uid uint32)) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, entry := range entries {
		pid := entry.Name()
		if pid[0] < '0' || pid[0] > '9' {
			continue
		}
		line, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if err != nil || len(line) == 0 {
			continue
		}
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			each(pid, strings.TrimSuffix(string(comm), "\n"), st.Uid)
		}
	}
}

// completionOf is what a filter's values are completed with; nil: with nothing of this machine.
func completionOf(e *env, o *agentOptions, filter string) cobra.CompletionFunc {
	switch filter {
	case "port", "lport", "end":
		return completePorts(e, o)
	case "pid", "tree":
		return completed(func(*cobra.Command) (words []string) {
			runningProcesses(func(pid, comm string, _ uint32) { words = append(words, described(pid, comm)) })
			return words
		})
	case "comm":
		return completed(func(*cobra.Command) (words []string) {
			runningProcesses(func(_, comm string, _ uint32) { words = append(words, comm) })
			return words
		})
	case "uid":
		return completed(func(*cobra.Command) (words []string) {
			uids := make(map[uint32]bool)
			runningProcesses(func(_, _ string, uid uint32) { uids[uid] = true })
			for uid := range uids {
				name := strconv.FormatUint(uint64(uid), 10)
				if u, err := user.LookupId(name); err == nil {
					name = u.Username
				}
				words = append(words, name)
			}
			return words
		})
	case "netns":
		return completed(func(*cobra.Command) []string {
			words := []string{described("host", "the namespace of process 1")}
			entries, err := os.ReadDir("/run/netns")
			if err != nil {
				return words // there are none
			}
			for _, entry := range entries {
				words = append(words, entry.Name())
			}
			return words
		})
	}
	if name := nameOf(filter); name != nil {
		return completed(func(*cobra.Command) []string { return namesOfRunning(name) })
	}
	return nil
}

// complete has a flag completed as the filter of its name.
func complete(cmd *cobra.Command, e *env, o *agentOptions, flags ...string) {
	for _, name := range flags {
		if f := completionOf(e, o, name); f != nil {
			if err := cmd.RegisterFlagCompletionFunc(name, f); err != nil {
				panic(fmt.Sprintf("flag %s of %s: %v", name, cmd.Name(), err)) // a flag that does not exist
			}
		}
	}
}

// namesOfRunning are the names of what runs here, as far as who completes may know them.
func namesOfRunning(name func(identity.Cgroup) string) (all []string) {
	names := identity.Load(nil)
	defer names.Cgroups.Close()
	for _, c := range names.Cgroups.Running() {
		if s := name(c); s != "" && identity.Safe(s) == s {
			all = append(all, s)
		}
	}
	return all
}
