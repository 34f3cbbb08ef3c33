package tracer

// Each object is built with bpf_rdonly_cast(), for Linux 6.2 and newer, and without it.
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -type flow -type process -type cgroup_made -type event_type -type event_flag -type row_flag -type tcp_state -type walk_table -type row -type fds -type fds_cursor -type walk -type walk_call -type netns_row -type device_row -type devices_cursor -type stat -type part bpf ../bpf/porthole.bpf.c -- -DHAVE_CAST=1
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -no-global-types bpfOld ../bpf/porthole.bpf.c -- -DHAVE_CAST=0
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -no-global-types snapshot ../bpf/snapshot.bpf.c -- -DHAVE_CAST=1
//go:generate go tool bpf2go -tags linux -target amd64,arm64 -no-global-types snapshotOld ../bpf/snapshot.bpf.c -- -DHAVE_CAST=0
