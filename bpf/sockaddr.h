/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* The address that a call was given. */

#include "sock.h"

/* The address a call was given: user memory as a system call sees it, kernel memory inside. */
struct address {
	const void *at;
	bool user;
};

static __always_inline long read_address(void *to, __u32 size, const struct address *from, __u32 skip)
{
	return from->user ? bpf_probe_read_user(to, size, from->at + skip)
			  : bpf_probe_read_kernel(to, size, from->at + skip);
}

static __always_inline bool read_sockaddr(struct sockaddr_any *sa, struct address from)
{
	__builtin_memset(sa, 0, sizeof(*sa));
	/* struct sockaddr_in is 16 bytes, sockaddr_in6 28: ask for the longer only where it is one. */
	if (read_address(sa, 8, &from, 0))
		return false;
	if (sa->family == AF_INET6)
		return read_address(sa->v6, 16, &from, 8) == 0;
	return sa->family == AF_INET;
}

/* The address of bind(), which takes one of no family as IPv4 if the socket is IPv4. */
static __always_inline bool read_bind_address(struct sockaddr_any *sa, const struct sock *sk, struct address from)
{
	if (read_sockaddr(sa, from))
		return true;
	if (sa->family != AF_UNSPEC || READ(sk, __sk_common.skc_family) != AF_INET)
		return false;
	sa->family = AF_INET;
	return read_address(&sa->v4_or_flowinfo, 4, &from, 4) == 0;
}

static __always_inline void sockaddr_ip(__u8 ip[16], const struct sockaddr_any *sa)
{
	if (sa->family == AF_INET6)
		__builtin_memcpy(ip, sa->v6, 16);
	else
		ip_from_v4(ip, sa->v4_or_flowinfo);
}
