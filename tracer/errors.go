package tracer

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Reasons why porthole cannot work here. Match them with errors.Is.
var (
	// ErrNotPermitted: the process lacks a capability, or the kernel's policy
	// forbids what was tried.
	ErrNotPermitted = errors.New("not permitted")
	// ErrNotSupported: the kernel or the machine lacks something porthole needs.
	ErrNotSupported = errors.New("not supported")
)

// explain wraps what the kernel said with what was tried and, where it is one,
// the reason of this package.
func explain(tried string, err error) error {
	var verifier *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &verifier):
		return fmt.Errorf("%s: %w: %w", tried, ErrNotPermitted, err)
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%s: %w: %w", tried, ErrNotSupported, err)
	}
	return fmt.Errorf("%s: %w", tried, err)
}

// capability is one that porthole needs, by its number in linux/capability.h.
type capability struct {
	name string
	bit  int
}

// capsSnapshot are needed to read sockets and holders, and for the hooks of the
// fentry tier; capsTracepoint for the cgroup programs of the tracepoint tier.
var (
	capsSnapshot   = []capability{{"CAP_BPF", unix.CAP_BPF}, {"CAP_PERFMON", unix.CAP_PERFMON}}
	capsTracepoint = append([]capability{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}}, capsSnapshot...)
)

// missingCaps returns the names of those capabilities the process does not have
// in effect. CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON.
func missingCaps(need []capability) ([]string, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	has := func(bit int) bool { return data[bit/32].Effective&(1<<(bit%32)) != 0 }
	var missing []string
	for _, c := range need {
		if !has(c.bit) && (c.bit == unix.CAP_NET_ADMIN || !has(unix.CAP_SYS_ADMIN)) {
			missing = append(missing, c.name)
		}
	}
	return missing, nil
}

func checkCaps(need []capability) error {
	if InOtherNamespace("user") {
		return errUserNamespace(need)
	}
	missing, err := missingCaps(need)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: this needs %s", ErrNotPermitted, strings.Join(missing, ", "))
	}
	return nil
}

// Capabilities reports, for each capability that porthole can use, whether the process has it
// in effect. Those of a user namespace do not count.
func Capabilities() map[string]bool {
	out := make(map[string]bool)
	counts := !InOtherNamespace("user")
	for _, c := range capsTracepoint {
		missing, err := missingCaps([]capability{c})
		out[c.name] = counts && err == nil && len(missing) == 0
	}
	return out
}

// ErrFiltered is an ErrNotPermitted of a process whose seccomp filter, as containers have one, forbids bpf(2).
var ErrFiltered = fmt.Errorf("%w: a seccomp filter forbids bpf()", ErrNotPermitted)

// CheckSnapshot returns an error if this process lacks a capability that NewSnapshotter needs.
// The error wraps ErrNotPermitted and names the missing capabilities.
func CheckSnapshot() error { return checkCaps(capsSnapshot) }

// CheckTrace is CheckSnapshot for Open with this Config.Tier. Where the kernel refuses the
// hooks of the fentry tier Open needs more capabilities, and its error names them.
func CheckTrace(tier Tier) error {
	if tier == TierTracepoint {
		return checkCaps(capsTracepoint)
	}
	return checkCaps(capsSnapshot)
}

// checkFilter tells whether a seccomp filter forbids bpf(2) to a process that has the capabilities for it: a
// command that does not exist is EINVAL else.
func checkFilter() error {
	const noCommand = math.MaxInt32
	_, _, errno := unix.Syscall(unix.SYS_BPF, noCommand, 0, 0)
	if errno != unix.EPERM && errno != unix.ENOSYS {
		return nil
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || !strings.Contains(string(status), "\nSeccomp:\t2\n") {
		return nil // what is tried next says why it fails
	}
	return ErrFiltered
}

// hookError is why a hook could not be attached.
type hookError struct {
	hook    string
	refused bool // its function is there, but the kernel does not allow it
	err     error
}

func (e *hookError) Error() string { return e.err.Error() }
func (e *hookError) Unwrap() error { return e.err }

// reason tells in a few words why a hook of the fentry tier is not attached, or
// another that it is of no use without.
func reason(hook string, err error) string {
	var failed *hookError
	switch {
	case !errors.As(err, &failed):
		return err.Error()
	case failed.refused:
		return "BPF trampolines are refused"
	case failed.hook != hook:
		return "of no use without " + failed.hook
	case errors.Is(err, ErrNotSupported):
		return "not in this kernel"
	}
	return err.Error()
}

// errnoName returns the symbol of an errno, as "EADDRINUSE"; "" of none.
func errnoName(e syscall.Errno) string {
	if e == 0 {
		return ""
	}
	if name := unix.ErrnoName(e); name != "" {
		return name
	}
	return fmt.Sprintf("errno %d", int(e))
}
