/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* A socket changes state, and in the end gives its port back. */

#include "report.h"

/*
 * TCP reached CLOSE. A socket whose port was chosen by the kernel has given it
 * back already (skc_num is 0, inet_sport still tells which); one bound to a
 * port keeps it until tcp_destroy_sock.
 */
static __always_inline void handle_tcp_closed(struct sock *sk, int old)
{
	__u16 port = sock_port(sk), last = sock_last_port(sk);
	bool refused = old == TCP_SYN_SENT && sock_is_refused(sk);
	__u64 tw = 0;

	if (by_tracepoint(PART_CONNECT)) {
		if (refused) {
			report_no_port(sk, 0);
			return;
		}
		pending_ended(sk, old);
	}
	if (!last || (refused && port))
		return; /* nothing was taken */
	if (port && (old == TCP_LISTEN || (old == TCP_SYN_SENT && !READ_TYPED(sk, sk_err))) &&
	    READ_TYPED(sk, sk_shutdown) == SHUTDOWN_MASK)
		return; /* close(), which gives the port back in a moment; shutdown() and connect(AF_UNSPEC) do not */
	if (old == TCP_FIN_WAIT1 || old == TCP_FIN_WAIT2 || old == TCP_CLOSING)
		tw = sock_timewait(sk, last);
	/* Of a listener the error is an earlier connection's, which connect(AF_UNSPEC) undid. */
	report_close(sk, port ? EVENT_DOWN : EVENT_CLOSE, port ?: last, tw,
		     old == TCP_LISTEN ? 0 : READ_TYPED(sk, sk_err));
}

/* The handshake ended well, often in softirq: current is anyone. */
static __always_inline void handle_established(struct sock *sk)
{
	struct event *e = event_by_task(EVENT_ESTABLISHED, sk);

	if (!e)
		return;
	__builtin_memset(&e->process, 0, sizeof(e->process));
	event_submit(e);
}

/* One of the changes that say something; not inline, see handle_sockops. */
static __noinline void state_ours(struct sock *sk, int old, int now)
{
	if (sock_protocol(sk) != IPPROTO_TCP)
		return;
	if (now == TCP_SYN_SENT)
		search_begin(sk);
	else if (now == TCP_LISTEN)
		pending_autobind(sk); /* listen(): without a port the kernel is about to choose one */
	else if (now == TCP_CLOSE)
		handle_tcp_closed(sk, old);
	else
		handle_established(sk);
}

static __always_inline void handle_state(struct sock *sk, int old, int now)
{
	if (now == TCP_CLOSE || now == TCP_LISTEN || (now == TCP_SYN_SENT && !by_tracepoint(PART_CONNECT)) ||
	    (now == TCP_ESTABLISHED && *(volatile bool *)&want_established))
		state_ours(sk, old, now);
}

/* The kernel's struct sock goes away; a port it still has is given back now. What ended its connection was told then.
 */
static __always_inline void handle_tcp_destroy(struct sock *sk)
{
	__u16 port = sock_port(sk);

	if (port && sock_protocol(sk) == IPPROTO_TCP)
		report_close(sk, EVENT_CLOSE, port, 0, 0);
}

/*
 * The last file descriptor of a socket was closed, or the socket is destroyed: UDP gives its
 * port back. One that has none any more (its hash is that of the last) may have lost it
 * unseen: the reader knows.
 */
static __always_inline void handle_release(struct sock *sk)
{
	__u16 port = sock_port(sk);
	int error;

	if ((!port && !READ(sk, __sk_common.skc_hash)) || !sock_is_udp(sk))
		return;
	error = READ_TYPED(sk, sk_err);
	/* Without a peer it is a former peer's, or of one datagram of many; but for SOCK_DESTROY. */
	if (error != ECONNABORTED && sock_state(sk) != TCP_ESTABLISHED)
		error = 0;
	report_close(sk, EVENT_CLOSE, port, 0, error);
}
