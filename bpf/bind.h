/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* A port is taken by bind(), by listen() or by the kernel's own choice, or refused. */

#include "emit.h"

/* The note of a socket in spare_notes, made when there is none. NULL: no memory. */
static __noinline struct sock_note *spare_note(const struct sock *sk)
{
	const struct socket *socket = READ(sk, sk_socket);
	struct spare_note new = {}, *spare;
	__u64 key = (__u64)sk;

	if (socket)
		new.inode = READ((const struct socket_alloc *)socket, vfs_inode.i_ino);
	spare = bpf_map_lookup_elem(&spare_notes, &key);
	if (!spare || spare->inode != new.inode) {
		bpf_map_update_elem(&spare_notes, &key, &new, BPF_ANY);
		spare = bpf_map_lookup_elem(&spare_notes, &key);
	}
	return spare ? &spare->note : NULL;
}

static __always_inline bool proto_is_ours(const struct sock *sk)
{
	__u16 proto = sock_protocol(sk);

	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

/* Who or what has the pending of a kind. */
static __always_inline __u64 pending_key(const struct sock *sk, __u64 kind)
{
	return kind == PENDING_FAILED ? (__u64)sk : bpf_get_current_task();
}

static __always_inline struct pending *pending_of(const struct sock *sk, __u64 kind)
{
	__u64 key = pending_key(sk, kind);
	struct pending *p = bpf_map_lookup_elem(&pendings, &key);

	if (!p || p->sock != (__u64)sk || p->kind != kind)
		return NULL;
	return p;
}

static __always_inline void pending_set(const struct sock *sk, __u64 kind)
{
	struct pending p = { .sock = (__u64)sk, .kind = kind };
	__u64 key = pending_key(sk, kind);

	bpf_map_update_elem(&pendings, &key, &p, BPF_ANY); /* LRU: never full */
}

static __always_inline void pending_clear(const struct sock *sk, __u64 kind)
{
	__u64 key = pending_key(sk, kind);

	bpf_map_delete_elem(&pendings, &key);
}

/* Was it pending? It is not any more. */
static __always_inline bool pending_take(const struct sock *sk, __u64 kind)
{
	if (!pending_of(sk, kind))
		return false;
	pending_clear(sk, kind);
	return true;
}

/* bind() was entered: remember the port asked for until it succeeds. note may be NULL. */
static __always_inline void handle_bind_enter(struct sock_note *note, __be32 user_port)
{
	if (note)
		note->requested_port = bpf_ntohs(user_port);
	else
		count(STAT_LOST_STATE);
}

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
static __always_inline void bind_done(struct sock *sk, __u16 requested_port)
{
	struct event *e = event_by_task(EVENT_BIND, sk);

	if (!e)
		return;
	e->requested_port = requested_port;
	event_sockopts(e, sk);
	owner_of_subflow(e, sk);
	event_submit(e);
}

/* The same, told by the hook after bind(). note may be NULL. */
static __always_inline void handle_bind_done(struct sock *sk, struct sock_note *note)
{
	if (!proto_is_ours(sk) || refused_before())
		return;
	if (note)
		note->known_port = sock_port(sk);
	bind_done(sk, note ? note->requested_port : 0);
}

/* The kernel chose a port for a socket that never called bind(). error 0: it found one. */
static __always_inline void handle_implicit_bind(struct sock *sk, __u16 error)
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
		if (!(READ(sk, sk_userlocks) & SOCK_BINDADDR_LOCK)) {
			__builtin_memset(e->flow.local_ip, 0, 16);
			if (READ(sk, __sk_common.skc_family) == AF_INET)
				ip_from_v4(e->flow.local_ip, 0);
		}
	}
	event_submit(e);
}

/* An unconnected UDP socket sends: its first datagram may just have given it a port. */
static __always_inline void handle_send(struct sock *sk, struct sock_note *note)
{
	__u16 port = sock_port(sk);

	if (!note) {
		count(STAT_LOST_STATE);
		return;
	}
	if (note->known_port == port || !sock_is_udp(sk))
		return;
	note->known_port = port;
	handle_implicit_bind(sk, 0);
}

/*
 * A UDP socket could not send. The port for its first datagram is taken before the kernel
 * looks at the datagram, and what it refuses before it looks for a route passes no other
 * hook. A socket with a peer has had its port since connect().
 */
static __always_inline void handle_send_failed(struct sock *sk, long ret)
{
	if (!sock_is_udp(sk) || sock_state(sk) == TCP_ESTABLISHED)
		return;
	if (sock_port(sk))
		handle_send(sk, spare_note(sk));
	else if (ret == -EAGAIN)
		handle_implicit_bind(sk, EAGAIN);
}

/* The address a call was given: user memory as a system call sees it, kernel memory inside. */
struct address {
	const void *at;
	bool user;
};

static __always_inline long read_address(void *to, __u32 size, const struct address *from, __u32 skip)
{
	return from->user ? bpf_probe_read_user(to, size, from->at + skip)
			  : bpf_probe_read_kernel(to, size, from->at + skip);
}

static __always_inline bool read_sockaddr(struct sockaddr_any *sa, struct address from)
{
	__builtin_memset(sa, 0, sizeof(*sa));
	/* struct sockaddr_in is 16 bytes, sockaddr_in6 28: ask for the longer only where it is one. */
	if (read_address(sa, 8, &from, 0))
		return false;
	if (sa->family == AF_INET6)
		return read_address(sa->v6, 16, &from, 8) == 0;
	return sa->family == AF_INET;
}

/* The address of bind(), which takes one of no family as IPv4 if the socket is IPv4. */
static __always_inline bool read_bind_address(struct sockaddr_any *sa, const struct sock *sk, struct address from)
{
	if (read_sockaddr(sa, from))
		return true;
	if (sa->family != AF_UNSPEC || READ(sk, __sk_common.skc_family) != AF_INET)
		return false;
	sa->family = AF_INET;
	return read_address(&sa->v4_or_flowinfo, 4, &from, 4) == 0;
}

static __always_inline void sockaddr_ip(__u8 ip[16], const struct sockaddr_any *sa)
{
	if (sa->family == AF_INET6)
		__builtin_memcpy(ip, sa->v6, 16);
	else
		ip_from_v4(ip, sa->v4_or_flowinfo);
}

/* bind() was refused. The socket has no address any more: take it from the caller. */
static __always_inline void handle_bind_failed(struct sock *sk, struct address addr, __u16 error)
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

/* __inet_bind() or __inet6_bind() is done. */
static __always_inline void handle_bind_exit(struct sock *sk, const void *address, int ret)
{
	struct address addr = { .at = address };
	struct sockaddr_any sa;

	if (!proto_is_ours(sk))
		return;
	if (ret < 0)
		handle_bind_failed(sk, addr, -ret);
	else if (sock_port(sk) && read_bind_address(&sa, sk, addr)) /* no port yet: IP_BIND_ADDRESS_NO_PORT */
		bind_done(sk, bpf_ntohs(sa.port));
}

/* inet_autobind() is done: a UDP socket that never called bind() sends or connects. */
static __always_inline void handle_autobind(struct sock *sk, int ret)
{
	if (sock_is_udp(sk))
		handle_implicit_bind(sk, -ret);
}

/* listen() entered the LISTEN state; without a port the kernel is about to choose one. */
static __always_inline void handle_listen_enter(struct sock *sk)
{
	if (!sock_port(sk))
		pending_set(sk, PENDING_AUTOBIND);
	else
		pending_take(sk, PENDING_AUTOBIND); /* of a listen() that found no port, at the same address */
}

/* listen() has its port. */
static __always_inline void handle_listen_done(struct sock *sk)
{
	struct event *e;

	if (!proto_is_ours(sk))
		return;
	if (pending_take(sk, PENDING_AUTOBIND))
		handle_implicit_bind(sk, 0);
	e = event_by_task(EVENT_LISTEN, sk);
	if (!e)
		return;
	event_sockopts(e, sk);
	event_submit(e);
}

static __always_inline void handle_listen_failed(struct sock *sk, __u16 error)
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

/* inet_csk_listen_start() is done. */
static __always_inline void handle_listen_start(struct sock *sk, int ret)
{
	if (ret)
		handle_listen_failed(sk, -ret);
	else
		handle_listen_done(sk);
}

/* inet_listen() is done. What inet_csk_listen_start() refused has been reported. */
static __always_inline void handle_listen_exit(const struct socket *socket, int ret)
{
	struct sock *sk = READ(socket, sk);

	if (ret == -EINVAL && !READ((const struct inet_connection_sock *)sk, icsk_ulp_ops))
		handle_listen_failed(sk, EINVAL);
}
