/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/*
 * One function for each thing that differs between kernels or architectures,
 * with the version that changed it. Differences are found in the running
 * kernel's BTF, never by version number.
 */

#include "kernel.h"

/*
 * READ(p, field) is p->field for any address p of a kernel structure. Since 6.2
 * bpf_rdonly_cast() makes that one checked load; before, it is a call of
 * bpf_probe_read_kernel(), several times as slow. Every object is built for both,
 * with HAVE_CAST 1 and 0, and Go takes the one for its kernel: what a kernel does
 * not need would take the verifier longer to remove than the rest to check. READ_INTO
 * copies an array, READ_BITS reads a bit field.
 *
 * READ_TYPED(p, field) is READ for a p of which the verifier knows what it points to: an
 * argument of a tracepoint, the current task, what TYPED makes of an address. Where the
 * kernel vouches for p the load needs no check, which is seven instructions of eight.
 * For a field that every kernel has: READ keeps its offset below a check that it is there.
 * And seldom for one that is a pointer: whether it can be vouched for too, the verifier
 * finds out by going through all types of the kernel, three times and more, for each
 * such load of each path.
 */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym;

#define CAST(p) ((typeof(p))bpf_rdonly_cast(p, bpf_core_type_id_kernel(__typeof_unqual__(*(p)))))
/* p, but nothing computed from it moves above: an offset must stay below the check that the field exists. */
#define FROM(p)                                                                                                        \
	({                                                                                                             \
		typeof(p) __p = (p);                                                                                   \
		asm volatile("" : "+r"(__p));                                                                          \
		__p;                                                                                                   \
	})
#define READ_INTO(dst, p, field)                                                                                       \
	({                                                                                                             \
		typeof(p) __from = FROM(p);                                                                            \
		if (HAVE_CAST)                                                                                         \
			__builtin_memcpy(dst, (const void *)&CAST(__from)->field, sizeof(__from->field));              \
		else                                                                                                   \
			bpf_core_read(dst, sizeof(__from->field), &__from->field);                                     \
	})
#define READ(p, field)                                                                                                 \
	({                                                                                                             \
		typeof(p) __from = FROM(p);                                                                            \
		__typeof_unqual__(__from->field) __value = {};                                                         \
		if (HAVE_CAST)                                                                                         \
			__value = CAST(__from)->field;                                                                 \
		else                                                                                                   \
			bpf_core_read(&__value, sizeof(__value), &__from->field);                                      \
		__value;                                                                                               \
	})
#define TYPED(p) (HAVE_CAST ? CAST(p) : (p))
#define READ_TYPED(p, field)                                                                                           \
	({                                                                                                             \
		typeof(p) __typed = (p);                                                                               \
		__typeof_unqual__(__typed->field) __got;                                                               \
		if (HAVE_CAST)                                                                                         \
			__got = __typed->field;                                                                        \
		else                                                                                                   \
			__got = READ(__typed, field);                                                                  \
		__got;                                                                                                 \
	})
#define READ_TYPED_INTO(dst, p, field)                                                                                 \
	({                                                                                                             \
		typeof(p) __typed = (p);                                                                               \
		if (HAVE_CAST)                                                                                         \
			__builtin_memcpy(dst, (const void *)&__typed->field, sizeof(__typed->field));                  \
		else                                                                                                   \
			READ_INTO(dst, __typed, field);                                                                \
	})
/* READ_WORD(p) is the 8 bytes at p as a number, whose bits a program may test and which may be of an array: those of
 * a structure that begins with a number. */
#define READ_WORD(p) ((__u64)READ((const struct timespec64 *)(p), tv_sec))
#define READ_BITS(p, field)                                                                                            \
	(HAVE_CAST ? BPF_CORE_READ_BITFIELD(CAST(p), field) : BPF_CORE_READ_BITFIELD_PROBED(p, field))

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* Before 5.15: a pointer, whose lowest bits are flags, or with the first of them what net_cls and net_prio say. */
struct sock_cgroup_data___val {
	__u64 val;
};

struct sock___val {
	struct sock_cgroup_data___val sk_cgrp_data;
};

struct netns_ipv4___ptr {
	struct inet_timewait_death_row *tcp_death_row;
};

struct net___ptr {
	struct netns_ipv4___ptr ipv4;
};

struct local_ports___pair {
	int range[2]; /* low, high */
};

struct netns_ipv4___pair {
	struct local_ports___pair ip_local_ports;
};

struct net___pair {
	struct netns_ipv4___pair ipv4;
};

struct inet_bind_bucket___flat {
	struct hlist_head owners;
};

struct io_fixed_file {
	unsigned long file_ptr;
};

struct io_file_table___flat {
	struct io_fixed_file *files;
};

struct fixed_file_table {
	struct file **files; /* 512 of them */
};

struct fixed_file_data {
	struct fixed_file_table *table;
};

struct io_ring_ctx___old {
	struct io_file_table___flat file_table;
	struct fixed_file_data *file_data;
	unsigned int nr_user_files;
};

#pragma clang attribute pop

/* netns_ipv4.tcp_death_row is a pointer in 5.19 and 6.0 only, embedded before and since. */
static __always_inline struct inet_hashinfo *tcp_hashinfo(const struct net *net)
{
	const struct net___ptr *old = (const void *)net;

	if (bpf_core_field_exists(old->ipv4.tcp_death_row))
		return READ(READ(old, ipv4.tcp_death_row), hashinfo);
	return READ(net, ipv4.tcp_death_row.hashinfo);
}

/* The number that no other namespace ever has. It is given when the namespace is made since 5.12, before when first
 * asked for. */
static __always_inline __u64 netns_cookie(const struct net *net)
{
	return bpf_core_field_exists(net->net_cookie) ? READ(net, net_cookie) : 0;
}

/* The UDP table of a namespace, most often that of all; NULL before 6.2, where there is but one. */
static __always_inline struct udp_table *netns_udp_table(const struct net *net)
{
	return bpf_core_field_exists(net->ipv4.udp_table) ? READ(net, ipv4.udp_table) : NULL;
}

/* The UDP table hangs off the namespace since 6.2; before, off the protocol of every UDP socket (udp). */
static __always_inline struct udp_table *udp_table_of(const struct net *net, const struct sock *udp)
{
	if (bpf_core_field_exists(net->ipv4.udp_table))
		return netns_udp_table(net);
	return udp ? READ(READ(udp, __sk_common.skc_prot), h.udp_table) : NULL;
}

/* Since 6.8 the owners of a port hang off per-address buckets (bhash2), before off the port's. */
static __always_inline bool owners_by_address(void)
{
	return bpf_core_field_exists(((struct inet_bind_bucket *)0)->bhash2);
}

/*
 * Where a ring has the addresses of its registered files from number first on, and how
 * many there are. Since 6.13 each is in a node of its own, before that they were one array, and before
 * 5.15 arrays of 512: first is a multiple of less.
 */
static __always_inline __u64 *ring_files(const struct io_ring_ctx *ring, __u32 first, __u32 *count)
{
	const struct io_ring_ctx___old *old = (const void *)ring;

	if (bpf_core_field_exists(ring->file_table.data)) {
		*count = READ(ring, file_table.data.nr);
		return (__u64 *)READ(ring, file_table.data.nodes) + first;
	}
	*count = bpf_core_field_exists(old->nr_user_files) ? READ(old, nr_user_files) : 0;
	if (bpf_core_field_exists(old->file_table.files))
		return (__u64 *)READ(old, file_table.files) + first;
	if (bpf_core_field_exists(old->file_data) && *count)
		return (__u64 *)READ(READ(READ(old, file_data), table) + first / 512, files) + first % 512;
	*count = 0;
	return NULL;
}

/* The address of a registered file, from what ring_files() has of it. */
static __always_inline struct file *ring_file(__u64 entry)
{
	if (entry && bpf_core_field_exists(((struct io_ring_ctx *)0)->file_table.data))
		entry = READ((const struct io_rsrc_node *)entry, file_ptr);
	return (struct file *)(entry & ~7ULL);
}

static __always_inline struct hlist_node *bucket_owners(const struct inet_bind_bucket *tb)
{
	const struct inet_bind_bucket___flat *old = (const void *)tb;

	if (!bpf_core_field_exists(old->owners))
		return NULL;
	return READ(old, owners.first);
}

/* ip_local_port_range as high << 16 | low, which it is since 6.8; before it was two numbers. */
static __always_inline __u32 port_range(const struct net *net)
{
	const struct net___pair *old = (const void *)net;
	int pair[2] = {};

	if (!bpf_core_field_exists(old->ipv4.ip_local_ports.range))
		return READ(net, ipv4.ip_local_ports.range);
	bpf_core_read(pair, sizeof(pair), &old->ipv4.ip_local_ports.range);
	return (__u32)pair[1] << 16 | (__u16)pair[0];
}

/* tcp_tw_reuse, an int in 5.10 and a byte in 5.15. */
static __always_inline __u32 tw_reuse(const struct net *net)
{
	__u32 value = 0, size = bpf_core_field_size(net->ipv4.sysctl_tcp_tw_reuse);

	bpf_probe_read_kernel(&value, size & 7, (void *)net + bpf_core_field_offset(net->ipv4.sysctl_tcp_tw_reuse));
	return value;
}

/* tcp_tw_reuse_delay in milliseconds, new in 6.14. */
static __always_inline __u32 tw_reuse_delay(const struct net *net)
{
	if (!bpf_core_field_exists(net->ipv4.sysctl_tcp_tw_reuse_delay))
		return 0;
	return READ(net, ipv4.sysctl_tcp_tw_reuse_delay);
}

/*
 * Is a timewait sock old enough, and with timestamps, for connect() to take its
 * port over (tcp_twsk_unique)? Since 6.14 delay_ms after its beginning, before at
 * the next tick of the second; now is CLOCK_MONOTONIC, in nanoseconds. FIN_WAIT2, and whether tcp_tw_reuse allows it,
 * are for Go to judge.
 */
static __always_inline bool timewait_aged(const struct tcp_timewait_sock *tw, __u32 delay_ms, __u64 now)
{
	__u32 stamp = READ(tw, tw_ts_recent_stamp);

	if (!stamp)
		return false;
	if (!bpf_core_field_exists(tw->tw_sk.tw_entry_stamp))
		return (__s32)(stamp - (__u32)(now / 1000000000)) < 0;
	return (__s32)(READ(tw, tw_sk.tw_entry_stamp) + delay_ms - (__u32)(now / 1000000)) < 0;
}

/* The id of the cgroup that a socket was made in, 0: not known. */
static __always_inline __u64 sock_cgroup(const struct sock *sk)
{
	const struct sock___val *old = (const void *)sk;
	const struct cgroup *cgroup = NULL;
	__u64 val;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup)) {
		cgroup = READ(sk, sk_cgrp_data.cgroup);
	} else if (bpf_core_field_exists(old->sk_cgrp_data.val)) {
		val = READ(old, sk_cgrp_data.val);
		cgroup = val & 1 ? NULL : (const void *)(val & ~3ULL);
	}
	return cgroup ? READ(READ(cgroup, kn), id) : 0;
}

/* Since 6.18 sk_userlocks tells that connect() chose the port. */
static __always_inline bool connect_bind_is_told(void)
{
	return bpf_core_field_exists(((struct inet_timewait_sock *)0)->tw_connect_bind);
}

/* x86: TS_COMPAT; arm64: TIF_32BIT. System call numbers of 32-bit tasks mean other calls. */
static __always_inline bool task_is_compat(const struct task_struct *task)
{
#if defined(__TARGET_ARCH_x86)
	return READ_TYPED(task, thread_info.status) & 2;
#else
	return READ_TYPED(task, thread_info.flags) & (1UL << 22);
#endif
}

/*
 * Has a program that ran before, of the same call, refused it? Programs of a cgroup run
 * before those of the root, and since 5.18 one can ask. Never before: then the kernel
 * does not take the port back either.
 */
static __always_inline bool refused_before(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_retval) && bpf_get_retval() < 0;
}

#if defined(__TARGET_ARCH_x86)
#define NR_write 1
#define NR_writev 20
#define NR_sendfile 40
#define NR_connect 42
#define NR_accept 43
#define NR_sendto 44
#define NR_sendmsg 46
#define NR_bind 49
#define NR_listen 50
#define NR_splice 275
#define NR_accept4 288
#define NR_sendmmsg 307
#define NR_pwritev2 328
#define SYS_NR(regs) ((int)(regs)->orig_ax)
#define SYS_ARG0(regs) ((regs)->di)
#define SYS_ARG1(regs) ((regs)->si)
#define SYS_ARG2(regs) ((regs)->dx)
#define SYS_ARG3(regs) ((regs)->r10)
#define SYS_ARG4(regs) ((regs)->r8)
#else
#define NR_write 64
#define NR_writev 66
#define NR_sendfile 71
#define NR_splice 76
#define NR_bind 200
#define NR_listen 201
#define NR_accept 202
#define NR_connect 203
#define NR_sendto 206
#define NR_sendmsg 211
#define NR_accept4 242
#define NR_sendmmsg 269
#define NR_pwritev2 287
#define SYS_NR(regs) ((regs)->syscallno)
#define SYS_ARG0(regs) ((regs)->orig_x0)
#define SYS_ARG1(regs) ((regs)->regs[1])
#define SYS_ARG2(regs) ((regs)->regs[2])
#define SYS_ARG3(regs) ((regs)->regs[3])
#define SYS_ARG4(regs) ((regs)->regs[4])
#endif
