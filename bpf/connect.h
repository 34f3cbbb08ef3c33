/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* connect(): TCP takes a port towards a destination, UDP sets a peer; or it was refused. */

#include "report.h"

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
	pending_autobind(sk);
}

/* __udp_disconnect() is done. */
static __always_inline void handle_udp_disconnect(struct sock *sk)
{
	report_udp_disconnect(sk);
}

/*
 * A socket has an error. SOCK_DESTROY (ss -K) says ECONNABORTED before it does to a UDP
 * socket what connect(AF_UNSPEC) does.
 */
static __always_inline void handle_error(struct sock *sk)
{
	if (READ_TYPED(sk, sk_err) == ECONNABORTED && sock_is_udp(sk) && sock_port(sk))
		report_unpeer(sk, sock_locks(sk) & SOCK_BINDPORT_LOCK ? EVENT_UNPEER : EVENT_CLOSE);
}

/* inet_hash_connect() or inet6_hash_connect() is done: the port is picked, or there is none. */
static __always_inline void handle_hash_connect(struct sock *sk, int ret)
{
	__u64 search_ns = search_end(sk);

	if (ret)
		report_no_port(sk, search_ns);
	else
		report_connect_tcp(sk, search_ns);
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
		report_connect_refused(sk, addr, ret);
		return;
	}
	if (by_tracepoint(PART_IMPLICIT))
		autobind_failed(sk, ret);
	report_connect_udp(sk, addr, ret);
}

/* One of the two moments of handle_sockops. */
static __noinline void sockops_ours(struct bpf_sock_ops *ctx)
{
	if (!ctx->sk)
		return;
	if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB && by_tracepoint(PART_LISTEN))
		report_listen(plain_sock(ctx->sk));
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB && by_tracepoint(PART_CONNECT))
		report_connect_tcp(plain_sock(ctx->sk), 0);
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
