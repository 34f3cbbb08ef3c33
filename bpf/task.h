/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* The only place that reads struct task_struct. */

#include "sock.h"

/* The thread a hook runs in, as READ_TYPED can read it. */
static __always_inline struct task_struct *task_current(void)
{
	return HAVE_CAST ? bpf_get_current_task_btf() : (void *)bpf_get_current_task();
}

/* task is one that READ_TYPED can read. */
static __always_inline void task_process(struct process *p, const struct task_struct *task)
{
	const struct task_struct *leader = READ_TYPED(task, group_leader);

	p->pid = READ_TYPED(task, tgid);
	p->uid = READ(READ(task, cred), uid.val);
	p->start_ns = READ_TYPED(leader, start_boottime);
	p->cgroup = READ(READ(READ(READ(task, cgroups), dfl_cgrp), kn), id);
	READ_TYPED_INTO(&p->comm, leader, comm);
}

/* Does this task use io_uring, whose calls pass no system call hook? */
static __always_inline bool task_uses_io_uring(const struct task_struct *task)
{
	if (READ_TYPED(task, flags) & (PF_IO_WORKER | PF_KTHREAD))
		return true;
	if (!bpf_core_field_exists(task->io_uring))
		return false;
	return READ(task, io_uring) != NULL;
}

/* The file behind a descriptor of the task, NULL if there is none. */
static __always_inline struct file *task_file(const struct task_struct *task, __u32 fd)
{
	struct fdtable *fdt = READ(READ(task, files), fdt);

	if (fd >= READ(fdt, max_fds))
		return NULL;
	return (void *)READ_WORD(READ(fdt, fd) + fd);
}

/* The socket behind a file descriptor of the task, as sock_of_file. */
static __always_inline struct sock *task_sock(const struct task_struct *task, __u32 fd)
{
	struct file *file = task_file(task, fd);

	return file ? sock_of_file(file) : NULL;
}
