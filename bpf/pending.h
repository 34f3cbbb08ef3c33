/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* What one hook tells a later one: of a socket, of a call, of a search for a port. */

#include "maps.h"
#include "sock.h"

/* The note of a socket in spare_notes, made when there is none. NULL: no memory. */
static __noinline struct sock_note *spare_note(const struct sock *sk)
{
	const struct socket *socket = READ(sk, sk_socket);
	struct spare_note new = {}, *spare;
	__u64 key = (__u64)sk;

	if (socket)
		new.inode = READ((const struct socket_alloc *)socket, vfs_inode.i_ino);
	spare = bpf_map_lookup_elem(&spare_notes, &key);
	if (!spare || spare->inode != new.inode) {
		bpf_map_update_elem(&spare_notes, &key, &new, BPF_ANY);
		spare = bpf_map_lookup_elem(&spare_notes, &key);
	}
	return spare ? &spare->note : NULL;
}

/* The note of a socket, made when there is none. NULL: no memory, or no socket. */
#define note_of(sk)                                                                                                    \
	({                                                                                                             \
		struct sock_note *__note = NULL;                                                                       \
		if (sk) {                                                                                              \
			__note = bpf_sk_storage_get(&notes, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);                       \
			if (!__note)                                                                                   \
				__note = spare_note(plain_sock(sk));                                                   \
		}                                                                                                      \
		__note;                                                                                                \
	})

/* The same, NULL where it has none of its own. */
#define known_note_of(sk) ((sk) ? bpf_sk_storage_get(&notes, sk, 0, 0) : NULL)

/* Who or what has the pending of a kind. */
static __always_inline __u64 pending_key(const struct sock *sk, __u64 kind)
{
	return kind == PENDING_FAILED ? (__u64)sk : bpf_get_current_task();
}

static __always_inline struct pending *pending_of(const struct sock *sk, __u64 kind)
{
	__u64 key = pending_key(sk, kind);
	struct pending *p = bpf_map_lookup_elem(&pendings, &key);

	if (!p || p->sock != (__u64)sk || p->kind != kind)
		return NULL;
	return p;
}

static __always_inline void pending_set(const struct sock *sk, __u64 kind)
{
	struct pending p = { .sock = (__u64)sk, .kind = kind };
	__u64 key = pending_key(sk, kind);

	bpf_map_update_elem(&pendings, &key, &p, BPF_ANY); /* LRU: never full */
}

static __always_inline void pending_clear(const struct sock *sk, __u64 kind)
{
	__u64 key = pending_key(sk, kind);

	bpf_map_delete_elem(&pendings, &key);
}

/* Was it pending? It is not any more. */
static __always_inline bool pending_take(const struct sock *sk, __u64 kind)
{
	if (!pending_of(sk, kind))
		return false;
	pending_clear(sk, kind);
	return true;
}

/*
 * connect() of UDP, or listen(): the kernel is about to choose a port for a socket that has
 * none. One that has a port may be at the address of one whose call went no further.
 */
static __always_inline void pending_autobind(const struct sock *sk)
{
	if (!sock_port(sk))
		pending_set(sk, PENDING_AUTOBIND);
	else
		pending_take(sk, PENDING_AUTOBIND);
}

/* Is this what becomes of connections, and never of a connect() before them? */
static __always_inline bool error_is_of_peer(int error)
{
	return error == ECONNREFUSED || error == ETIMEDOUT || error == ECONNRESET || error == ECONNABORTED ||
	       error == EPIPE;
}

/* A connection ended, with an error or not: what connect() may still return of that is not told again. */
static __always_inline void pending_ended(struct sock *sk, int old)
{
	int error = READ_TYPED(sk, sk_err);

	if (error && !error_is_of_peer(error))
		pending_set(sk, PENDING_FAILED);
	else if (old == TCP_SYN_SENT)
		pending_clear(sk, PENDING_FAILED); /* of an earlier socket at the same address */
}

/* The search for a port begins right after the state has become SYN_SENT, and ends at fexit of inet_hash_connect(). */
static __always_inline struct search *search_of(const struct sock *sk)
{
	__u64 address = (__u64)plain(sk); /* a number to the verifier */

	return &searches[(address >> 6) % SEARCHES]; /* a socket is more than 64 bytes */
}

static __always_inline void search_begin(const struct sock *sk)
{
	struct search *s;

	if (sock_port(sk))
		return; /* there is nothing to look for */
	s = search_of(sk);
	s->start_ns = bpf_ktime_get_boot_ns();
	s->sock = (__u64)sk;
}

/* How long it took, 0 where that is not known. */
static __always_inline __u64 search_end(const struct sock *sk)
{
	struct search *s = search_of(sk);

	if (s->sock != (__u64)sk)
		return 0;
	s->sock = 0;
	return bpf_ktime_get_boot_ns() - s->start_ns;
}
