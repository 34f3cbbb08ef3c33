/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* The only place that reads struct sock, from programs of any type. */

#include "compat.h"
#include "hooks.h"

/*
 * Forget what the verifier knows of a pointer. Pointers of cgroup contexts allow
 * no arithmetic; at run time they are the struct sock.
 */
static __always_inline void *plain(const void *p)
{
	void *address = NULL;

	bpf_probe_read_kernel(&address, sizeof(address), &p);
	return address;
}

/* The struct sock of a cgroup program's context. */
static __always_inline struct sock *plain_sock(const void *p)
{
	struct sock *sk = (void *)p;

	return HAVE_CAST ? CAST(sk) : plain(sk);
}

static __always_inline __u16 sock_protocol(const struct sock *sk)
{
	return READ_TYPED(sk, sk_protocol);
}

static __always_inline bool proto_is_ours(const struct sock *sk)
{
	__u16 proto = sock_protocol(sk);

	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

/* A UDP socket: a raw socket of protocol UDP has 17 where others have their port. */
static __always_inline bool sock_is_udp(const struct sock *sk)
{
	return sock_protocol(sk) == IPPROTO_UDP && READ_TYPED(sk, sk_type) == SOCK_DGRAM;
}

/* The local port, 0 when the socket has none (any more). */
static __always_inline __u16 sock_port(const struct sock *sk)
{
	return READ_TYPED(sk, __sk_common.skc_num);
}

/* The port of inet_sport: stale, but still there, after the port was given back. */
static __always_inline __u16 sock_last_port(const struct sock *sk)
{
	return bpf_ntohs(READ((const struct inet_sock *)sk, inet_sport));
}

static __always_inline __u8 sock_state(const struct sock *sk)
{
	return READ_TYPED(sk, __sk_common.skc_state);
}

/* Has a TCP socket ever got as far as a SYN? tcp_disconnect() leaves it so. */
static __always_inline bool sock_has_tried(const struct sock *sk)
{
	return READ((const struct tcp_sock *)sk, write_seq);
}

/*
 * TCP is going from SYN_SENT to CLOSE: inside connect(), before it could send a SYN?
 * Only when connect() has been let through is the socket connecting, and one that is
 * answered before that has sent something.
 */
static __always_inline bool sock_is_refused(const struct sock *sk)
{
	return !READ((const struct tcp_sock *)sk, segs_out) && READ(READ(sk, sk_socket), state) == SS_UNCONNECTED;
}

/* The TCP socket that has the port: for MPTCP the first subflow, else the socket itself. */
static __always_inline struct sock *sock_tcp(struct sock *sk)
{
	if (sock_protocol(sk) != IPPROTO_MPTCP)
		return sk;
	if (!bpf_core_type_exists(struct mptcp_sock))
		return NULL;
	return READ((struct mptcp_sock *)sk, first);
}

/*
 * Of a subflow that an MPTCP connection has opened after its first: the first one, which
 * is the socket that the program has. NULL of every other socket.
 */
static __always_inline struct sock *sock_first_subflow(const struct sock *sk)
{
	const struct mptcp_subflow_context *subflow = NULL;
	struct sock *first;

	if (!bpf_core_field_exists(subflow->conn))
		return NULL;
	subflow = READ((const struct inet_connection_sock *)sk, icsk_ulp_data);
	first = READ((const struct mptcp_sock *)READ(subflow, conn), first);
	return first == sk ? NULL : first;
}

/* The TCP or UDP socket behind a file, for MPTCP the subflow that has the port; NULL if it is none. */
static __always_inline struct sock *sock_of_file(const struct file *file)
{
	const struct socket *socket;
	struct sock *sk;
	__u16 family, proto;

	if ((READ(READ(file, f_inode), i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = READ(file, private_data);
	sk = READ(socket, sk);
	if (!sk)
		return NULL;
	family = READ_TYPED(sk, __sk_common.skc_family);
	proto = sock_protocol(sk);
	if ((family != AF_INET && family != AF_INET6) || READ_TYPED(sk, sk_type) == SOCK_RAW ||
	    (proto != IPPROTO_TCP && proto != IPPROTO_UDP && proto != IPPROTO_MPTCP))
		return NULL;
	return sock_tcp(sk);
}

static __always_inline bool sock_is_mptcp(const struct sock *sk)
{
	const struct tcp_sock *tp = (const void *)sk;

	/* A subflow has upper layer operations, as few other sockets have: that spares a cache line. */
	if (!bpf_core_field_exists(tp->is_mptcp) || !READ((const struct inet_connection_sock *)sk, icsk_ulp_ops))
		return false;
	return READ(tp, is_mptcp);
}

/* ip is one of a struct flow, aligned. */
static __always_inline void ip_from_v4(__u8 ip[16], __be32 v4)
{
	__be32 *words = (void *)ip;

	words[0] = words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = v4;
}

/* Both ports of a socket as the kernel keeps them side by side, to be read and compared at once. */
union portpair {
	__u32 pair;
	struct {
		__be16 remote;
		__u16 local;
	};
};

/* The same of its IPv4 addresses. */
union addrpair {
	__u64 pair;
	struct {
		__be32 remote;
		__be32 local;
	};
};

/* Fill f from the socket; its local port as it is now. */
static __always_inline void sock_flow(struct flow *f, const struct sock *sk)
{
	union portpair ports = { READ_TYPED(sk, __sk_common.skc_portpair) };
	const struct net *net = READ(sk, __sk_common.skc_net.net);

	if (READ_TYPED(sk, __sk_common.skc_family) == AF_INET6) {
		READ_TYPED_INTO(&f->local_ip, sk, __sk_common.skc_v6_rcv_saddr.in6_u.u6_addr8);
		READ_TYPED_INTO(&f->remote_ip, sk, __sk_common.skc_v6_daddr.in6_u.u6_addr8);
	} else {
		union addrpair ips = { READ_TYPED(sk, __sk_common.skc_addrpair) };

		ip_from_v4(f->local_ip, ips.local);
		ip_from_v4(f->remote_ip, ips.remote);
	}
	f->local_port = ports.local;
	f->remote_port = bpf_ntohs(ports.remote);
	f->netns = READ(net, ns.inum);
	f->netns_cookie = netns_cookie(net);
	f->dev = READ_TYPED(sk, __sk_common.skc_bound_dev_if);
	f->pad = 0;
}

/* SOCK_BINDADDR_LOCK, SOCK_BINDPORT_LOCK ...; before 6.9 a bit field. */
static __always_inline __u8 sock_locks(const struct sock *sk)
{
	return READ_BITS(sk, sk_userlocks);
}

/*
 * Did this end of a TCP connection call connect()? The SYN counts in
 * bytes_acked (RFC 4898 tcpEStatsAppHCThruOctetsAcked as the kernel has it) of
 * the end that sent it, and in no counter of the end that accepted; payload
 * and FIN are known, so what remains is the SYN.
 */
static __always_inline bool sock_is_active(const struct sock *sk)
{
	const struct tcp_sock *tp = (const void *)sk;
	__u8 state = sock_state(sk), locks = sock_locks(sk);
	__u64 sequence, payload;
	__u32 nxt, una;

	/* An accepted socket inherits neither lock (sk_clone_lock). */
	if (state == TCP_SYN_SENT || locks & SOCK_BINDPORT_LOCK ||
	    (locks & SOCK_CONNECT_BIND && connect_bind_is_told()))
		return true;
	if (state == TCP_SYN_RECV)
		return false;
	nxt = READ(tp, snd_nxt);
	una = READ(tp, snd_una);
	sequence = READ(tp, bytes_acked) + (__u32)(nxt - una);
	payload = READ(tp, bytes_sent);
	if (payload) /* else nothing was sent again: that spares a cache line */
		payload -= READ(tp, bytes_retrans);
	if ((state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING || state == TCP_LAST_ACK) &&
	    nxt == READ(tp, write_seq))
		sequence--; /* our FIN */
	return sequence > payload;
}

/*
 * The timewait sock that took over from sk, which had this port; 0 if none. Called
 * while sk goes to TCP_CLOSE: tcp_time_wait() has just put it at the head of sk's own
 * bucket of the established hash.
 */
static __always_inline __u64 sock_timewait(const struct sock *sk, __u16 port)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);
	struct inet_hashinfo *info = tcp_hashinfo(net);
	__u32 slot = READ_TYPED(sk, __sk_common.skc_hash) & READ(info, ehash_mask);
	__u32 size = bpf_core_type_size(struct inet_ehash_bucket);
	struct inet_ehash_bucket *head = (void *)READ(info, ehash) + (__u64)slot * size;
	struct hlist_nulls_node *node;
	union portpair ports = { .remote = READ_TYPED(sk, __sk_common.skc_dport), .local = port };

	node = (void *)READ_WORD((void *)head + bpf_core_field_offset(struct inet_ehash_bucket, chain));
	for (int i = 0; i < 8; i++) {
		struct sock_common *tw;

		if ((__u64)node & 1)
			break;
		tw = (void *)node - bpf_core_field_offset(struct sock_common, skc_nulls_node);
		if (READ(tw, skc_state) == TCP_TIME_WAIT && READ(tw, skc_portpair) == ports.pair &&
		    READ(tw, skc_net.net) == net && READ(tw, skc_hash) == READ_TYPED(sk, __sk_common.skc_hash))
			return (__u64)tw;
		node = (void *)READ_WORD(node); /* next comes first */
	}
	return 0;
}
