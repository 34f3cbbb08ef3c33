// Package containers has tests that run Debian's Docker, podman and containerd, and look whether
// every view names what they run. They need root; whatever the runtimes write is in file systems
// and a network namespace of the test's own.
package containers
