package main

import (
	"fmt"
	"slices"
	"strings"
)

// kernel is one that Debian builds for virtual machines.
type kernel struct {
	name     string // its series, or "edge"
	arch     string
	releases []string // of Debian: where it is looked for, the newest of all is taken
	series   string   // empty: the kernel that the releases have now
	gating   bool     // run when no kernel is named
	flags    string   // for the kernel's command line
	bcc      bool     // benchmarked beside the tools of bcc
	// missing tells why the kernel has not got a tier.
	missing map[tier]string
	// untested tells why the tests are not run in a tier that it has.
	untested map[tier]string
	lacks    []lack
}

// tier is one of porthole's, by the name that its flags take.
type tier string

var tiers = []tier{"fentry", "tracepoint"}

// lack is something a kernel does not have, so that a test must skip.
type lack struct {
	test   string // its name, or that of a subtest, which stands for those below it too
	tier   tier   // empty: in each
	reason string
}

// Where kernels are looked for.
var (
	bullseye, bookworm, trixie = []string{"bullseye"}, []string{"bookworm"}, []string{"trixie"}
	backports                  = []string{"trixie", "trixie-backports"}
	newest                     = []string{"sid", "trixie-backports"} // which have it by turns
)

// noCmpxchg16b is for kernels which without that instruction, which qemu's CPU has not got here,
// have often no memory for BPF's storage of sockets, but with debugging of its allocator they have.
const noCmpxchg16b = "slab_debug=F,kmalloc-*"

// The tests demand that nothing is lost, which since 7.2 only the fentry tier can promise.
var (
	preempted        = map[tier]string{"tracepoint": "Linux 7.2 and newer skip the hook of system calls now and then"}
	againstPreempted = []lack{
		{test: "TestKernelTiersAgree", reason: "the tracepoint tier may lose events"},
		{test: "TestKernelTiersDiffer", reason: "the tracepoint tier may lose events"},
	}
)

// kernels are those that are known, in the order they are reported.
var kernels = []kernel{
	{name: "5.10", arch: "amd64", releases: bullseye, gating: true, lacks: []lack{
		{test: "TestKernelMPTCP", reason: "built without MPTCP"},
		{test: "TestKernelMPTCPSecondPath", reason: "built without MPTCP"},
		{test: "TestKernelTiersAgree/MPTCP", reason: "built without MPTCP"},
	}},
	{name: "6.1", arch: "amd64", releases: bookworm, gating: true, bcc: true},
	{name: "6.12", arch: "amd64", releases: trixie, gating: true},
	{name: "6.1", arch: "arm64", releases: bookworm, gating: true, missing: map[tier]string{
		"fentry": "Linux 6.1 on arm64 loads fexit programs but does not attach them",
	}, lacks: []lack{
		{test: "TestKernelTiersAgree", reason: "there is no fentry tier to compare with"},
		{test: "TestKernelTiersDiffer", reason: "there is no fentry tier to compare with"},
	}},
	{name: "6.12", arch: "arm64", releases: trixie, gating: true},
	// The newest where the tracepoint tier loses nothing.
	{name: "6.18", arch: "amd64", releases: backports, series: "6.18", gating: true, flags: noCmpxchg16b},
	{name: "edge", arch: "amd64", releases: newest, gating: true, flags: noCmpxchg16b, untested: preempted, lacks: againstPreempted},
	{name: "edge", arch: "arm64", releases: newest, untested: preempted, lacks: againstPreempted},
}

// String is the name that -kernel takes.
func (k kernel) String() string { return k.arch + "/" + k.name }

// lack returns what the kernel lacks for a test or subtest, nil for nothing.
func (k kernel) lack(t tier, test string) *lack {
	i := slices.IndexFunc(k.lacks, func(l lack) bool { return l.in(t) && l.covers(test) })
	if i < 0 {
		return nil
	}
	return &k.lacks[i]
}

func (l lack) in(t tier) bool { return l.tier == "" || l.tier == t }

func (l lack) covers(test string) bool {
	return test == l.test || strings.HasPrefix(test, l.test+"/")
}

// choose returns the kernels that -kernel names: a list of "6.1", which is every
// architecture's, or "arm64/6.1"; "all"; empty for those that gate.
func choose(known []kernel, names string) ([]kernel, error) {
	var chosen []kernel
	wanted := strings.Split(names, ",")
	used := make(map[string]bool)
	for _, k := range known {
		on := names == "" && k.gating || names == "all"
		for _, name := range []string{k.name, k.String()} {
			if slices.Contains(wanted, name) {
				used[name], on = true, true
			}
		}
		if on {
			chosen = append(chosen, k)
		}
	}
	if names == "" || names == "all" {
		return chosen, nil
	}
	for _, name := range wanted {
		if !used[name] {
			return nil, fmt.Errorf("kernel %q is not known: -list shows those that are", name)
		}
	}
	return chosen, nil
}
