/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* A process takes a connection from a listener. */

#include "report.h"

/*
 * The kernel asks for the peer's name: accept() with an address, or
 * getpeername(). Used where no system call hook reports the accept. note may be
 * NULL.
 */
static __noinline void handle_peer_name(struct sock *sk, struct sock_note *note)
{
	if (!note) {
		count(STAT_LOST_STATE);
		return;
	}
	if (note->accepted || sock_protocol(sk) != IPPROTO_TCP || sock_is_active(sk))
		return;
	note->accepted = 1;
	report_accept(sk, EVENT_MAYBE);
}

static __always_inline bool peer_name_wanted(void)
{
	return !syscall_hooks || task_uses_io_uring(task_current());
}

/*
 * accept() gives a connection the struct socket that its descriptor will refer
 * to. Not at the end of inet_csk_accept(): a server that waits in there since
 * before the hook was attached would leave unseen.
 */
static __always_inline void handle_graft(struct sock *sk)
{
	__u16 family = READ_TYPED(sk, __sk_common.skc_family);

	if (family != AF_INET && family != AF_INET6)
		return;
	sk = sock_tcp(sk);
	if (sk && sock_protocol(sk) == IPPROTO_TCP)
		report_accept(sk, 0);
}
