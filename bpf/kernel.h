/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/*
 * The few kernel structures and fields porthole reads. CO-RE relocates every
 * access against the running kernel's BTF, so order and size do not matter
 * here; names and types do.
 */

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#define AF_UNSPEC 0
#define AF_INET 2
#define AF_INET6 10

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_MPTCP 262

#define SOCK_DGRAM 2
#define SOCK_RAW 3

#define S_IFMT 0170000
#define S_IFSOCK 0140000

#define EINTR 4
#define EAGAIN 11
#define EINVAL 22
#define EPIPE 32
#define EDESTADDRREQ 89
#define EMSGSIZE 90
#define EOPNOTSUPP 95
#define EADDRNOTAVAIL 99
#define ECONNABORTED 103
#define ECONNRESET 104
#define EISCONN 106
#define ETIMEDOUT 110
#define ECONNREFUSED 111
#define EALREADY 114
#define EINPROGRESS 115
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

#define SHUTDOWN_MASK 3
#define SOCK_BINDADDR_LOCK 4
#define SOCK_BINDPORT_LOCK 8
#define SOCK_CONNECT_BIND 16

#define MSG_FASTOPEN 0x20000000

#define IORING_OP_WRITEV 2
#define IORING_OP_WRITE_FIXED 5
#define IORING_OP_SENDMSG 9
#define IORING_OP_ACCEPT 13
#define IORING_OP_CONNECT 16
#define IORING_OP_WRITE 23
#define IORING_OP_SEND 26
#define IORING_OP_SPLICE 30
#define IORING_OP_SEND_ZC 47
#define IORING_OP_SENDMSG_ZC 48
#define IORING_CQE_F_BUFFER 1
#define IORING_CQE_F_MORE 2

#define PF_KTHREAD 0x00200000
#define PF_IO_WORKER 0x00000010

/* include/net/tcp_states.h */
enum tcp_state {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT,
	TCP_SYN_RECV,
	TCP_FIN_WAIT1,
	TCP_FIN_WAIT2,
	TCP_TIME_WAIT,
	TCP_CLOSE,
	TCP_CLOSE_WAIT,
	TCP_LAST_ACK,
	TCP_LISTEN,
	TCP_CLOSING,
	TCP_NEW_SYN_RECV,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_node {
	struct hlist_node *next;
	struct hlist_node **pprev;
};

struct hlist_head {
	struct hlist_node *first;
};

struct hlist_nulls_node {
	struct hlist_nulls_node *next;
};

struct hlist_nulls_head {
	struct hlist_nulls_node *first;
};

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

typedef struct {
	__u32 val;
} kuid_t;

struct proc_ns_operations;

struct list_head {
	struct list_head *next;
};

struct ns_common {
	const struct proc_ns_operations *ops;
	unsigned int inum;
};

typedef struct {
	int counter;
} atomic_t;

struct timespec64 {
	__s64 tv_sec;
};

struct inet_bind_hashbucket {
	struct hlist_head chain;
};

struct inet_ehash_bucket {
	struct hlist_nulls_head chain;
};

struct inet_hashinfo {
	struct inet_ehash_bucket *ehash;
	unsigned int ehash_mask;
	struct inet_bind_hashbucket *bhash;
	unsigned int bhash_size;
};

struct inet_timewait_death_row {
	struct inet_hashinfo *hashinfo;
};

struct udp_hslot {
	struct hlist_head head;
	int count;
};

struct udp_table {
	struct udp_hslot *hash;
	unsigned int mask;
};

struct netns_ipv4 {
	struct inet_timewait_death_row tcp_death_row;
	struct udp_table *udp_table;
	struct {
		__u32 range; /* high << 16 | low */
	} ip_local_ports;
	unsigned long *sysctl_local_reserved_ports;
	__u8 sysctl_tcp_tw_reuse;
	unsigned int sysctl_tcp_tw_reuse_delay;
};

struct net {
	struct list_head list;
	struct list_head dev_base_head;
	struct ns_common ns;
	__u64 net_cookie;
	unsigned int hash_mix;
	struct netns_ipv4 ipv4;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	char name[16];
	struct list_head dev_list;
	unsigned int flags;
	int ifindex;
	possible_net_t nd_net;
};

struct proto {
	union {
		struct udp_table *udp_table;
	} h;
};

struct sock_common {
	__u64 skc_addrpair; /* skc_daddr, then skc_rcv_saddr */
	unsigned int skc_hash;
	__u32 skc_portpair; /* skc_dport, then skc_num */
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned char skc_reuse : 4;
	unsigned char skc_reuseport : 1;
	unsigned char skc_ipv6only : 1;
	int skc_bound_dev_if;
	struct hlist_node skc_bind_node;
	struct hlist_node skc_node;
	struct hlist_nulls_node skc_nulls_node;
	struct proto *skc_prot;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

typedef enum {
	SS_UNCONNECTED = 1, /* include/uapi/linux/net.h */
} socket_state;

struct socket {
	socket_state state;
	struct file *file;
	struct sock *sk;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct sock {
	struct sock_common __sk_common;
	unsigned char sk_userlocks;
	unsigned char sk_shutdown;
	int sk_err;
	__u16 sk_type;
	__u16 sk_protocol;
	kuid_t sk_uid;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

struct request_sock_queue {
	atomic_t qlen;
};

struct inet_bind_bucket {
	possible_net_t ib_net;
	int l3mdev;
	unsigned short port;
	signed char fastreuse;
	signed char fastreuseport;
	struct hlist_node node;
	struct hlist_head bhash2;
};

struct inet_bind2_bucket {
	possible_net_t ib_net;
	unsigned short port;
	struct hlist_node bhash_node;
	struct hlist_head owners;
};

struct tcp_ulp_ops;

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
	struct inet_bind_bucket *icsk_bind_hash;
	struct inet_bind2_bucket *icsk_bind2_hash;
	const struct tcp_ulp_ops *icsk_ulp_ops;
	void *icsk_ulp_data;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u64 bytes_sent;
	__u64 bytes_acked;
	__u64 bytes_retrans;
	__u32 snd_nxt;
	__u32 snd_una;
	__u32 write_seq;
	__u32 segs_out;
	bool is_mptcp;
};

struct mptcp_subflow_context {
	struct sock *conn; /* the struct mptcp_sock */
};

struct mptcp_sock {
	struct inet_connection_sock sk;
	struct sock *first;
};

struct inet_timewait_sock {
	struct sock_common __tw_common;
	unsigned char tw_substate;
	unsigned int tw_connect_bind : 1;
	__u32 tw_entry_stamp;
	struct inet_bind_bucket *tw_tb;
	struct inet_bind2_bucket *tw_tb2;
};

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
	int tw_ts_recent_stamp;
};

struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
};

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

struct file_operations;

struct file {
	struct inode *f_inode;
	const struct file_operations *f_op;
	void *private_data;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
	unsigned long *open_fds;
};

struct files_struct {
	struct fdtable *fdt;
};

struct cred {
	kuid_t uid;
	kuid_t fsuid;
};

struct nsproxy {
	struct net *net_ns;
};

struct kernfs_node {
	__u64 id;
	const char *name;
};

struct cgroup_root {
	int hierarchy_id;
};

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct io_uring_task;

struct io_rsrc_node {
	unsigned long file_ptr; /* the lowest bits are flags */
};

struct io_rsrc_data {
	unsigned int nr;
	struct io_rsrc_node **nodes;
};

struct io_file_table {
	struct io_rsrc_data data;
};

struct io_ring_ctx {
	struct io_file_table file_table;
};

struct io_kiocb {
	struct file *file;
	__u8 opcode;
};

/* A struct io_kiocb whose opcode is IORING_OP_ACCEPT. */
struct io_accept {
	__u32 file_slot;
};

struct io_uring_cqe {
	__s32 res;
	__u32 flags;
};

struct thread_info {
	unsigned long flags;
	unsigned int status;
};

struct task_struct {
	struct thread_info thread_info;
	unsigned int flags;
	int pid;
	int tgid;
	struct task_struct *group_leader;
	const struct cred *cred;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
	struct io_uring_task *io_uring;
	__u64 start_boottime;
	char comm[16];
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct pt_regs {
#if defined(__TARGET_ARCH_x86)
	unsigned long di;
	unsigned long si;
	unsigned long dx;
	unsigned long r10;
	unsigned long r8;
	unsigned long orig_ax;
#elif defined(__TARGET_ARCH_arm64)
	__u64 regs[31];
	__u64 orig_x0;
	int syscallno;
#else
#error "porthole knows the system call registers of x86 and arm64 only"
#endif
};

#pragma clang attribute pop

/* User API, fixed layout: no relocation. */
struct sockaddr_any {
	__u16 family;
	__be16 port;
	__be32 v4_or_flowinfo;
	__u8 v6[16];
};
