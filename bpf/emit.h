/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* Reserve, fill, submit, and count each loss by its reason. */

#include "maps.h"
#include "sock.h"
#include "task.h"

/*
 * Waking the reader costs more than everything else, so a busy machine wakes
 * it at most every WAKE_QUIET_NS, or every WAKE_BUSY_NS once wake_bytes wait.
 * The reader sleeps without a timeout only after readerIdle (tracer/reader.go) has
 * passed without an event, which must be longer than WAKE_QUIET_NS: then the
 * next event is sure to wake it.
 */
#define WAKE_QUIET_NS (20 * 1000 * 1000ULL)
#define WAKE_BUSY_NS (1 * 1000 * 1000ULL)
#define LOOK_NS (100 * 1000ULL) /* how often to ask how much waits, which every event would pay for */

static __u64 last_wake_ns;
static __u64 last_look_ns;

/* Atomic, though by CPU: a hook in an interrupt may come between the read and the write of another. */
static __always_inline void count(__u32 stat)
{
	__u64 *n = bpf_map_lookup_elem(&stats, &stat);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline void event_head(struct event *e, __u8 type, const struct sock *sk)
{
	__builtin_memset(e, 0, EVENT_SHORT);
	e->type = type;
	e->time_ns = bpf_ktime_get_boot_ns();
	e->sock = (__u64)sk;
	e->proto = sock_protocol(sk) == IPPROTO_UDP ? IPPROTO_UDP : IPPROTO_TCP;
}

/* An event about sk without flow and process. NULL: lost, and counted. */
static __always_inline struct event *event_short(__u8 type, const struct sock *sk)
{
	struct event *e = bpf_ringbuf_reserve(&events, EVENT_SHORT, 0);

	if (e)
		event_head(e, type, sk);
	else
		count(STAT_LOST_RING);
	return e;
}

/* Fill an event about sk by the current task. Not inline, for it is most of every program. */
static __noinline void event_fill(struct event *e, const struct sock *sk, __u8 type)
{
	event_head(e, type, sk);
	sock_flow(&e->flow, sk);
	task_process(&e->process, task_current());
	if (e->proto == IPPROTO_TCP && sock_is_mptcp(sk))
		e->flags |= EVENT_MPTCP;
}

/* An event about sk by the current task. NULL: lost, and counted. */
static __always_inline struct event *event_by_task(__u8 type, const struct sock *sk)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (e)
		event_fill(e, sk, type);
	else
		count(STAT_LOST_RING);
	return e;
}

/* Whether to wake the reader for what is handed over now. */
static __always_inline __u64 wake_flags(__u64 now)
{
	__u64 since = now - last_wake_ns;
	bool wake = (__s64)since > (__s64)WAKE_QUIET_NS;

	if (!wake && (__s64)since > (__s64)WAKE_BUSY_NS && (__s64)(now - last_look_ns) > (__s64)LOOK_NS) {
		last_look_ns = now;
		wake = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > wake_bytes;
	}
	if (!wake)
		return BPF_RB_NO_WAKEUP;
	last_wake_ns = now;
	return BPF_RB_FORCE_WAKEUP;
}

static __always_inline void event_submit(struct event *e)
{
	__u64 flags = wake_flags(e->time_ns);

	count(STAT_SUBMITTED); /* first: what the reader has is never more */
	bpf_ringbuf_submit(e, flags);
}
