/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* What only the end of an io_uring request tells: who accepted, connects of UDP, and datagrams that failed. */

#include "report.h"

/*
 * accept() of io_uring gave a descriptor. req is NULL where the request goes on
 * (multishot) and its results do not tell which it is: then the number may be another
 * request's result, and what has that descriptor an older socket, which the reader knows.
 */
static __always_inline void uring_accepted(const struct io_kiocb *req, __u32 fd)
{
	struct sock *sk = task_sock(task_current(), fd);
	__u8 state;

	if (!sk || sock_protocol(sk) != IPPROTO_TCP)
		return;
	if (req) {
		report_accept(sk, 0);
		return;
	}
	state = sock_state(sk);
	if (state != TCP_CLOSE && state != TCP_LISTEN && !sock_is_active(sk))
		report_accept(sk, EVENT_MAYBE);
}

/* The end of a request that may be ours; not inline, see handle_sockops. */
static __noinline void uring_ours(const struct io_kiocb *req, __s32 res)
{
	struct sock *sk;

	if (req && READ(req, opcode) == IORING_OP_CONNECT) {
		sk = sock_of_file(READ(req, file));
		if (sk && sock_is_udp(sk))
			report_connect_udp_exit(sk, (struct address){}, res);
	} else if (!req || !READ((const struct io_accept *)req, file_slot)) { /* a slot: of the ring's own table */
		uring_accepted(req, res);
	}
}

static __always_inline bool opcode_is_send(__u8 opcode)
{
	return opcode == IORING_OP_SEND || opcode == IORING_OP_SENDMSG || opcode == IORING_OP_WRITE ||
	       opcode == IORING_OP_WRITEV || opcode == IORING_OP_WRITE_FIXED || opcode == IORING_OP_SEND_ZC ||
	       opcode == IORING_OP_SENDMSG_ZC || opcode == IORING_OP_SPLICE;
}

/* A request that sends has failed; not inline, see handle_sockops. */
static __noinline void uring_send_failed(const struct io_kiocb *req, __s32 res)
{
	struct sock *sk = sock_of_file(READ(req, file));

	if (sk)
		report_send_failed(sk, res);
}

/*
 * A request is done, or one that goes on has a result: in the thread that made it, or
 * one that shares its descriptors. Of those that go on only accept has a result without
 * a buffer, but for poll.
 */
static __always_inline void handle_uring_complete(const struct io_kiocb *req, __s32 res, __u32 flags)
{
	__u8 opcode = req ? READ(req, opcode) : IORING_OP_ACCEPT;

	if (res < 0) {
		if (!req)
			return;
		if (opcode_is_send(opcode) && by_tracepoint(PART_IMPLICIT))
			uring_send_failed(req, res);
		if (opcode != IORING_OP_CONNECT)
			return; /* a connect() of UDP may have taken a port before it failed */
	}
	if (!req && (!(flags & IORING_CQE_F_MORE) || flags & IORING_CQE_F_BUFFER))
		return;
	if ((opcode == IORING_OP_ACCEPT && by_tracepoint(PART_ACCEPT)) ||
	    (opcode == IORING_OP_CONNECT && by_tracepoint(PART_PEER | PART_IMPLICIT)))
		uring_ours(req, res);
}
