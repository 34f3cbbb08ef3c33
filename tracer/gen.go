package tracer

//go:generate go tool bpf2go -tags linux -target amd64,arm64 -type flow -type process -type event_type -type event_flag -type row_flag -type tcp_state -type walk_table -type netns_row -type stat -type part bpf ../bpf/porthole.bpf.c
