/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/*
 * The events that several hooks can report, of either tier: a handler finds out what has
 * happened to a socket, and calls one of these.
 */

#include "emit.h"
#include "pending.h"
#include "sockaddr.h"

static __always_inline void event_sockopts(struct event *e, const struct sock *sk)
{
	if (READ_BITS(sk, __sk_common.skc_ipv6only))
		e->flags |= EVENT_V6ONLY;
	if (READ_BITS(sk, __sk_common.skc_reuse))
		e->flags |= EVENT_REUSEADDR;
	if (READ_BITS(sk, __sk_common.skc_reuseport))
		e->flags |= EVENT_REUSEPORT;
}

/*
 * The path manager of MPTCP opens further subflows in a worker of the kernel, or in the
 * program that configures it: they belong to whoever has the first, whom the reader knows.
 */
static __noinline void owner_of_subflow(struct event *e, const struct sock *sk)
{
	const struct sock *first;

	if (!(e->flags & EVENT_MPTCP))
		return;
	first = sock_first_subflow(sk);
	if (!first)
		return;
	__builtin_memset(&e->process, 0, sizeof(e->process));
	e->detail = (__u64)first;
}

/* bind() took a port. */
static __always_inline void report_bind(struct sock *sk, __u16 requested_port)
{
	struct event *e = event_by_task(EVENT_BIND, sk);

	if (!e)
		return;
	e->requested_port = requested_port;
	event_sockopts(e, sk);
	owner_of_subflow(e, sk);
	event_submit(e);
}

/* bind() was refused. The socket has no address any more: take it from the caller. */
static __always_inline void report_bind_failed(struct sock *sk, struct address addr, __u16 error)
{
	struct sockaddr_any sa;
	struct event *e;

	if (!read_bind_address(&sa, sk, addr))
		return;
	e = event_by_task(EVENT_BIND, sk);
	if (!e)
		return;
	e->error = error;
	e->requested_port = bpf_ntohs(sa.port);
	e->flow.local_port = e->requested_port;
	sockaddr_ip(e->flow.local_ip, &sa);
	event_sockopts(e, sk);
	event_submit(e);
}

/* The kernel chose a port for a socket that never called bind(). error 0: it found one. */
static __always_inline void report_implicit_bind(struct sock *sk, __u16 error)
{
	struct event *e = event_by_task(EVENT_BIND, sk);

	if (!e)
		return;
	e->flags |= EVENT_IMPLICIT;
	event_sockopts(e, sk);
	e->error = error;
	if (!error) { /* what connect() has made of it since is not told here */
		__builtin_memset(e->flow.remote_ip, 0, 16);
		e->flow.remote_port = 0;
		if (!(sock_locks(sk) & SOCK_BINDADDR_LOCK)) {
			__builtin_memset(e->flow.local_ip, 0, 16);
			if (READ(sk, __sk_common.skc_family) == AF_INET)
				ip_from_v4(e->flow.local_ip, 0);
		}
	}
	event_submit(e);
}

/* An unconnected UDP socket sends: its first datagram may just have given it a port. */
static __always_inline void report_send(struct sock *sk, struct sock_note *note)
{
	__u16 port = sock_port(sk);

	if (!note) {
		count(STAT_LOST_STATE);
		return;
	}
	if (note->known_port == port || !sock_is_udp(sk))
		return;
	note->known_port = port;
	report_implicit_bind(sk, 0);
}

/*
 * A UDP socket could not send. The port for its first datagram is taken before the kernel
 * looks at the datagram, and what it refuses before it looks for a route passes no other
 * hook. A socket with a peer has had its port since connect().
 */
static __always_inline void report_send_failed(struct sock *sk, long ret)
{
	if (!sock_is_udp(sk) || sock_state(sk) == TCP_ESTABLISHED)
		return;
	if (sock_port(sk))
		report_send(sk, spare_note(sk));
	else if (ret == -EAGAIN)
		report_implicit_bind(sk, EAGAIN);
}

/* listen() has its port. */
static __always_inline void report_listen(struct sock *sk)
{
	struct event *e;

	if (!proto_is_ours(sk))
		return;
	if (pending_take(sk, PENDING_AUTOBIND))
		report_implicit_bind(sk, 0);
	e = event_by_task(EVENT_LISTEN, sk);
	if (!e)
		return;
	event_sockopts(e, sk);
	event_submit(e);
}

static __always_inline void report_listen_failed(struct sock *sk, __u16 error)
{
	struct event *e;

	if (sock_protocol(sk) != IPPROTO_TCP)
		return;
	e = event_by_task(EVENT_LISTEN, sk);
	if (!e)
		return;
	e->error = error;
	event_sockopts(e, sk);
	event_submit(e);
}

/* TCP: the port is picked and the SYN about to leave. */
static __always_inline void report_connect_tcp(struct sock *sk, __u64 search_ns)
{
	struct event *e;

	if (!proto_is_ours(sk))
		return;
	e = event_by_task(EVENT_CONNECT, sk);
	if (!e)
		return;
	e->detail = search_ns;
	owner_of_subflow(e, sk);
	event_submit(e);
}

/*
 * TCP went from SYN_SENT to CLOSE inside connect(): no port was left, or, for
 * a bound socket, the connection exists already.
 */
static __always_inline void report_no_port(struct sock *sk, __u64 search_ns)
{
	struct event *e;

	pending_set(sk, PENDING_NO_PORT); /* before there is an e: old verifiers forget that it was found not NULL */
	e = event_by_task(EVENT_CONNECT, sk);
	if (!e)
		return;
	e->error = EADDRNOTAVAIL;
	e->detail = search_ns;
	owner_of_subflow(e, sk);
	event_submit(e);
}

static __always_inline void report_connect_failed(struct sock *sk, struct address addr, __u16 error)
{
	struct sockaddr_any sa;
	struct event *e;

	if (!read_sockaddr(&sa, addr))
		return;
	e = event_by_task(EVENT_CONNECT, sk);
	if (!e)
		return;
	e->error = error;
	e->flow.remote_port = bpf_ntohs(sa.port);
	sockaddr_ip(e->flow.remote_ip, &sa);
	event_submit(e);
}

/*
 * TCP connect() returned, or what of it comes before the handshake. Successes
 * and failed handshakes are seen elsewhere; here only what was refused before a
 * SYN could leave.
 */
static __always_inline void report_connect_refused(struct sock *sk, struct address addr, long ret)
{
	if (ret >= 0 || ret == -EINPROGRESS || ret == -EALREADY || ret == -EISCONN || ret == -EINTR ||
	    (ret <= -ERESTARTSYS && ret >= -ERESTART_RESTARTBLOCK) || error_is_of_peer(-ret))
		return;
	if (pending_take(sk, PENDING_NO_PORT) || (sock_has_tried(sk) && pending_take(sk, PENDING_FAILED)))
		return;
	report_connect_failed(sk, addr, -ret);
}

/* A UDP socket lost its peer, and with EVENT_CLOSE its port; by SOCK_DESTROY if it says ECONNABORTED. */
static __always_inline void report_unpeer(struct sock *sk, __u8 type)
{
	struct event *e = event_short(type, sk);

	if (!e)
		return;
	if (READ(sk, sk_err) == ECONNABORTED)
		e->error = ECONNABORTED;
	event_submit(e);
}

/* connect(AF_UNSPEC) took the peer from a UDP socket, and the port unless it was bound. */
static __always_inline void report_udp_disconnect(struct sock *sk)
{
	if (!sock_is_udp(sk))
		return;
	report_unpeer(sk, sock_port(sk) ? EVENT_UNPEER : EVENT_CLOSE);
}

/* UDP connect() is done, and the port it may have needed has been reported. */
static __always_inline void report_connect_udp(struct sock *sk, struct address addr, int ret)
{
	struct event *e;

	if (!sock_is_udp(sk))
		return;
	if (ret < 0) {
		report_connect_failed(sk, addr, -ret);
		return;
	}
	e = event_by_task(EVENT_CONNECT, sk);
	if (e)
		event_submit(e);
}

/*
 * Did a UDP socket enter connect() without a port? It has one now, or none was left, of
 * which connect() says EAGAIN; with another error it did not come to that. True: none was left.
 */
static __always_inline bool autobind_failed(struct sock *sk, long ret)
{
	bool bound = sock_port(sk);

	if (!pending_take(sk, PENDING_AUTOBIND) || (!bound && ret != -EAGAIN))
		return false;
	report_implicit_bind(sk, bound ? 0 : EAGAIN);
	return !bound;
}

static __always_inline void report_connect_udp_exit(struct sock *sk, struct address addr, long ret)
{
	if (autobind_failed(sk, ret) || !by_tracepoint(PART_PEER))
		return;
	if (ret >= 0 && sock_state(sk) != TCP_ESTABLISHED) /* the peer's port may well be 0 */
		report_udp_disconnect(sk);
	else
		report_connect_udp(sk, addr, ret);
}

/* port is the one it gives back, or keeps; 0: not known. */
static __always_inline void report_close(struct sock *sk, __u8 type, __u16 port, __u64 tw, __u16 error)
{
	struct event *e = event_short(type, sk);

	if (!e)
		return;
	e->requested_port = port;
	e->detail = tw;
	e->error = error;
	event_submit(e);
}

static __always_inline void report_accept(struct sock *sk, __u8 flags)
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
		report_close(sk, EVENT_CLOSE, sock_last_port(sk), 0, READ_TYPED(sk, sk_err));
}
