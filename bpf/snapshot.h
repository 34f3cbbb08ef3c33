/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* The sockets there are: a walk of the kernel's port tables, and the file descriptors that refer to them. */

#include "rows.h"
#include "task.h"

/* ---- maps ---- */

#define ROWS_MAX 8192 /* of a lane */
#define LANES 2	      /* processors that walk at once */

/*
 * Rows of one call of the walk, for each lane.
 * Written here from index lane * ROWS_MAX, read by Go through mmap after the call.
 * Full: the walk stops and Go calls it again where it stopped.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LANES *ROWS_MAX);
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

/* State of the walk of each lane: written by Go before a call, here during it, read by Go after it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LANES);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

#define FDS_MAX 512

/*
 * Chunks of descriptor tables, those that have sockets.
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

/* The operations of files of sockets and of rings: found by walk_begin() in files of the caller, 0: not known. */
struct {
	__u64 socket;
	__u64 ring;
} file_kinds;

#define SEEN 4096

/*
 * Tables that threads have without their leader, by process: read once, though many
 * threads share one. A slot by the address of the table; another table may take it, then
 * one is read twice, which Go finds out. session: the iterator's.
 */
struct {
	__u64 files;
	__u64 leader;
	__u64 session;
} seen[SEEN];

/* ---- steps ---- */

/* Steps of one call; each reads one pointer further. bpf_loop allows 8 Mi. */
#define WALK_STEPS (4 << 20)
/* The same for plain loops, whose every round the verifier follows. */
#define WALK_BURST 1024
#define FDS_BURST 64 /* chunks */

/* ---- file descriptors ---- */

/* What sort of file is at this address, which may be of a file no more. */
static __always_inline __u64 file_kind(const struct file *file)
{
	return (__u64)READ(file, f_op);
}

/*
 * Put the socket of a file into place i of a chunk. True: it is one. The caller then
 * looks whether the descriptor still refers to the file: else the file has been closed,
 * its address may be another's, and so may the socket.
 */
static __always_inline bool fd_socket(struct fds *to, __u32 i, const struct file *file)
{
	const struct inode *inode;

	if (!file_kinds.socket || file_kind(file) != file_kinds.socket)
		return false;
	inode = READ(file, f_inode);
	to->sockets[i] = (__u64)inode - bpf_core_field_offset(struct socket_alloc, vfs_inode) +
			 bpf_core_field_offset(struct socket_alloc, socket);
	to->inodes[i] = READ(inode, i_ino);
	return true;
}

/* A chunk of the table of task has been filled: keep it. */
static __always_inline void fds_keep(struct fds *to, const struct task_struct *task, __u32 first, bool ring)
{
	task_process(&to->process, TYPED(task));
	to->first = first;
	to->ring = ring;
	to->tid = READ(task, pid);
	fds_cursor.rows++;
}

#define FD_SOCKET 1
#define FD_RING 2

/*
 * Entry i of a chunk, whose file fds_step() put there and which is at an address in the
 * table: name its socket instead. Global functions, here and below, for the verifier goes
 * through those once and not in every round of a loop, and does not follow what they return;
 * they take only numbers.
 */
__noinline int fd_entry(__u32 row, __u32 i, __u64 at)
{
	struct fds *to = bpf_map_lookup_elem(&fds, &row);
	struct file *file;

	if (!to || i >= FDS_CHUNK)
		return 0;
	file = (void *)to->sockets[i];
	to->sockets[i] = to->inodes[i] = 0;
	if (!file)
		return 0;
	if (!fd_socket(to, i, file))
		return file_kinds.ring && file_kind(file) == file_kinds.ring ? FD_RING : 0;
	if (READ_WORD((void *)at) == (__u64)file)
		return FD_SOCKET;
	to->sockets[i] = 0;
	return 0;
}

/* Entry i of a chunk, from what a ring has at an address. */
__noinline int ring_entry(__u32 row, __u32 i, __u64 at)
{
	struct fds *to = bpf_map_lookup_elem(&fds, &row);
	__u64 entry = READ_WORD((void *)at);

	if (!to || i >= FDS_CHUNK)
		return 0;
	to->sockets[i] = to->inodes[i] = 0;
	if (!entry || !fd_socket(to, i, ring_file(entry)))
		return 0;
	if (READ_WORD((void *)at) == entry)
		return FD_SOCKET;
	to->sockets[i] = 0;
	return 0;
}

/* A chunk while its entries are looked at. */
struct chunk {
	__u64 entries; /* address of the first */
	__u64 rings;   /* bit i: entry i is a ring */
	__u32 row;
	__u32 some; /* is one a socket? */
	bool of_ring;
};

static long chunk_entry(__u32 i, struct chunk *c)
{
	__u64 at = c->entries + i * sizeof(__u64);
	int kind = c->of_ring ? ring_entry(c->row, i, at) : fd_entry(c->row, i, at);

	c->some |= kind & FD_SOCKET;
	c->rings |= (__u64)(kind / FD_RING) << (i & (FDS_CHUNK - 1));
	return 0;
}

/* Look at the first n entries of a chunk. */
static __always_inline void chunk_entries(struct chunk *c, __u32 n)
{
#if HAVE_CAST
	bpf_loop(n, chunk_entry, c, 0);
#else
	for (__u32 i = 0; i < FDS_CHUNK && i < n; i++)
		chunk_entry(i, c);
#endif
}

/* The next FDS_CHUNK files registered with the ring at descriptor ring_fd of a task. 1: no room. */
__noinline int ring_step(__u64 address)
{
	struct task_struct *task = (void *)address;
	struct fdtable *fdt = READ(READ(task, files), fdt);
	__u32 fd = fds_cursor.ring_fd, first = fds_cursor.ring_next, count = 0;
	struct chunk c = { .row = fds_cursor.rows, .of_ring = true };
	struct file *file = NULL;
	struct fds *to;

	if (fds_cursor.rings & 1 && fd < READ(fdt, max_fds))
		file = (void *)READ_WORD(READ(fdt, fd) + fd);
	if (file && file_kind(file) == file_kinds.ring)
		c.entries = (__u64)plain(ring_files(READ(file, private_data), first, &count));
	if (first >= count) {
		fds_cursor.rings >>= 1;
		fds_cursor.ring_fd = fd + 1;
		fds_cursor.ring_next = 0;
		return 0;
	}
	to = bpf_map_lookup_elem(&fds, &c.row);
	if (!to)
		return 1;
	__builtin_memset(to->sockets, 0, sizeof(to->sockets) + sizeof(to->inodes));
	chunk_entries(&c, count - first < FDS_CHUNK ? count - first : FDS_CHUNK);
	if (c.some)
		fds_keep(to, task, fd, true);
	fds_cursor.ring_next = first + FDS_CHUNK;
	return 0;
}

/* The sockets among the next FDS_CHUNK descriptors of a task. 1: at the end, or no room. */
__noinline int fds_step(__u64 address)
{
	struct task_struct *task = (void *)address;
	struct fdtable *fdt = READ(READ(task, files), fdt);
	unsigned long *open = READ(fdt, open_fds), any = 0;
	struct chunk c = { .row = fds_cursor.rows };
	__u32 first = fds_cursor.next;
	struct fds *to;

	if (first >= READ(fdt, max_fds)) { /* always a multiple of 64 (alloc_fdtable) */
		fds_cursor.task = 0;
		return 1;
	}
	bpf_probe_read_kernel(&any, sizeof(any), open + first / FDS_CHUNK);
	if (any) {
		to = bpf_map_lookup_elem(&fds, &c.row);
		if (!to)
			return 1;
		c.entries = (__u64)plain(READ(fdt, fd) + first);
		bpf_probe_read_kernel(to->sockets, sizeof(to->sockets), (void *)c.entries); /* zeroes it on failure */
		chunk_entries(&c, FDS_CHUNK);
		if (c.some)
			fds_keep(to, task, first, false);
		fds_cursor.rings = c.rings;
		fds_cursor.ring_fd = first;
		fds_cursor.ring_next = 0;
	}
	fds_cursor.next = first + FDS_CHUNK;
	return 0;
}

/* Has another thread of the same process shown this table? Addresses are numbers here. */
static __always_inline bool table_seen(__u64 files, __u64 leader, __u64 session)
{
	__u32 i = (files >> 6) % SEEN;

	if (seen[i].files == files && seen[i].leader == leader && seen[i].session == session)
		return true;
	seen[i].files = files;
	seen[i].leader = leader;
	seen[i].session = session;
	return false;
}

static long task_step(__u32 i, __u64 *address)
{
	int end = fds_cursor.rings ? ring_step(*address) : fds_step(*address);

	asm volatile("" : "+r"(end)); /* the compiler knows that it is 0 or 1, the verifier does not */
	return end != 0;
}

/*
 * The sockets that a task has descriptors of. Threads share the table of their leader,
 * most of them; one whose leader has ended, or that has a table of its own, shows it.
 * Returns 1 to be called again for the same task.
 */
static __always_inline int handle_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *leader;
	struct files_struct *files;
	__u64 address;

	if (!task)
		return 0;
	task = plain(task);
	if (READ(task, pid) == 1)
		fds_cursor.init = 1;
	leader = READ(task, group_leader);
	files = READ(task, files);
	if (!files || (task != leader && files == READ(leader, files)))
		return 0;
	if (fds_cursor.task != (__u64)task) {
		if (task != leader && table_seen((__u64)plain(files), (__u64)plain(leader), ctx->meta->session_id))
			return 0;
		fds_cursor.task = (__u64)task;
		fds_cursor.rings = 0;
		fds_cursor.next = 0;
	}
	address = (__u64)task;
#if HAVE_CAST
	bpf_loop(FDS_BURST, task_step, &address, 0);
#else
	for (int i = 0; i < FDS_BURST; i++)
		if (task_step(i, &address))
			break;
#endif
	return fds_cursor.task != 0;
}

/* ---- walk of the kernel's tables ---- */

#define WALK_TRIES 32
#define WALK_SLOTS 8 /* looked at in one step while they are empty */

static __always_inline bool node_ends(__u64 node)
{
	return !node || (node & 1);
}

/* The node after this one. */
static __always_inline __u64 node_next(__u64 node)
{
	return (__u64)READ((struct hlist_node *)node,
			   next); /* hlist_nulls_node has its next and pprev at the same places */
}

/* Is a node still in a list? Then the one before it, or the head, leads to it. */
static __always_inline bool node_linked(__u64 node)
{
	return READ_WORD(READ((struct hlist_node *)node, pprev)) == node;
}

static __noinline void walk_restart(struct walk *w)
{
	w->tb = w->tb2 = w->node = 0;
	w->restarts++;
	if (w->retry != w->bucket) {
		w->retry = w->bucket;
		w->tries = 0;
	}
	if (w->tries++ < WALK_TRIES)
		w->bucket--;
	else
		w->gave_up++;
}

/* What descriptors refer to. */
static __always_inline void row_socket(struct row *row, const struct socket *socket)
{
	row->socket = (__u64)socket;
	row->inode = READ((const struct socket_alloc *)socket, vfs_inode.i_ino);
}

/* The rest of a row of ph_ports. Every line of memory counts: a socket of a connect() bucket has called connect(). */
static __always_inline void row_port_sock(const struct walk *w, struct row *row, const struct sock *sk)
{
	const struct socket *socket;

	if (row->proto == IPPROTO_TCP && !w->connected && row->state != TCP_CLOSE && row->state != TCP_LISTEN &&
	    sock_is_active(sk))
		row->flags |= ROW_ACTIVE;
	if (!w->sockets)
		return;
	socket = READ(sk, sk_socket);
	if (socket)
		row_socket(row, socket);
}

/* What of a row of ph_walk is of a listener's queues. It has no remote end. */
static __always_inline void row_listener(struct row *row, const struct sock *sk)
{
	struct backlog *backlog = (void *)row->flow.remote_ip;

	if (READ((const struct inet_connection_sock *)sk, icsk_accept_queue.qlen.counter))
		row->flags |= ROW_BACKLOG;
	backlog->waiting = READ(sk, sk_ack_backlog);
	backlog->max = READ(sk, sk_max_ack_backlog);
	backlog->cgroup = sock_cgroup(sk);
}

/* The rest of a row of ph_walk. */
static __always_inline void row_full_sock(struct walk *w, struct row *row, const struct sock *sk)
{
	const struct socket *socket;
	__u64 prot;

	if (row->proto == IPPROTO_TCP) {
		if (row->state != TCP_CLOSE && row->state != TCP_LISTEN && sock_is_active(sk))
			row->flags |= ROW_ACTIVE;
		/* A subflow's operations are its own (subflow_ulp_init): those seen on another socket spare a look. */
		prot = (__u64)READ(sk, __sk_common.skc_prot);
		if (prot != w->plain_prot) {
			if (sock_is_mptcp(sk))
				row->flags |= ROW_MPTCP;
			else
				w->plain_prot = prot;
		}
		if (row->state == TCP_LISTEN)
			row_listener(row, sk);
	} else if (sock_locks(sk) & SOCK_BINDPORT_LOCK) {
		row->flags |= ROW_FIXED;
	}
	socket = READ(sk, sk_socket);
	if (socket) {
		row->flags |= ROW_SOCKET;
		row_socket(row, socket);
		if (w->table == WALK_SOCK && !READ(socket, file)) /* else not worth its line of memory */
			row->flags |= ROW_NO_FILE;
	}
	row->uid = READ(sk, sk_uid.val);
}

/* Keep the settings of a namespace for the next owner, who is most likely of the same. */
static __always_inline void walk_settings(struct walk *w, const struct net *net)
{
	__u32 range;

	if (w->net == (__u64)net)
		return;
	range = port_range(net);
	w->net = (__u64)net;
	w->low = range;
	w->high = range >> 16;
	w->tw_delay_ms = tw_reuse_delay(net);
}

/* Write one row about sk. False: no room, try again in the next call. */
static __always_inline bool walk_row(struct walk *w, const struct sock *sk, const bool ports)
{
	__u32 i = w->first_row + w->rows;
	struct row *row;

	if (w->port && sock_port(sk) != w->port)
		return true;
	row = w->rows < ROWS_MAX ? bpf_map_lookup_elem(&rows, &i) : NULL;
	if (!row)
		return false;
	row->time_ns = w->timed ? bpf_ktime_get_boot_ns() : 0; /* it waits for every load before it */
	row->sock = (__u64)sk;
	row->socket = 0;
	row->inode = 0;
	row->uid = 0;
	row->state = sock_state(sk);
	if (ports)
		row->proto = w->table == WALK_TCP_BIND ? IPPROTO_TCP : IPPROTO_UDP;
	else if (row->state == TCP_TIME_WAIT || row->state == TCP_NEW_SYN_RECV)
		row->proto = IPPROTO_TCP;
	else
		row->proto = sock_protocol(sk);
	row->flags = w->connected ? ROW_CONNECTED : 0;
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
		if (ports && timewait_aged((const void *)sk, w->tw_delay_ms, w->now))
			row->flags |= ROW_TW_AGED;
	} else if (ports) {
		row_port_sock(w, row, sk);
	} else if (row->state != TCP_NEW_SYN_RECV) {
		row_full_sock(w, row, sk);
	}
	w->rows++;
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

static __always_inline __u64 udp_slot(const struct walk *w, const struct sock *sk)
{
	__u32 mix = READ(READ(sk, __sk_common.skc_net.net), hash_mix);

	return (sock_port(sk) + mix) & (w->buckets - 1); /* udp_hashfn() */
}

/* The socket that node is in. */
static __always_inline struct sock *node_sock(const struct walk *w)
{
	if (w->table == WALK_TCP_BIND)
		return (void *)w->node - bpf_core_field_offset(struct sock_common, skc_bind_node);
	if (w->table == WALK_UDP)
		return (void *)w->node - bpf_core_field_offset(struct sock_common, skc_node);
	if (w->table == WALK_SOCK)
		return (void *)w->node;
	return (void *)w->node - bpf_core_field_offset(struct sock_common, skc_nulls_node);
}

/*
 * Is sk still where it was found? Nothing is locked: an owner that names another
 * bucket or hashes to another slot has moved under us, and its next is another's.
 */
static __always_inline bool node_holds(const struct walk *w, const struct sock *sk, const bool ports)
{
	if (w->table == WALK_TCP_BIND && ports) /* one of another address's bucket is of the same port */
		return sock_port(sk) == w->tb_port && (__u64)READ(sk, __sk_common.skc_net.net) == w->net;
	if (w->table == WALK_TCP_BIND)
		return sock_bucket(sk) == w->owner;
	if (w->table == WALK_UDP)
		return udp_slot(w, sk) == w->owner;
	if (w->table == WALK_SOCK)
		return sock_port(sk) == w->port;
	return (READ(sk, __sk_common.skc_hash) & (w->buckets - 1)) == w->owner;
}

static __always_inline bool node_wanted(struct walk *w, const struct sock *sk, const bool ports)
{
	if (w->table == WALK_UDP && ports) {
		walk_settings(w, READ(sk, __sk_common.skc_net.net));
		if (sock_port(sk) < w->low || sock_port(sk) > w->high)
			return false;
	}
	if (w->table == WALK_UDP)
		return sock_protocol(sk) == IPPROTO_UDP;
	return w->table != WALK_TCP_REQUEST || sock_state(sk) == TCP_NEW_SYN_RECV;
}

/* Buckets of a VRF (l3mdev) are out of reach for connect() and bind() from outside it. */
static __always_inline bool bucket_wanted(struct walk *w, const struct inet_bind_bucket *tb, const bool ports)
{
	if (!ports)
		return !w->port || w->tb_port == w->port;
	walk_settings(w, READ(tb, ib_net.net));
	return w->tb_port >= w->low && w->tb_port <= w->high && !READ(tb, l3mdev);
}

/* The slot of a bind bucket (inet_bhashfn()). */
static __always_inline __u64 bucket_slot(const struct walk *w, const struct inet_bind_bucket *tb)
{
	return (READ(tb, port) + READ(READ(tb, ib_net.net), hash_mix)) & (w->buckets - 1);
}

/* The bucket of a port: its owners, or since 6.8 the per-address buckets that have them. */
static __always_inline void walk_port_bucket(struct walk *w, const bool ports)
{
	struct inet_bind_bucket *tb = (void *)w->tb - bpf_core_field_offset(struct inet_bind_bucket, node);
	__u64 at = w->tb, next, first;
	bool connected, want;

	w->tb_port = READ(tb, port);
	want = bucket_wanted(w, tb, ports);
	connected = READ(tb, fastreuse) < 0 && READ(tb, fastreuseport) < 0;
	first = owners_by_address() ? (__u64)READ(tb, bhash2.first) : (__u64)bucket_owners(tb);
	next = (__u64)READ(tb, node.next);
	if (!node_linked(at) || bucket_slot(w, tb) != w->bucket - 1 || READ(tb, port) != w->tb_port) {
		walk_restart(w); /* freed under us, and perhaps used again elsewhere */
		return;
	}
	w->tb = next;
	w->connected = connected;
	if (!want)
		return;
	if (owners_by_address()) {
		w->tb2 = first;
	} else {
		w->owner = (__u64)tb;
		w->node = first;
	}
}

/* The next per-address bucket of the port, and its owners. */
static __always_inline void walk_address_bucket(struct walk *w)
{
	struct inet_bind2_bucket *tb2 = (void *)w->tb2 - bpf_core_field_offset(struct inet_bind2_bucket, bhash_node);
	__u64 at = w->tb2, next = (__u64)READ(tb2, bhash_node.next), first = (__u64)READ(tb2, owners.first);
	__u64 slot = (READ(tb2, port) + READ(READ(tb2, ib_net.net), hash_mix)) & (w->buckets - 1);

	if (!node_linked(at) || READ(tb2, port) != w->tb_port || slot != w->bucket - 1) {
		walk_restart(w);
		return;
	}
	w->owner = (__u64)tb2;
	w->node = first;
	w->tb2 = next;
}

struct walk_tables {
	struct walk *walk;
	void *heads; /* first of the chain heads */
	__u64 size;  /* from one to the next */
	__u32 steps; /* most steps of one call */
};

/* The next slot of the table. A chain head is one pointer, in every table. */
static __always_inline void walk_slot(struct walk *w, const struct walk_tables *tables)
{
	__u64 first = READ_WORD(tables->heads + w->bucket * tables->size);

	w->owner = w->bucket++;
	if (w->table == WALK_TCP_BIND)
		w->tb = first;
	else
		w->node = first;
}

/*
 * The namespaces hang in a ring with one list head, which is of no namespace:
 * it lacks the operations that all namespaces have.
 */
static __always_inline bool netns_row(struct walk *w)
{
	struct net *net = (void *)w->node - bpf_core_field_offset(struct net, list);
	__u32 i = w->rows, range;
	struct netns_row *row;

	if ((__u64)READ(net, ns.ops) != w->plain_prot)
		return true;
	row = bpf_map_lookup_elem(&netns_rows, &i);
	if (!row)
		return false;
	range = port_range(net);
	row->cookie = netns_cookie(net);
	row->udp_table = (__u64)netns_udp_table(net);
	row->netns = READ(net, ns.inum);
	row->low = range;
	row->high = range >> 16;
	row->tw_reuse = tw_reuse(net);
	row->pad = 0;
	/* Zeroes it on failure. */
	bpf_probe_read_kernel(row->reserved, sizeof(row->reserved), READ(net, ipv4.sysctl_local_reserved_ports));
	w->rows++;
	return true;
}

/*
 * Where a namespace has its tables: sock, socket and inode are the addresses of its
 * struct net, udp_table and inet_hashinfo.
 */
static __always_inline bool tables_row(struct walk *w)
{
	struct net *net = (void *)w->node - bpf_core_field_offset(struct net, list);
	__u32 i = w->first_row + w->rows;
	struct row *row;

	if ((__u64)READ(net, ns.ops) != w->plain_prot)
		return true;
	row = w->rows < ROWS_MAX ? bpf_map_lookup_elem(&rows, &i) : NULL;
	if (!row)
		return false;
	row->sock = (__u64)net;
	row->socket = (__u64)netns_udp_table(net);
	row->inode = (__u64)tcp_hashinfo(net);
	row->flow.netns = READ(net, ns.inum);
	row->flow.netns_cookie = netns_cookie(net);
	w->rows++;
	return true;
}

/* The next namespace. 1: at the end, or no room. */
static __always_inline long walk_netns(struct walk *w, const bool ports)
{
	if (!(ports ? netns_row(w) : tables_row(w)))
		return 1;
	w->node = (__u64)READ((struct list_head *)w->node, next);
	if (w->node && w->node != w->owner)
		return 0;
	if (!w->node)
		w->gave_up++; /* it went away under us */
	w->done = 1;
	return 1;
}

/*
 * One step: the next owner, else the next bind bucket, else the next slot that is
 * not empty, or WALK_SLOTS further. A single function for all tables, as the verifier
 * goes through it once and that takes longer than to walk; but two programs, for the same
 * reason: ph_walk for sockets, and with ports set ph_ports for what is of ephemeral ports.
 */
static __always_inline long walk_on(struct walk *w, const struct walk_tables *tables, const bool ports)
{
	if (w->table == WALK_NETNS)
		return walk_netns(w, ports);
	if (!node_ends(w->node)) {
		struct sock *sk = TYPED(node_sock(w));
		__u32 rows = w->rows;
		bool held = node_holds(w, sk, ports);
		__u64 next;

		if (held && node_wanted(w, sk, ports) && !walk_row(w, sk, ports))
			return 1;
		next = w->table == WALK_SOCK ? 0 : node_next(w->node);
		/* Still: its row and its next are its own. */
		if (held && node_holds(w, sk, ports) && (w->table == WALK_SOCK || node_linked(w->node))) {
			w->node = next;
			return 0;
		}
		w->rows = rows;
		walk_restart(w);
		return 0;
	}
	if (owners_by_address() && w->tb2) {
		walk_address_bucket(w);
		return 0;
	}
	if (w->tb) {
		walk_port_bucket(w, ports);
		return 0;
	}
	for (int i = 0; i < WALK_SLOTS && !w->tb && node_ends(w->node); i++) {
		if (w->bucket >= w->buckets || w->bucket >= w->end) {
			w->done = 1;
			return 1;
		}
		walk_slot(w, tables);
	}
	return 0;
}

static long walk_step(__u32 i, struct walk_tables *tables)
{
	return walk_on(tables->walk, tables, false);
}

static long ports_step(__u32 i, struct walk_tables *tables)
{
	return walk_on(tables->walk, tables, true);
}

/* What sort of file a descriptor of the caller is. */
static __always_inline __u64 fd_kind(__u32 fd)
{
	struct file *file = task_file(task_current(), fd);

	return file ? file_kind(file) : 0;
}

/* Find the table to walk. */
static __always_inline struct walk_tables walk_begin(struct walk *w)
{
	struct net *net = READ(READ(task_current(), nsproxy), net_ns);
	struct inet_hashinfo *info = w->heads ? (void *)w->heads : tcp_hashinfo(net);
	struct walk_tables tables;
	struct udp_table *udp;

	/* One by one: as a constant it would be in .rodata, which without variables Linux 5.10 refuses. */
	tables.walk = w;
	tables.heads = NULL;
	tables.size = 0;
	tables.steps = WALK_STEPS;
	w->rows = 0;
	w->done = 0;
	w->now = bpf_ktime_get_ns();
	if (!file_kinds.socket)
		file_kinds.socket = fd_kind(w->udp_fd);
	if (!file_kinds.ring && w->ring_fd)
		file_kinds.ring = fd_kind(w->ring_fd);
	switch (w->table) {
	case WALK_TCP_BIND:
		w->buckets = READ(info, bhash_size);
		tables.heads = plain(READ(info, bhash)) + bpf_core_field_offset(struct inet_bind_hashbucket, chain);
		tables.size = bpf_core_type_size(struct inet_bind_hashbucket);
		break;
	case WALK_UDP:
		udp = w->heads ? (void *)w->heads : udp_table_of(net, task_sock(task_current(), w->udp_fd));
		if (!udp)
			break;
		w->buckets = (__u64)READ(udp, mask) + 1;
		tables.heads = plain(READ(udp, hash)) + bpf_core_field_offset(struct udp_hslot, head);
		tables.size = bpf_core_type_size(struct udp_hslot);
		break;
	case WALK_SOCK:
		w->buckets = w->done = tables.steps = 1;
		break;
	case WALK_NETNS:
		w->buckets = 1;
		if (w->node)
			break; /* go on */
		w->owner = w->node = (__u64)net + bpf_core_field_offset(struct net, list);
		w->plain_prot = (__u64)READ(net, ns.ops);
		break;
	case WALK_TCP_REQUEST:
		w->buckets = (__u64)READ(info, ehash_mask) + 1;
		tables.heads = plain(READ(info, ehash)) + bpf_core_field_offset(struct inet_ehash_bucket, chain);
		tables.size = bpf_core_type_size(struct inet_ehash_bucket);
		break;
	}
	return tables;
}

/* Read on where the last call of the lane stopped, until the table or its part ends or the rows are full. */
static __always_inline void handle_walk(const struct walk_call *call, const bool ports)
{
	__u32 lane = call->lane;
	struct walk *w = bpf_map_lookup_elem(&walks, &lane);
	struct walk_tables tables;

	if (!w)
		return;
	w->first_row = lane * ROWS_MAX;
	tables = walk_begin(w);
	bpf_loop(tables.steps, ports ? ports_step : walk_step, &tables, 0);
}

#if !HAVE_CAST
/* A step of the first lane. */
static __always_inline int walk_once(__u64 heads, __u64 size, const bool ports)
{
	struct walk_tables tables = { .heads = (void *)heads, .size = size };
	struct walk *w;
	__u32 lane = 0;

	w = bpf_map_lookup_elem(&walks, &lane);
	return w ? walk_on(w, &tables, ports) : 1;
}

/* Global functions: see fds_step. */
__noinline int walk_step_once(__u64 heads, __u64 size)
{
	return walk_once(heads, size, false);
}

__noinline int ports_step_once(__u64 heads, __u64 size)
{
	return walk_once(heads, size, true);
}

/* The same for kernels without bpf_loop() or programs of type syscall: the first lane, WALK_BURST steps. */
static __always_inline void handle_walk_burst(const bool ports)
{
	struct walk_tables tables;
	struct walk *w;
	__u32 lane = 0;

	w = bpf_map_lookup_elem(&walks, &lane);
	if (!w)
		return;
	tables = walk_begin(w);
	for (__u32 i = 0; i < WALK_BURST && i < tables.steps; i++)
		if (ports ? ports_step_once((__u64)tables.heads, tables.size)
			  : walk_step_once((__u64)tables.heads, tables.size))
			break;
}
#endif
