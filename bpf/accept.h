/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* A process takes a connection from a listener. */

#include "close.h"

static __always_inline void handle_accept(struct sock *sk, __u8 flags)
{
	struct event *e = event_by_task(EVENT_ACCEPT, sk);

	if (!e)
		return;
	e->flags |= flags;
	if (!e->flow.local_port) /* reset before it was accepted; its port is the listener's */
		e->flow.local_port = sock_last_port(sk);
	event_submit(e);
	/* Its close came before, or comes now on another CPU; the reader takes the first it can match. */
	if (!sock_port(sk))
		emit_close(sk, EVENT_CLOSE, sock_last_port(sk), 0, READ_TYPED(sk, sk_err));
}

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
	handle_accept(sk, EVENT_MAYBE);
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
		handle_accept(sk, 0);
}
