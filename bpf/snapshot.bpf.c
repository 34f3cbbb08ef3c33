/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */

/* The programs of the snapshot: an object of its own, which ls, who and headroom load without the hooks. */

#include "devices.h"
#include "snapshot.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// clang-format off: one program, one line

SEC("iter/task") int ph_files(struct bpf_iter__task *ctx) { return handle_task(ctx); }
SEC("iter/task") int ph_devices(struct bpf_iter__task *ctx) { handle_devices(); return 1; /* be called again */ }
SEC("syscall") int ph_walk(struct walk_call *call) { handle_walk(call, false); return 0; }
SEC("syscall") int ph_ports(struct walk_call *call) { handle_walk(call, true); return 0; }
#if !HAVE_CAST
SEC("iter/task") int ph_walk_burst(struct bpf_iter__task *ctx) { handle_walk_burst(false); return 1; /* be called again */ }
SEC("iter/task") int ph_ports_burst(struct bpf_iter__task *ctx) { handle_walk_burst(true); return 1; }
#endif
