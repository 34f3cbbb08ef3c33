/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/*
 * The contract of the walks with Go: the rows they write, and their state between two
 * calls. Units are those of hooks.h.
 */

#include "hooks.h"

enum row_flag {
	ROW_ACTIVE = 1 << 0,	/* TCP: this end called connect() */
	ROW_MPTCP = 1 << 1,	/* TCP subflow of an MPTCP socket */
	ROW_V6ONLY = 1 << 2,	/* IPV6_V6ONLY, also set by bind to one v6 address */
	ROW_REUSEADDR = 1 << 3, /* SO_REUSEADDR */
	ROW_REUSEPORT = 1 << 4, /* SO_REUSEPORT */
	ROW_SOCKET = 1 << 5,	/* a struct socket is attached: not orphaned, not in an accept queue */
	ROW_BACKLOG = 1 << 6,	/* listener with half-open connections in its queue */
	ROW_TIMEWAIT = 1 << 7,	/* timewait sock; its state is TIME_WAIT or FIN_WAIT2 */
	ROW_CONNECTED = 1 << 8, /* TCP: the port was chosen by connect() for all that have it */
	ROW_TW_AGED = 1 << 9,	/* timewait sock that connect() may take over, if tcp_tw_reuse lets it */
	ROW_NO_FILE = 1 << 10,	/* WALK_SOCK: its struct socket has no file: the kernel made it for itself */
	ROW_FIXED = 1 << 11,	/* UDP, ph_walk: bound to a port that was asked for by its number */
};

/* What only a TCP listener has. Its accept queue is full once waiting is greater than max. */
struct backlog {
	__u32 waiting; /* connections that no accept() has taken */
	__u32 max;     /* of listen(), and net.core.somaxconn */
	__u64 cgroup;  /* id of the cgroup that it was made in, 0: not known */
};

/* One kernel socket that holds a port, as the walk found it. */
struct row {
	__u64 time_ns;	  /* when this row was read, if asked */
	__u64 sock;	  /* address of the struct sock (or timewait, request sock) */
	__u64 socket;	  /* address of its struct socket; with inode what a descriptor refers to */
	__u64 inode;	  /* inode number of that, as in /proc/PID/fd: given anew to each socket */
	struct flow flow; /* of a TCP listener in ph_walk, remote_ip is a struct backlog */
	__u32 uid;	  /* owner of the socket, 0 for timewait and request socks */
	__u8 proto;	  /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 state;	  /* enum tcp_state; of a timewait sock its substate */
	__u16 flags;	  /* enum row_flag */
};

#define PORT_WORDS 1024 /* 65536 bits */

/* A network namespace and what governs its ephemeral ports. */
struct netns_row {
	__u64 cookie;		    /* 0 before Linux 5.12 */
	__u64 udp_table;	    /* address of its struct udp_table, 0 before Linux 6.2 */
	__u32 netns;		    /* inode number */
	__u16 low;		    /* ip_local_port_range, both ends included */
	__u16 high;		    /* */
	__u32 tw_reuse;		    /* tcp_tw_reuse */
	__u32 pad;		    /* */
	__u64 reserved[PORT_WORDS]; /* ip_local_reserved_ports, bit by port */
};

/* A network device. */
struct device_row {
	__u64 cookie; /* of its namespace, 0 before Linux 5.12 */
	__u32 netns;  /* inode number of its namespace */
	__u32 index;  /* the number it has there */
	__u32 flags;  /* IFF_UP and so on, as netdevice(7) has them */
	__u32 pad;
	__u8 name[16];
};

/* State of the walk of network devices: where its last call stopped. */
struct devices_cursor {
	__u64 first;	   /* in/out: where the ring of namespaces was begun; 0: begin */
	__u64 space;	   /* in/out: present namespace, in that ring */
	__u64 device;	   /* in/out: its next device, 0: it is to be begun */
	__u64 ops;	   /* in/out: operations of namespaces */
	__u64 init_cookie; /* out: cookie of the namespace the kernel starts with */
	__u32 init_netns;  /* out: its inode number, 0: it was not come by yet */
	__u32 rows;	   /* out: rows written since Go set it to 0 */
	__u16 tries;	   /* in/out: how often the present namespace was begun again */
	__u8 done;	   /* out: every namespace was read */
	__u8 pad[5];
};

#define FDS_CHUNK 64

/*
 * The sockets in a part of a process's descriptor table, or in a part of the table of
 * files of an io_uring that it has. A socket is named by what its row has, read while
 * the descriptor referred to it: the address alone is soon another's.
 */
struct fds {
	struct process process;
	__u32 tid; /* thread whose table it is */
	__u32 pad;
	__u32 first;		  /* descriptor of sockets[0]; of a ring its own. From here on equal parts are equal */
	__u32 ring;		  /* 1: of the files registered with a ring */
	__u64 sockets[FDS_CHUNK]; /* address of each struct socket, 0: the descriptor is of none */
	__u32 inodes[FDS_CHUNK];  /* its inode number */
};

/* State of the iterator of descriptors: where its last call stopped. */
struct fds_cursor {
	__u64 task;	 /* in/out: task whose table did not fit, 0: none */
	__u64 rings;	 /* in/out: bit i: descriptor ring_fd + i is an io_uring to be read before going on */
	__u32 next;	 /* in/out: its next descriptor */
	__u32 ring_fd;	 /* in/out */
	__u32 ring_next; /* in/out: the next file of the ring at ring_fd */
	__u32 rows;	 /* out: chunks written since Go set it to 0 */
	__u32 init;	 /* in/out: 1: process 1, which is always there, has been seen */
	__u32 pad;
};

enum walk_table {
	WALK_TCP_BIND = 1, /* TCP bind buckets: every TCP socket and timewait sock with a port */
	WALK_UDP,	   /* UDP sockets */
	WALK_TCP_REQUEST,  /* request socks (SYN-RECV) of the established hash */
	WALK_SOCK,	   /* no table: the one socket at node, if it still has the port */
	WALK_NETNS,	   /* the network namespaces: ph_ports into netns_rows, ph_walk where their tables are */
};

/* State of the walk: what Go asks for, and where the last call stopped. */
struct walk {
	enum walk_table table; /* in: which table to read */
	__u32 udp_fd;  /* in: a UDP socket of the caller: what sockets look like, before 6.2 the way to the UDP table */
	__u64 heads;   /* in: the struct udp_table or inet_hashinfo to read, 0: that of the caller's namespace */
	__u32 ring_fd; /* in: an io_uring of the caller, 0: none */
	__u32 pad2;    /* */
	__u64 bucket;  /* in/out: next bucket to read */
	__u64 end;     /* in: bucket to stop at */
	__u64 tb;      /* in/out: next bind bucket of the chain */
	__u64 tb2;     /* in/out: next per-address bind bucket of it */
	__u64 node;    /* in/out: next owner */
	__u64 owner;   /* in/out: bind bucket, or hash slot, that owner must belong to */
	__u64 plain_prot;  /* in/out: operations of TCP sockets that are no subflows of MPTCP; of namespaces */
	__u64 retry;	   /* in/out: bucket of the last restart */
	__u64 buckets;	   /* out: number of buckets of the table, 0: table not found */
	__u32 first_row;   /* index of the lane's first row */
	__u32 rows;	   /* out: rows written by this call */
	__u32 restarts;	   /* out: times a chain changed under the reader and was read again */
	__u32 gave_up;	   /* out: chains left unfinished after too many restarts */
	__u32 tries;	   /* in/out: restarts of the present bucket */
	__u16 port;	   /* in: only this local port, 0 = all */
	__u16 tb_port;	   /* in/out: port of the present bind bucket */
	__u8 done;	   /* out: the table was read to its end */
	__u8 connected;	   /* in/out: the present bind bucket is connect()'s own */
	__u8 sockets;	   /* in, ph_ports: their struct sockets too, to find who holds them */
	__u8 timed;	   /* in: rows tell when they were read */
	__u8 pad[4];	   /* */
	__u64 net;	   /* in/out: namespace that low and high are of */
	__u16 low;	   /* in/out: its ephemeral range */
	__u16 high;	   /* in/out */
	__u32 tw_delay_ms; /* in/out: its tcp_tw_reuse_delay */
	__u64 now;	   /* CLOCK_MONOTONIC at the beginning of the call, nanoseconds */
};

/* What a call of the walk is given: its state is in the map walks, by lane. */
struct walk_call {
	__u32 lane; /* which of the walks goes on */
};

_Static_assert(sizeof(struct row) == 96, "struct row");
_Static_assert(sizeof(struct fds) == 824, "struct fds");
_Static_assert(sizeof(struct walk) == 152, "struct walk");
_Static_assert(sizeof(struct netns_row) == 8224, "struct netns_row");
_Static_assert(sizeof(struct device_row) == 40, "struct device_row");
