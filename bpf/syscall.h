/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* What only the end of a system call tells: refused binds and connects, and who accepted. */

#include "accept.h"

/* One of our calls, with an end that may be of interest. */
static __noinline void sys_exit_ours(const struct pt_regs *regs, long ret, int nr)
{
	struct task_struct *task = task_current();
	struct address addr;
	struct sock *sk;

	if (task_is_compat(task))
		return;
	if (nr == NR_accept || nr == NR_accept4)
		sk = task_sock(task, ret);
	else
		sk = task_sock(task, SYS_ARG0(regs));
	if (!sk)
		return;
	addr = (struct address){ .at = (const void *)SYS_ARG1(regs), .user = true };
	switch (nr) {
	case NR_accept:
	case NR_accept4:
		handle_accept(sk, 0);
		return;
	case NR_bind:
		handle_bind_failed(sk, addr, -ret);
		return;
	case NR_listen:
		handle_listen_failed(sk, -ret);
		return;
	case NR_connect:
		handle_connect_exit(sk, addr, ret);
		return;
	default: /* a datagram that could not leave because the socket found no port */
		if (sock_protocol(sk) == IPPROTO_UDP && !sock_port(sk))
			handle_implicit_bind(sk, EAGAIN);
	}
}

static __always_inline void handle_sys_exit(const struct pt_regs *regs, long ret)
{
	int nr = SYS_NR(regs);

	switch (nr) {
	case NR_accept:
	case NR_accept4:
		if (ret < 0 || !by_tracepoint(PART_ACCEPT))
			return;
		break;
	case NR_bind:
		if (ret >= 0 || !by_tracepoint(PART_BIND))
			return;
		break;
	case NR_listen:
		if (ret >= 0 || !by_tracepoint(PART_LISTEN))
			return;
		break;
	case NR_connect:
		break;
	case NR_sendto:
	case NR_sendmsg:
	case NR_sendmmsg:
		if (ret != -EAGAIN || !by_tracepoint(PART_IMPLICIT))
			return;
		break;
	default:
		return;
	}
	sys_exit_ours(regs, ret, nr);
}
