/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* A port is taken by bind(), by listen() or by the kernel's own choice, or refused. */

#include "emit.h"

static __always_inline bool proto_is_ours(const struct sock *sk)
{
	__u16 proto = sock_protocol(sk);

	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

static __always_inline struct pending *pending_of(const struct sock *sk, __u64 kind)
{
	__u64 key = bpf_get_current_task();
	struct pending *p = bpf_map_lookup_elem(&pendings, &key);

	if (!p || p->sock != (__u64)sk || p->kind != kind)
		return NULL;
	return p;
}

static __always_inline void pending_set(const struct sock *sk, __u64 kind)
{
	struct pending p = { .sock = (__u64)sk, .kind = kind };
	__u64 key = bpf_get_current_task();

	bpf_map_update_elem(&pendings, &key, &p, BPF_ANY); /* LRU: never full */
}

static __always_inline void pending_clear(void)
{
	__u64 key = bpf_get_current_task();

	bpf_map_delete_elem(&pendings, &key);
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

/* bind() took a port. */
static __always_inline void handle_bind_done(struct sock *sk, struct sock_note *note)
{
	struct event *e;

	if (!proto_is_ours(sk))
		return;
	e = event_by_task(EVENT_BIND, sk);
	if (!e)
		return;
	if (note) {
		e->requested_port = note->requested_port;
		note->known_port = e->flow.local_port;
	}
	event_sockopts(e, sk);
	event_submit(e);
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
	if (!error) {
		__builtin_memset(e->flow.remote_ip, 0, 16);
		e->flow.remote_port = 0;
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
	if (note->known_port == port || sock_protocol(sk) != IPPROTO_UDP)
		return;
	note->known_port = port;
	handle_implicit_bind(sk, 0);
}

static __always_inline bool read_sockaddr(struct sockaddr_any *sa, const void *user)
{
	__builtin_memset(sa, 0, sizeof(*sa));
	/* struct sockaddr_in is 16 bytes, sockaddr_in6 28: ask for the longer only where it is one. */
	if (bpf_probe_read_user(sa, 8, user))
		return false;
	if (sa->family == AF_INET6)
		return bpf_probe_read_user(sa->v6, 16, user + 8) == 0;
	return sa->family == AF_INET;
}

static __always_inline void sockaddr_ip(__u8 ip[16], const struct sockaddr_any *sa)
{
	if (sa->family == AF_INET6)
		__builtin_memcpy(ip, sa->v6, 16);
	else
		ip_from_v4(ip, sa->v4_or_flowinfo);
}

/* bind() was refused. The socket has no address any more: take it from the caller. */
static __always_inline void handle_bind_failed(struct sock *sk, const void *user, __u16 error)
{
	struct sockaddr_any sa;
	struct event *e;

	if (!read_sockaddr(&sa, user))
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

/* listen() entered the LISTEN state; without a port the kernel is about to choose one. */
static __always_inline void handle_listen_enter(struct sock *sk)
{
	if (!sock_port(sk))
		pending_set(sk, PENDING_AUTOBIND);
}

/* listen() has its port. */
static __always_inline void handle_listen_done(struct sock *sk)
{
	struct event *e;

	if (!proto_is_ours(sk))
		return;
	if (pending_of(sk, PENDING_AUTOBIND)) {
		pending_clear();
		handle_implicit_bind(sk, 0);
	}
	e = event_by_task(EVENT_LISTEN, sk);
	if (!e)
		return;
	event_sockopts(e, sk);
	event_submit(e);
}

static __always_inline void handle_listen_failed(struct sock *sk, __u16 error)
{
	struct event *e = event_by_task(EVENT_LISTEN, sk);

	if (!e)
		return;
	e->error = error;
	event_sockopts(e, sk);
	event_submit(e);
}
