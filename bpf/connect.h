/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* connect(): TCP takes a port towards a destination, UDP sets a peer; or it was refused. */

#include "bind.h"

/* The search for a port begins right after the state has become SYN_SENT, and ends at fexit of inet_hash_connect(). */
static __always_inline struct search *search_of(const struct sock *sk)
{
	__u64 address = (__u64)plain(sk); /* a number to the verifier */

	return &searches[(address >> 6) % SEARCHES]; /* a socket is more than 64 bytes */
}

static __always_inline void search_begin(const struct sock *sk)
{
	struct search *s;

	if (sock_port(sk))
		return; /* there is nothing to look for */
	s = search_of(sk);
	s->start_ns = bpf_ktime_get_boot_ns();
	s->sock = (__u64)sk;
}

/* How long it took, 0 where that is not known. */
static __always_inline __u64 search_end(const struct sock *sk)
{
	struct search *s = search_of(sk);

	if (s->sock != (__u64)sk)
		return 0;
	s->sock = 0;
	return bpf_ktime_get_boot_ns() - s->start_ns;
}

/* TCP: the port is picked and the SYN about to leave. */
static __always_inline void handle_connect_tcp(struct sock *sk, __u64 search_ns)
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
static __always_inline void handle_connect_no_port(struct sock *sk, __u64 search_ns)
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

/*
 * UDP connect() was entered: will the kernel have to choose a port? The next datagram
 * without a peer is looked at again: the port may be another by then, or the same anew.
 */
static __always_inline void handle_connect_udp_enter(struct sock *sk, struct sock_note *note)
{
	if (!sock_is_udp(sk))
		return;
	if (note)
		note->known_port = 0;
	if (!sock_port(sk))
		pending_set(sk, PENDING_AUTOBIND);
	else
		pending_take(sk, PENDING_AUTOBIND); /* of a connect() that went no further, at the same address */
}

static __always_inline void connect_failed(struct sock *sk, struct address addr, __u16 error)
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

/* A UDP socket lost its peer, and with EVENT_CLOSE its port; by SOCK_DESTROY if it says ECONNABORTED. */
static __always_inline void emit_unpeer(struct sock *sk, __u8 type)
{
	struct event *e = event_short(type, sk);

	if (!e)
		return;
	if (READ(sk, sk_err) == ECONNABORTED)
		e->error = ECONNABORTED;
	event_submit(e);
}

/* connect(AF_UNSPEC) took the peer from a UDP socket, and the port unless it was bound. */
static __always_inline void handle_udp_disconnect(struct sock *sk)
{
	if (!sock_is_udp(sk))
		return;
	emit_unpeer(sk, sock_port(sk) ? EVENT_UNPEER : EVENT_CLOSE);
}

/*
 * A socket has an error. SOCK_DESTROY (ss -K) says ECONNABORTED before it does to a UDP
 * socket what connect(AF_UNSPEC) does.
 */
static __always_inline void handle_error(struct sock *sk)
{
	if (READ_TYPED(sk, sk_err) == ECONNABORTED && sock_is_udp(sk) && sock_port(sk))
		emit_unpeer(sk, READ(sk, sk_userlocks) & SOCK_BINDPORT_LOCK ? EVENT_UNPEER : EVENT_CLOSE);
}

/* UDP connect() is done, and the port it may have needed has been reported. */
static __always_inline void handle_connect_udp(struct sock *sk, struct address addr, int ret)
{
	struct event *e;

	if (!sock_is_udp(sk))
		return;
	if (ret < 0) {
		connect_failed(sk, addr, -ret);
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
	handle_implicit_bind(sk, bound ? 0 : EAGAIN);
	return !bound;
}

static __always_inline void connect_exit_udp(struct sock *sk, struct address addr, long ret)
{
	if (autobind_failed(sk, ret) || !by_tracepoint(PART_PEER))
		return;
	if (ret >= 0 && sock_state(sk) != TCP_ESTABLISHED) /* the peer's port may well be 0 */
		handle_udp_disconnect(sk);
	else
		handle_connect_udp(sk, addr, ret);
}

/* Is this what becomes of connections, and never of a connect() before them? */
static __always_inline bool error_is_of_peer(int error)
{
	return error == ECONNREFUSED || error == ETIMEDOUT || error == ECONNRESET || error == ECONNABORTED ||
	       error == EPIPE;
}

/*
 * TCP connect() returned, or what of it comes before the handshake. Successes
 * and failed handshakes are seen elsewhere; here only what was refused before a
 * SYN could leave.
 */
static __always_inline void handle_connect_refused(struct sock *sk, struct address addr, long ret)
{
	if (ret >= 0 || ret == -EINPROGRESS || ret == -EALREADY || ret == -EISCONN || ret == -EINTR ||
	    (ret <= -ERESTARTSYS && ret >= -ERESTART_RESTARTBLOCK) || error_is_of_peer(-ret))
		return;
	if (pending_take(sk, PENDING_NO_PORT) || (sock_has_tried(sk) && pending_take(sk, PENDING_FAILED)))
		return;
	connect_failed(sk, addr, -ret);
}

/* A connection ended, with an error or not: what connect() may still return of that is not told again. */
static __always_inline void handle_connect_ended(struct sock *sk, int old)
{
	int error = READ_TYPED(sk, sk_err);

	if (error && !error_is_of_peer(error))
		pending_set(sk, PENDING_FAILED);
	else if (old == TCP_SYN_SENT)
		pending_clear(sk, PENDING_FAILED); /* of an earlier socket at the same address */
}

/* The system call connect() returned. */
static __always_inline void handle_connect_exit(struct sock *sk, struct address addr, long ret)
{
	if (sock_protocol(sk) == IPPROTO_UDP)
		connect_exit_udp(sk, addr, ret);
	else if (by_tracepoint(PART_CONNECT))
		handle_connect_refused(sk, addr, ret);
}

/* inet_hash_connect() or inet6_hash_connect() is done: the port is picked, or there is none. */
static __always_inline void handle_hash_connect(struct sock *sk, int ret)
{
	__u64 search_ns = search_end(sk);

	if (ret)
		handle_connect_no_port(sk, search_ns);
	else
		handle_connect_tcp(sk, search_ns);
}

/*
 * tcp_v4_connect(), tcp_v6_connect() or one of the datagram functions is done.
 * Those for IPv6 call those for IPv4: only the one of the socket's family reports.
 */
static __always_inline void handle_connect_inner(struct sock *sk, __u16 family, const void *address, int ret)
{
	struct address addr = { .at = address };

	if (READ(sk, __sk_common.skc_family) != family)
		return;
	if (READ(sk, sk_type) == SOCK_RAW)
		return;
	if (sock_protocol(sk) == IPPROTO_TCP) {
		handle_connect_refused(sk, addr, ret);
		return;
	}
	if (by_tracepoint(PART_IMPLICIT))
		autobind_failed(sk, ret);
	handle_connect_udp(sk, addr, ret);
}

/* One of the two moments of handle_sockops. */
static __noinline void sockops_ours(struct bpf_sock_ops *ctx)
{
	if (!ctx->sk)
		return;
	if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB && by_tracepoint(PART_LISTEN))
		handle_listen_done(plain_sock(ctx->sk));
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB && by_tracepoint(PART_CONNECT))
		handle_connect_tcp(plain_sock(ctx->sk), 0);
}

/*
 * sockops runs at many moments of every connection: all but two leave at once. What the
 * two do is not inline, here and in other hooks that leave more often than not: else a
 * run that leaves saves registers it has no use for, and jumps across all that code.
 */
static __always_inline void handle_sockops(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB || ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB)
		sockops_ours(ctx);
}
