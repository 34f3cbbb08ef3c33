package tracer

import (
	"fmt"
	"os"
	"strings"
)

// initialNamespaces are those the kernel starts with, by their numbers, which are fixed
// (PROC_PID_INIT_INO and so on).
var initialNamespaces = map[string]string{
	"pid": initialPIDNS, "user": "user:[4026531837]", "cgroup": "cgroup:[4026531835]",
}

// InOtherNamespace reports whether this process is in another namespace of a kind ("pid",
// "user", "cgroup") than the one the kernel starts with.
func InOtherNamespace(kind string) bool {
	is, err := os.Readlink("/proc/self/ns/" + kind)
	return err == nil && is != initialNamespaces[kind]
}

// ErrUserNamespace is an ErrNotPermitted of a process whose capabilities are those of a
// user namespace: for BPF they do not count.
var ErrUserNamespace = fmt.Errorf("%w in a user namespace", ErrNotPermitted)

// errUserNamespace names the capabilities that do not count.
func errUserNamespace(need []capability) error {
	names := make([]string, len(need))
	for i, c := range need {
		names[i] = c.name
	}
	return fmt.Errorf("%w, whose capabilities do not count: this needs %s of the host", ErrUserNamespace, strings.Join(names, ", "))
}
