/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* The sockets there are: a walk of the kernel's port tables, and the file descriptors that refer to them. */

#include "task.h"

/* ---- maps ---- */

#define ROWS_MAX 8192 /* small, so that Go sorts out one part while the kernel writes the next */

/*
 * Rows of one call of the walk.
 * Written here from index 0, read by Go through mmap after the call.
 * Full: the walk stops and Go calls it again where it stopped.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, ROWS_MAX);
	__type(key, __u32);
	__type(value, struct row);
} rows SEC(".maps");

#define NETNS_MAX 64

/* Namespaces of one call of the walk, as rows. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, NETNS_MAX);
	__type(key, __u32);
	__type(value, struct netns_row);
} netns_rows SEC(".maps");

/* State of the walk: written by Go before a call, here during it, read by Go after it. */
struct walk walk;

#define FDS_MAX 1024

/*
 * Chunks of descriptor tables.
 * Written here from index 0, read by Go through mmap between two reads
 * of the iterator. Full: the iterator asks to be called again for the same task,
 * and Go empties it first.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FDS_MAX);
	__type(key, __u32);
	__type(value, struct fds);
} fds SEC(".maps");

/* State of the iterator: rows set to 0 by Go, the rest written and read here. */
struct fds_cursor fds_cursor;

/* ---- steps ---- */

/* Steps of one call; each reads one pointer further. bpf_loop allows 8 Mi. */
#define WALK_STEPS (4 << 20)
/* The same for plain loops, whose every round the verifier follows. */
#define WALK_BURST 1024
#define FDS_BURST 64 /* chunks */

/* ---- file descriptors ---- */

/*
 * Copy the next FDS_CHUNK descriptors of a task. 1: at the end, or no room. A
 * global function, for the verifier goes through those once and not in every
 * round of a loop; it takes only numbers.
 */
__noinline int fds_step(__u64 address)
{
	struct task_struct *task = (void *)address;
	struct fdtable *fdt = READ(READ(task, files), fdt);
	__u32 first = fds_cursor.next, row = fds_cursor.rows;
	unsigned long *open = READ(fdt, open_fds), some = 0;
	struct file **table = READ(fdt, fd);
	struct fds *to;

	if (first >= READ(fdt, max_fds)) { /* always a multiple of 64 (alloc_fdtable) */
		fds_cursor.task = 0;
		return 1;
	}
	bpf_probe_read_kernel(&some, sizeof(some), open + first / FDS_CHUNK);
	if (some) {
		to = bpf_map_lookup_elem(&fds, &row);
		if (!to)
			return 1;
		task_process(&to->process, task);
		to->first = first;
		if (bpf_probe_read_kernel(to->files, sizeof(to->files), table + first) == 0)
			fds_cursor.rows = row + 1;
	}
	fds_cursor.next = first + FDS_CHUNK;
	return 0;
}

/*
 * The descriptor table of one task, without touching what the descriptors refer
 * to: Go knows the files of sockets from the walk. Threads share the table of
 * their leader, most of them. Returns 1 to be called again for the same task.
 */
static __always_inline int handle_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *leader;

	if (!task)
		return 0;
	task = plain(task);
	leader = READ(task, group_leader);
	if (!READ(task, files) || (task != leader && READ(task, files) == READ(leader, files)))
		return 0;
	if (fds_cursor.task != (__u64)task) {
		fds_cursor.task = (__u64)task;
		fds_cursor.next = 0;
	}
	for (int i = 0; i < FDS_BURST; i++)
		if (fds_step((__u64)task))
			break;
	return fds_cursor.task != 0;
}

/* ---- walk of the kernel's tables ---- */

#define WALK_TRIES 32
#define WALK_SLOTS 8 /* looked at in one step while they are empty */

static __always_inline bool node_ends(__u64 node)
{
	return !node || (node & 1);
}

static __always_inline void walk_next_node(void)
{
	struct hlist_node *node = (void *)walk.node; /* hlist_nulls_node has its next at the same place */

	walk.node = (__u64)READ(node, next);
}

static __always_inline void walk_restart(void)
{
	walk.tb = walk.tb2 = walk.node = 0;
	walk.restarts++;
	if (walk.retry != walk.bucket) {
		walk.retry = walk.bucket;
		walk.tries = 0;
	}
	if (walk.tries++ < WALK_TRIES)
		walk.bucket--;
	else
		walk.gave_up++;
}

static __always_inline void row_full_sock(struct row *row, const struct sock *sk)
{
	const struct socket *socket;
	__u64 prot;

	if (walk.ephemeral) {
		/* Every line of memory counts: a socket of a connect() bucket has called connect(). */
		if (row->proto == IPPROTO_TCP && !walk.connected && row->state != TCP_CLOSE &&
		    row->state != TCP_LISTEN && sock_is_active(sk))
			row->flags |= ROW_ACTIVE;
		if (walk.files) {
			socket = READ(sk, sk_socket);
			if (socket)
				row->file = (__u64)READ(socket, file);
		}
		return;
	}
	if (row->proto == IPPROTO_TCP) {
		if (row->state != TCP_CLOSE && row->state != TCP_LISTEN && sock_is_active(sk))
			row->flags |= ROW_ACTIVE;
		/* A subflow's operations are its own (subflow_ulp_init): those seen on another socket spare a look. */
		prot = (__u64)READ(sk, __sk_common.skc_prot);
		if (prot != walk.plain_prot) {
			if (sock_is_mptcp(sk))
				row->flags |= ROW_MPTCP;
			else
				walk.plain_prot = prot;
		}
		if (row->state == TCP_LISTEN &&
		    READ((const struct inet_connection_sock *)sk, icsk_accept_queue.qlen.counter))
			row->flags |= ROW_BACKLOG;
	}
	socket = READ(sk, sk_socket);
	if (socket) {
		row->flags |= ROW_FILE;
		row->file = (__u64)READ(socket, file);
		row->inode = READ((const struct socket_alloc *)socket, vfs_inode.i_ino);
	}
	row->uid = READ(sk, sk_uid.val);
}

/* Keep the settings of a namespace for the next owner, who is most likely of the same. */
static __always_inline void walk_settings(const struct net *net)
{
	__u32 range;

	if (walk.net == (__u64)net)
		return;
	range = port_range(net);
	walk.net = (__u64)net;
	walk.low = range;
	walk.high = range >> 16;
	walk.tw_delay_ms = tw_reuse_delay(net);
}

/* Write one row about sk. False: no room, try again in the next call. */
static __always_inline bool walk_row(const struct sock *sk)
{
	__u32 i = walk.rows;
	struct row *row;

	if (walk.port && sock_port(sk) != walk.port)
		return true;
	row = bpf_map_lookup_elem(&rows, &i);
	if (!row)
		return false;
	row->time_ns = walk.ephemeral ? 0 : bpf_ktime_get_boot_ns();
	row->sock = (__u64)sk;
	row->file = 0;
	row->inode = 0;
	row->uid = 0;
	row->dev = READ(sk, __sk_common.skc_bound_dev_if);
	row->state = sock_state(sk);
	if (walk.ephemeral)
		row->proto = walk.table == WALK_TCP_BIND ? IPPROTO_TCP : IPPROTO_UDP;
	else if (row->state == TCP_TIME_WAIT || row->state == TCP_NEW_SYN_RECV)
		row->proto = IPPROTO_TCP;
	else
		row->proto = sock_protocol(sk);
	row->flags = walk.connected ? ROW_CONNECTED : 0;
	sock_flow(&row->flow, sk);
	if (READ_BITS(sk, __sk_common.skc_ipv6only))
		row->flags |= ROW_V6ONLY;
	if (READ_BITS(sk, __sk_common.skc_reuse))
		row->flags |= ROW_REUSEADDR;
	if (READ_BITS(sk, __sk_common.skc_reuseport))
		row->flags |= ROW_REUSEPORT;
	if (row->state == TCP_TIME_WAIT) {
		row->flags |= ROW_TIMEWAIT;
		row->state = READ((const struct inet_timewait_sock *)sk, tw_substate);
		if (walk.ephemeral && timewait_aged((const void *)sk, walk.tw_delay_ms, walk.now))
			row->flags |= ROW_TW_AGED;
	} else if (row->state != TCP_NEW_SYN_RECV) {
		row_full_sock(row, sk);
	}
	walk.rows++;
	return true;
}

/* The bind bucket (by address where there are such) that a TCP socket or timewait sock says it is in. */
static __always_inline __u64 sock_bucket(const struct sock *sk)
{
	const struct inet_timewait_sock *tw = (const void *)sk;
	const struct inet_connection_sock *icsk = (const void *)sk;
	bool is_tw = sock_state(sk) == TCP_TIME_WAIT;

	if (owners_by_address())
		return (__u64)(is_tw ? READ(tw, tw_tb2) : READ(icsk, icsk_bind2_hash));
	return (__u64)(is_tw ? READ(tw, tw_tb) : READ(icsk, icsk_bind_hash));
}

static __always_inline __u64 udp_slot(const struct sock *sk)
{
	__u32 mix = READ(READ(sk, __sk_common.skc_net.net), hash_mix);

	return (sock_port(sk) + mix) & (walk.buckets - 1); /* udp_hashfn() */
}

/* The socket a node of the table is in. */
static __always_inline struct sock *node_sock(__u64 node)
{
	if (walk.table == WALK_TCP_BIND)
		return (void *)node - bpf_core_field_offset(struct sock_common, skc_bind_node);
	if (walk.table == WALK_UDP)
		return (void *)node - bpf_core_field_offset(struct sock_common, skc_node);
	if (walk.table == WALK_SOCK)
		return (void *)node;
	return (void *)node - bpf_core_field_offset(struct sock_common, skc_nulls_node);
}

/*
 * Is sk still where it was found? Nothing is locked: an owner that names another
 * bucket or hashes to another slot has moved under us, and its next is another's.
 */
static __always_inline bool node_holds(const struct sock *sk)
{
	if (walk.table == WALK_TCP_BIND && walk.ephemeral) /* that sk is near in memory is worth more than to be sure */
		return sock_port(sk) == walk.tb_port && (__u64)READ(sk, __sk_common.skc_net.net) == walk.net;
	if (walk.table == WALK_TCP_BIND)
		return sock_bucket(sk) == walk.owner;
	if (walk.table == WALK_UDP)
		return udp_slot(sk) == walk.owner;
	if (walk.table == WALK_SOCK)
		return sock_port(sk) == walk.port;
	return (READ(sk, __sk_common.skc_hash) & (walk.buckets - 1)) == walk.owner;
}

static __always_inline bool node_wanted(const struct sock *sk)
{
	if (walk.table == WALK_UDP && walk.ephemeral) {
		walk_settings(READ(sk, __sk_common.skc_net.net));
		if (sock_port(sk) < walk.low || sock_port(sk) > walk.high)
			return false;
	}
	if (walk.table == WALK_UDP)
		return sock_protocol(sk) == IPPROTO_UDP;
	return walk.table != WALK_TCP_REQUEST || sock_state(sk) == TCP_NEW_SYN_RECV;
}

/* Buckets of a VRF (l3mdev) are out of reach for connect() and bind() from outside it. */
static __always_inline bool bucket_wanted(const struct inet_bind_bucket *tb)
{
	__u16 port = READ(tb, port);

	if (!walk.ephemeral)
		return !walk.port || port == walk.port;
	walk.tb_port = port;
	walk_settings(READ(tb, ib_net.net));
	return port >= walk.low && port <= walk.high && !READ(tb, l3mdev);
}

/* The TCP bind buckets of a port: their owners, or since 6.8 the per-address buckets that have them. */
static __always_inline void walk_bind_bucket(void)
{
	if (owners_by_address() && walk.tb2) {
		struct inet_bind2_bucket *tb2 =
			(void *)walk.tb2 - bpf_core_field_offset(struct inet_bind2_bucket, bhash_node);

		walk.owner = (__u64)tb2;
		walk.node = (__u64)READ(tb2, owners.first);
		walk.tb2 = (__u64)READ(tb2, bhash_node.next);
	} else {
		struct inet_bind_bucket *tb = (void *)walk.tb - bpf_core_field_offset(struct inet_bind_bucket, node);
		bool want = bucket_wanted(tb);

		walk.connected = READ(tb, fastreuse) < 0 && READ(tb, fastreuseport) < 0;
		walk.tb = (__u64)READ(tb, node.next);
		if (want && owners_by_address()) {
			walk.tb2 = (__u64)READ(tb, bhash2.first);
		} else if (want) {
			walk.owner = (__u64)tb;
			walk.node = (__u64)bucket_owners(tb);
		}
	}
}

struct walk_tables {
	void *heads; /* first of the chain heads */
	__u64 size;  /* from one to the next */
	__u32 steps; /* most steps of one call */
};

/* The next slot of the table. A chain head is one pointer, in every table. */
static __always_inline void walk_slot(const struct walk_tables *tables)
{
	__u64 first = 0;

	bpf_probe_read_kernel(&first, sizeof(first), tables->heads + walk.bucket * tables->size);
	walk.owner = walk.bucket++;
	if (walk.table == WALK_TCP_BIND)
		walk.tb = first;
	else
		walk.node = first;
}

/*
 * The namespaces hang in a ring with one list head, which is of no namespace:
 * it lacks the operations that all namespaces have.
 */
static __always_inline bool netns_row(void)
{
	struct net *net = (void *)walk.node - bpf_core_field_offset(struct net, list);
	__u32 i = walk.rows, range;
	struct netns_row *row;

	if ((__u64)READ(net, ns.ops) != walk.plain_prot)
		return true;
	row = bpf_map_lookup_elem(&netns_rows, &i);
	if (!row)
		return false;
	range = port_range(net);
	row->netns = READ(net, ns.inum);
	row->low = range;
	row->high = range >> 16;
	row->tw_reuse = tw_reuse(net);
	row->pad = 0;
	/* Zeroes it on failure. */
	bpf_probe_read_kernel(row->reserved, sizeof(row->reserved), READ(net, ipv4.sysctl_local_reserved_ports));
	walk.rows++;
	return true;
}

/* The next namespace. 1: at the end, or no room. */
static __always_inline long walk_netns(void)
{
	if (!netns_row())
		return 1;
	walk.node = (__u64)READ((struct list_head *)walk.node, next);
	if (walk.node && walk.node != walk.owner)
		return 0;
	if (!walk.node)
		walk.gave_up++; /* it went away under us */
	walk.done = 1;
	return 1;
}

/*
 * One step: the next owner, else the next bind bucket, else the next slot that is
 * not empty, or WALK_SLOTS further. A single function for all tables, as the verifier
 * goes through it once and that takes longer than to walk.
 */
static __always_inline long walk_on(const struct walk_tables *tables)
{
	if (walk.table == WALK_NETNS)
		return walk_netns();
	if (!node_ends(walk.node)) {
		struct sock *sk = node_sock(walk.node);

		if (!node_holds(sk))
			walk_restart();
		else if (node_wanted(sk) && !walk_row(sk))
			return 1;
		else
			walk_next_node();
		return 0;
	}
	if (walk.tb || walk.tb2) {
		walk_bind_bucket();
		return 0;
	}
	for (int i = 0; i < WALK_SLOTS && !walk.tb && node_ends(walk.node); i++) {
		if (walk.bucket >= walk.buckets) {
			walk.done = 1;
			return 1;
		}
		walk_slot(tables);
	}
	return 0;
}

static long walk_step(__u32 i, struct walk_tables *tables)
{
	return walk_on(tables);
}

/* Find the table to walk. */
static __always_inline struct walk_tables walk_begin(void)
{
	struct net *net = READ(READ(task_current(), nsproxy), net_ns);
	struct inet_hashinfo *info = tcp_hashinfo(net);
	struct walk_tables tables;
	struct udp_table *udp;

	/* One by one: as a constant it would be in .rodata, which without variables Linux 5.10 refuses. */
	tables.heads = NULL;
	tables.size = 0;
	tables.steps = WALK_STEPS;
	walk.rows = 0;
	walk.done = 0;
	walk.now = bpf_ktime_get_ns();
	switch (walk.table) {
	case WALK_TCP_BIND:
		walk.buckets = READ(info, bhash_size);
		tables.heads = plain(READ(info, bhash)) + bpf_core_field_offset(struct inet_bind_hashbucket, chain);
		tables.size = bpf_core_type_size(struct inet_bind_hashbucket);
		break;
	case WALK_UDP:
		udp = udp_table_of(net, task_sock(task_current(), walk.udp_fd));
		if (!udp)
			break;
		walk.buckets = (__u64)READ(udp, mask) + 1;
		tables.heads = plain(READ(udp, hash)) + bpf_core_field_offset(struct udp_hslot, head);
		tables.size = bpf_core_type_size(struct udp_hslot);
		break;
	case WALK_SOCK:
		walk.buckets = walk.done = tables.steps = 1;
		break;
	case WALK_NETNS:
		walk.buckets = 1;
		if (walk.node)
			break; /* go on */
		walk.owner = walk.node = (__u64)net + bpf_core_field_offset(struct net, list);
		walk.plain_prot = (__u64)READ(net, ns.ops);
		break;
	case WALK_TCP_REQUEST:
		walk.buckets = (__u64)READ(info, ehash_mask) + 1;
		tables.heads = plain(READ(info, ehash)) + bpf_core_field_offset(struct inet_ehash_bucket, chain);
		tables.size = bpf_core_type_size(struct inet_ehash_bucket);
		break;
	}
	return tables;
}

/* Read on where the last call stopped, until the table ends or rows is full. */
static __always_inline void handle_walk(void)
{
	struct walk_tables tables = walk_begin();

	bpf_loop(tables.steps, walk_step, &tables, 0);
}

#if !HAVE_CAST
/* walk_step as a global function: see fds_step. */
__noinline int walk_step_once(__u64 heads, __u64 size)
{
	struct walk_tables tables = { .heads = (void *)heads, .size = size };

	return walk_on(&tables);
}

/* The same for kernels without bpf_loop() or programs of type syscall: WALK_BURST steps. */
static __always_inline void handle_walk_burst(void)
{
	struct walk_tables tables = walk_begin();

	for (__u32 i = 0; i < WALK_BURST && i < tables.steps; i++)
		if (walk_step_once((__u64)tables.heads, tables.size))
			break;
}
#endif
