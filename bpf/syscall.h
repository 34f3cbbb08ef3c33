/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* What only the end of a system call tells: refused binds and connects, datagrams that failed, and who accepted. */

#include "report.h"

/* The error of a write() that may have given a UDP socket its port: such a socket has no peer. */
static __always_inline bool error_is_of_write(long ret)
{
	return ret == -EDESTADDRREQ || ret == -EMSGSIZE || ret == -EAGAIN;
}

/* The system call connect() returned. */
static __always_inline void handle_connect_exit(struct sock *sk, struct address addr, long ret)
{
	if (sock_protocol(sk) == IPPROTO_UDP)
		report_connect_udp_exit(sk, addr, ret);
	else if (by_tracepoint(PART_CONNECT))
		report_connect_refused(sk, addr, ret);
}

/*
 * sendto(), sendmsg() or sendmmsg() failed. With MSG_FASTOPEN it is a connect() too; that
 * the socket's connection has no room (EAGAIN), or that it may not be opened so (EOPNOTSUPP), is not of that.
 */
static __always_inline void handle_sent(struct sock *sk, const struct pt_regs *regs, long ret, int nr)
{
	__u64 flags = nr == NR_sendmsg ? SYS_ARG2(regs) : SYS_ARG3(regs);
	struct address addr = { .user = true };

	if (sock_protocol(sk) == IPPROTO_UDP) {
		if (by_tracepoint(PART_IMPLICIT))
			report_send_failed(sk, ret);
		return;
	}
	if (!(flags & MSG_FASTOPEN) || ret == -EAGAIN || ret == -EOPNOTSUPP || !by_tracepoint(PART_CONNECT))
		return;
	if (nr == NR_sendto)
		addr.at = (const void *)SYS_ARG4(regs);
	else /* the name comes first in struct msghdr, and that in struct mmsghdr */
		bpf_probe_read_user(&addr.at, sizeof(addr.at), (const void *)SYS_ARG1(regs));
	report_connect_refused(sk, addr, ret);
}

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
	else if (nr == NR_splice)
		sk = task_sock(task, SYS_ARG2(regs));
	else
		sk = task_sock(task, SYS_ARG0(regs));
	if (!sk)
		return;
	addr = (struct address){ .at = (const void *)SYS_ARG1(regs), .user = true };
	switch (nr) {
	case NR_accept:
	case NR_accept4:
		report_accept(sk, 0);
		return;
	case NR_bind:
		report_bind_failed(sk, addr, -ret);
		return;
	case NR_listen:
		report_listen_failed(sk, -ret);
		return;
	case NR_connect:
		handle_connect_exit(sk, addr, ret);
		return;
	case NR_sendto:
	case NR_sendmsg:
	case NR_sendmmsg:
		handle_sent(sk, regs, ret, nr);
		return;
	default:
		report_send_failed(sk, ret);
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
		if (ret >= 0 || !by_tracepoint(PART_IMPLICIT | PART_CONNECT))
			return;
		break;
	case NR_write:
	case NR_writev:
	case NR_pwritev2:
	case NR_sendfile:
	case NR_splice:
		if (ret >= 0 || !error_is_of_write(ret) || !by_tracepoint(PART_IMPLICIT))
			return;
		break;
	default:
		return;
	}
	sys_exit_ours(regs, ret, nr);
}
