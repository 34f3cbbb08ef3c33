/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* A cgroup is made: what it is called must be known when it is gone. */

#include "emit.h"

/*
 * Of cgroups of the v2 hierarchy, whose ids processes are told by. Rare. Where the ring buffer is full the
 * cgroup is looked up once a process in it does something.
 */
static __always_inline void handle_cgroup_made(const struct cgroup *cgrp)
{
	const struct task_struct *task = task_current();
	const struct kernfs_node *kn = READ(cgrp, kn);
	struct cgroup_made *made;
	__u64 flags;

	if (READ(READ(cgrp, root), hierarchy_id))
		return;
	made = bpf_ringbuf_reserve(&events, sizeof(*made), 0);
	if (!made)
		return;
	made->time_ns = bpf_ktime_get_boot_ns();
	made->id = READ(kn, id);
	made->parent = READ(READ(READ(READ(cgrp, self.parent), cgroup), kn), id);
	made->uid = READ(READ(task, cred), fsuid.val);
	made->type = EVENT_CGROUP;
	made->name[0] = 0;
	bpf_probe_read_kernel_str(made->name, sizeof(made->name), READ(kn, name));
	flags = wake_flags(made->time_ns);
	bpf_ringbuf_submit(made, flags);
}
