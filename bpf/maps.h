/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/*
 * Every map of the hooks: what it holds, who writes, deletes and reads it, why it
 * stays bounded, and what happens when it is full. Those of the snapshot are in
 * snapshot.h.
 */

#include "rows.h"

/* Set by Go before loading. */
const volatile bool syscall_hooks; /* the sys_exit hook is to be attached */
const volatile __u32 wake_bytes;   /* wake the reader early once this much waits */

/*
 * Bits of enum part. Written by Go after it has tried the hooks of the fentry
 * tier and before it attaches those of the tracepoint tier.
 */
__u32 tracepoint_parts;

/* Emit EVENT_ESTABLISHED. Written by Go at any time. */
bool want_established;

static __always_inline bool by_tracepoint(enum part part)
{
	return *(volatile __u32 *)&tracepoint_parts & part;
}

/* Nothing reads this: it keeps the types in the BTF that Go's are generated from. */
const volatile struct {
	enum event_type event;
	enum event_flag event_flag;
	enum row_flag row_flag;
	enum tcp_state state;
	enum part part;
	enum walk_table walk_table;
	struct cgroup_made cgroup_made[0];
	struct row row[0]; /* of rows.h, as those that follow */
	struct fds fds[0];
	struct fds_cursor fds_cursor[0];
	struct walk walk[0];
	struct walk_call walk_call[0];
	struct netns_row netns_row[0];
	struct device_row device_row[0];
	struct devices_cursor devices_cursor[0];
} contract;

/*
 * Events on their way to Go.
 * Written by emit.h, read and freed by the one reader in Go. Its size is set
 * by Go. Full: the event is lost and STAT_LOST_RING counts it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__type(value, struct event);
} events SEC(".maps");

/*
 * Counters by CPU, index enum stat.
 * Written by emit.h, read by Go, never deleted. Fixed size.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STAT_MAX);
	__type(key, enum stat);
	__type(value, __u64);
} stats SEC(".maps");

/* What the hooks must remember of a socket between two of its calls. */
struct sock_note {
	__u16 requested_port; /* bind: port asked for, from bind4/6 until post_bind4/6 */
	__u16 known_port;     /* UDP: port that has been reported */
	__u8 accepted;	      /* TCP: accept has been reported */
};

/*
 * struct sock_note of a socket.
 * Written and read by bind.h, report.h and accept.h; the kernel deletes it with
 * the socket, so it is bounded by the sockets there are. Where the socket has no memory
 * for it the note is one of spare_notes. Tracepoint tier only.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_note);
} notes SEC(".maps");

/* A note that is not kept with its socket. */
struct spare_note {
	struct sock_note note;
	__u32 inode; /* of the socket that had the address then */
};

/*
 * The notes of sockets that have no memory left for one: what a socket's options may
 * take is limited, and any user can use it up. And of those whose datagram failed, where
 * the hook cannot reach the socket's own note.
 * Key: address of the socket. Written by pending.h, read as notes are; evicted, least recently used
 * first: then what was reported is reported again, and the reader knows it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096); /* Go makes it more where there are many processors */
	__type(key, __u64);
	__type(value, struct spare_note);
} spare_notes SEC(".maps");

enum pending_kind {
	PENDING_NO_PORT = 1, /* failed connect already reported by the state hook */
	PENDING_AUTOBIND,    /* UDP connect, or listen, entered without a port */
	PENDING_FAILED,	     /* the connection failed: its close tells why */
};

struct pending {
	__u64 sock;
	__u64 kind; /* enum pending_kind */
};

/*
 * What one hook tells a later hook of the same thread within one call.
 * Key: address of the task; PENDING_FAILED, which an interrupt tells, of the socket.
 * Written by pending.h, deleted by the later hook. A thread has one
 * call at a time; entries of calls that never reach the later hook (io_uring) are
 * evicted, least recently used first.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096); /* Go makes it more where there are many processors */
	__type(key, __u64);
	__type(value, struct pending);
} pendings SEC(".maps");

#define SEARCHES 1024

/*
 * When connect() began to look for a port, fentry tier.
 * A slot by the address of the socket, written by the state hook and read at the
 * end of inet_hash_connect(). Another socket may take the slot meanwhile: then it is
 * not known how long the first one took.
 */
struct search {
	__u64 sock;
	__u64 start_ns;
} searches[SEARCHES];
