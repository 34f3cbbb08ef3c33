/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/*
 * The contract of the hooks with Go: events, and what the loader tells the hooks. Go types
 * are generated from this file and rows.h by bpf2go; nothing here is written a second time.
 *
 * Ports are in host byte order. Addresses are 16 bytes in network byte order,
 * an IPv4 address as ::ffff:a.b.c.d. Times are nanoseconds of CLOCK_BOOTTIME
 * (bpf_ktime_get_boot_ns). Zero means absent unless the field says otherwise.
 */

#include "kernel.h"

enum event_type {
	EVENT_BIND = 1,	   /* a local port was taken without a peer, or refused */
	EVENT_LISTEN,	   /* socket listens, or was refused */
	EVENT_CONNECT,	   /* port picked, SYN about to leave, or refused; UDP: peer set */
	EVENT_ACCEPT,	   /* a process took a connection */
	EVENT_CLOSE,	   /* the socket gave its port back */
	EVENT_ESTABLISHED, /* handshake done; only with want_established */
	EVENT_DOWN,	   /* internal: connection over, port still held by the socket */
	EVENT_UNPEER,	   /* internal: UDP peer removed, port still held */
	EVENT_CGROUP,	   /* internal: a cgroup was made; a struct cgroup_made */
};

enum event_flag {
	EVENT_IMPLICIT = 1 << 0,  /* the kernel bound without bind() */
	EVENT_MPTCP = 1 << 1,	  /* TCP subflow of an MPTCP socket */
	EVENT_V6ONLY = 1 << 2,	  /* IPV6_V6ONLY is set */
	EVENT_REUSEADDR = 1 << 3, /* SO_REUSEADDR is set */
	EVENT_REUSEPORT = 1 << 4, /* SO_REUSEPORT is set */
	EVENT_MAYBE = 1 << 5,	  /* the reader must check against its table before it believes this */
};

/* Both ends of a socket and where it lives. Addresses are aligned to be written by words. */
struct flow {
	__u8 local_ip[16] __attribute__((aligned(8)));
	__u8 remote_ip[16] __attribute__((aligned(8)));
	__u16 local_port;
	__u16 remote_port;
	__u32 netns;	    /* inode number of the network namespace: the next one may get it */
	__u64 netns_cookie; /* its cookie, which no other ever has; 0 before Linux 5.12 */
	__u32 dev;	    /* index of the device the socket is bound to */
	__u32 pad;
};

/* A process: the thread group leader, taken when it acted. */
struct process {
	__u64 start_ns; /* start time; with pid it is the identity, pids are reused */
	__u64 cgroup;	/* cgroup v2 id */
	__u32 pid;	/* thread group id in the initial pid namespace; 0: not known */
	__u32 uid;	/* real uid in the initial user namespace */
	__u8 comm[16];	/* name of the group leader, NUL padded, any bytes */
};

/*
 * What happened to a socket. Closes are half of all events, and Go knows the
 * socket by then: an event that has no process is submitted without its tail, from
 * flow on.
 */
struct event {
	__u64 time_ns;
	__u64 sock;	      /* address of the kernel's struct sock: its identity while it lives */
	__u64 detail;	      /* close, down: address of the timewait sock that keeps the port;
			       * connect: nanoseconds the kernel looked for a port; bind and
			       * connect without a process: address of the first subflow of the
			       * MPTCP socket that this is a subflow of */
	__u16 requested_port; /* bind: what was asked for, 0 = any; close, down: the local port */
	__u16 error;	      /* errno, positive; 0 = success */
	__u8 type;	      /* enum event_type */
	__u8 proto;	      /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 flags;	      /* enum event_flag */
	__u8 pad;
	struct flow flow;
	struct process process; /* who acted */
};

#define EVENT_SHORT __builtin_offsetof(struct event, flow)

#define CGROUP_NAME 256 /* NAME_MAX and a NUL */

/*
 * A cgroup of the v2 hierarchy was made. In the ring buffer among events, so that it is read before
 * those of the first process in it, and counted with none of them.
 */
struct cgroup_made {
	__u64 time_ns;
	__u64 id;		/* which no other ever has */
	__u64 parent;		/* id of the one it is in */
	__u32 uid;		/* who made it, and has its directory, in the initial user namespace */
	__u8 type;		/* EVENT_CGROUP, where a struct event has its type */
	__u8 pad[3];		/* */
	char name[CGROUP_NAME]; /* of its directory, ends with a NUL */
};

/*
 * What is reported by which hooks, a bit for each part of the job. A bit set in
 * tracepoint_parts: the hooks of the tracepoint tier report it, for those of the
 * fentry tier cannot here.
 */
enum part {
	PART_BIND = 1 << 0,	 /* bind(), well or refused */
	PART_LISTEN = 1 << 1,	 /* listen(), and the port it may choose */
	PART_CONNECT = 1 << 2,	 /* port picked, or refused */
	PART_ACCEPT = 1 << 3,	 /* who took a connection */
	PART_IMPLICIT = 1 << 4,	 /* the port a UDP socket gets when it first sends or connects */
	PART_PEER = 1 << 5,	 /* connect() of UDP, and its undoing */
	PART_UDP_CLOSE = 1 << 6, /* the port of a UDP socket given back */
};

enum stat {
	STAT_SUBMITTED,	 /* events handed to the ring buffer */
	STAT_LOST_RING,	 /* lost: the ring buffer was full */
	STAT_LOST_STATE, /* lost: a socket's storage could not be allocated */
	STAT_MAX,
};

_Static_assert(sizeof(struct cgroup_made) == 32 + CGROUP_NAME, "struct cgroup_made");
_Static_assert(__builtin_offsetof(struct cgroup_made, type) == __builtin_offsetof(struct event, type), "type");
_Static_assert(sizeof(struct flow) == 56, "struct flow");
_Static_assert(sizeof(struct process) == 40, "struct process");
_Static_assert(sizeof(struct event) == 128 && EVENT_SHORT == 32, "struct event");
