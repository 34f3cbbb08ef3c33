/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

/* The names of network devices, which a socket only has the number of: a walk of every namespace's list. */

#include "rows.h"
#include "task.h"

#define DEVICES_MAX 1024 /* also the most steps of one call, each of which writes a row at most */
#define DEVICES_TRIES 32

/*
 * Devices of one call of the walk. Written here from index 0, read by Go through
 * mmap after the call. It never fills up: see DEVICES_MAX.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, DEVICES_MAX);
	__type(key, __u32);
	__type(value, struct device_row);
} devices SEC(".maps");

/* State of the walk: zeroed by Go before the first call, rows before each; the rest written and read here. */
struct devices_cursor devices_cursor;

/* Begin at the namespace of the caller: they hang in a ring. */
static __always_inline void devices_begin(struct devices_cursor *c)
{
	struct net *net = READ(READ(task_current(), nsproxy), net_ns);

	c->first = c->space = (__u64)net + bpf_core_field_offset(struct net, list);
	c->ops = (__u64)READ(net, ns.ops);
}

/* Go on to the next namespace. 1: that was the last. */
static __always_inline int devices_next(struct devices_cursor *c)
{
	c->device = 0;
	c->tries = 0;
	c->space = (__u64)READ((struct list_head *)c->space, next);
	c->done = !c->space || c->space == c->first;
	return c->done;
}

/* At the list head: behind it is the first namespace there was, and that one stays. */
static __always_inline void devices_head(struct devices_cursor *c)
{
	struct net *net = (void *)READ((struct list_head *)c->space, next) - bpf_core_field_offset(struct net, list);

	c->init_cookie = netns_cookie(net);
	c->init_netns = READ(net, ns.inum);
}

/* Keep the name of a device. False: it is not, or no longer, one of net. */
static __always_inline bool devices_row(struct devices_cursor *c, const struct net *net, const struct net_device *dev)
{
	__u32 i = c->rows;
	struct device_row *row = bpf_map_lookup_elem(&devices, &i);

	if (!row || READ(dev, nd_net.net) != net)
		return false;
	row->cookie = netns_cookie(net);
	row->netns = READ(net, ns.inum);
	row->index = READ(dev, ifindex);
	row->flags = READ(dev, flags);
	row->pad = 0;
	READ_INTO(&row->name, dev, name);
	return true;
}

/*
 * One step: the next device, else the next namespace. Nothing is locked: a device that
 * names another namespace has moved, or is gone, and its next is another's; then the
 * namespace is read again, and Go keeps what it is told last. 1: at the end. A global
 * function, as fds_step is.
 */
__noinline int devices_step(void)
{
	struct devices_cursor *c = &devices_cursor;
	struct net *net = (void *)c->space - bpf_core_field_offset(struct net, list);
	__u64 head = (__u64)net + bpf_core_field_offset(struct net, dev_base_head), next;
	struct net_device *dev;

	if (!c->device) {
		/* One list head of the ring is of no namespace: it lacks the operations that all have. */
		if ((__u64)READ(net, ns.ops) != c->ops) {
			devices_head(c);
			return devices_next(c);
		}
		c->device = (__u64)READ((struct list_head *)head, next);
		if (!c->device)
			return devices_next(c); /* being set up */
	}
	if (c->device == head)
		return devices_next(c);
	dev = (void *)c->device - bpf_core_field_offset(struct net_device, dev_list);
	if (devices_row(c, net, dev)) {
		next = (__u64)READ(dev, dev_list.next);
		if (READ(dev, nd_net.net) == net) {
			c->rows++;
			c->device = next;
			return 0;
		}
	}
	c->device = 0;
	return c->tries++ < DEVICES_TRIES ? 0 : devices_next(c);
}

/* Read on where the last call stopped. */
static __always_inline void handle_devices(void)
{
	if (!devices_cursor.first)
		devices_begin(&devices_cursor);
	for (int i = 0; i < DEVICES_MAX; i++)
		if (devices_step())
			break;
}
