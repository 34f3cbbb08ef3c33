/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* The only place that reads struct task_struct. */

#include "sock.h"

static __always_inline struct task_struct *task_current(void)
{
	return (void *)bpf_get_current_task();
}

static __always_inline void task_process(struct process *p, const struct task_struct *task)
{
	const struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	p->pid = BPF_CORE_READ(task, tgid);
	p->uid = BPF_CORE_READ(task, cred, uid.val);
	p->start_ns = BPF_CORE_READ(leader, start_boottime);
	p->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	BPF_CORE_READ_INTO(&p->comm, leader, comm);
}

/* Does this task use io_uring, whose calls pass no system call hook? */
static __always_inline bool task_uses_io_uring(const struct task_struct *task)
{
	if (BPF_CORE_READ(task, flags) & (PF_IO_WORKER | PF_KTHREAD))
		return true;
	if (!bpf_core_field_exists(task->io_uring))
		return false;
	return BPF_CORE_READ(task, io_uring) != NULL;
}

/* The socket behind a file descriptor of the task, as sock_of_file. */
static __always_inline struct sock *task_sock(const struct task_struct *task, __u32 fd)
{
	struct fdtable *fdt = BPF_CORE_READ(task, files, fdt);
	struct file **slot, *file = NULL;

	if (fd >= BPF_CORE_READ(fdt, max_fds))
		return NULL;
	slot = BPF_CORE_READ(fdt, fd);
	bpf_probe_read_kernel(&file, sizeof(file), slot + fd);
	return file ? sock_of_file(file) : NULL;
}
