/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* A port is taken by bind(), by listen() or by the kernel's own choice, or refused. */

#include "report.h"

/* bind() was entered: remember the port asked for until it succeeds. note may be NULL. */
static __always_inline void handle_bind_enter(struct sock_note *note, __be32 user_port)
{
	if (note)
		note->requested_port = bpf_ntohs(user_port);
	else
		count(STAT_LOST_STATE);
}

/* The same, told by the hook after bind(). note may be NULL. */
static __always_inline void handle_bind_done(struct sock *sk, struct sock_note *note)
{
	if (!proto_is_ours(sk) || refused_before())
		return;
	if (note)
		note->known_port = sock_port(sk);
	report_bind(sk, note ? note->requested_port : 0);
}

/* __inet_bind() or __inet6_bind() is done. */
static __always_inline void handle_bind_exit(struct sock *sk, const void *address, int ret)
{
	struct address addr = { .at = address };
	struct sockaddr_any sa;

	if (!proto_is_ours(sk))
		return;
	if (ret < 0)
		report_bind_failed(sk, addr, -ret);
	else if (sock_port(sk) && read_bind_address(&sa, sk, addr)) /* no port yet: IP_BIND_ADDRESS_NO_PORT */
		report_bind(sk, bpf_ntohs(sa.port));
}

/* inet_autobind() is done: a UDP socket that never called bind() sends or connects. */
static __always_inline void handle_autobind(struct sock *sk, int ret)
{
	if (sock_is_udp(sk))
		report_implicit_bind(sk, -ret);
}

/* An unconnected UDP socket sends. note may be NULL. */
static __always_inline void handle_send(struct sock *sk, struct sock_note *note)
{
	report_send(sk, note);
}

/* inet_csk_listen_start() is done. */
static __always_inline void handle_listen_start(struct sock *sk, int ret)
{
	if (ret)
		report_listen_failed(sk, -ret);
	else
		report_listen(sk);
}

/* inet_listen() is done. What inet_csk_listen_start() refused has been reported. */
static __always_inline void handle_listen_exit(const struct socket *socket, int ret)
{
	struct sock *sk = READ(socket, sk);

	if (ret == -EINVAL && !READ((const struct inet_connection_sock *)sk, icsk_ulp_ops))
		report_listen_failed(sk, EINVAL);
}
