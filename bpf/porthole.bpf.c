/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */

/* Every hook, one line each; what they do is in the header of the operation. */

#include "accept.h"
#include "bind.h"
#include "cgroup.h"
#include "close.h"
#include "connect.h"
#include "syscall.h"
#include "uring.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// clang-format off: one hook, one line

/* both tiers */
SEC("tp_btf/inet_sock_set_state") int BPF_PROG(ph_state, struct sock *sk, int old, int now) { handle_state(sk, old, now); return 0; }
SEC("tp_btf/cgroup_mkdir") int BPF_PROG(ph_cgroup_x, struct cgroup *cgrp, const char *path) { handle_cgroup_made(cgrp); return 0; }
SEC("tp_btf/tcp_destroy_sock") int BPF_PROG(ph_destroy, struct sock *sk) { handle_tcp_destroy(sk); return 0; }

/* fentry tier */
SEC("fexit/__inet_bind") int BPF_PROG(ph_bind4_fx, struct sock *sk, void *addr, int len, __u32 flags, int ret) { handle_bind_exit(sk, addr, ret); return 0; }
SEC("fexit/__inet6_bind") int BPF_PROG(ph_bind6_fx, struct sock *sk, void *addr, int len, __u32 flags, int ret) { handle_bind_exit(sk, addr, ret); return 0; }
SEC("fexit/inet_csk_listen_start") int BPF_PROG(ph_listen_fx2, struct sock *sk, int backlog, int ret) { handle_listen_start(sk, ret); return 0; }
SEC("fexit/inet_csk_listen_start") int BPF_PROG(ph_listen_fx1, struct sock *sk, int ret) { handle_listen_start(sk, ret); return 0; }
SEC("fexit/inet_listen") int BPF_PROG(ph_listen_fx, struct socket *socket, int backlog, int ret) { handle_listen_exit(socket, ret); return 0; }
SEC("fexit/inet_hash_connect") int BPF_PROG(ph_hash4_fx, void *death_row, struct sock *sk, int ret) { handle_hash_connect(sk, ret); return 0; }
SEC("fexit/inet6_hash_connect") int BPF_PROG(ph_hash6_fx, void *death_row, struct sock *sk, int ret) { handle_hash_connect(sk, ret); return 0; }
SEC("fexit/tcp_v4_connect") int BPF_PROG(ph_tcp4_fx, struct sock *sk, void *addr, int len, int ret) { handle_connect_inner(sk, AF_INET, addr, ret); return 0; }
SEC("fexit/tcp_v6_connect") int BPF_PROG(ph_tcp6_fx, struct sock *sk, void *addr, int len, int ret) { handle_connect_inner(sk, AF_INET6, addr, ret); return 0; }
SEC("fentry/security_sock_graft") int BPF_PROG(ph_accept_fe, struct sock *sk) { handle_graft(sk); return 0; }
SEC("fexit/inet_autobind") int BPF_PROG(ph_autobind_fx, struct sock *sk, int ret) { handle_autobind(sk, ret); return 0; }
SEC("fexit/__ip4_datagram_connect") int BPF_PROG(ph_udp4_fx, struct sock *sk, void *addr, int len, int ret) { handle_connect_inner(sk, AF_INET, addr, ret); return 0; }
SEC("fexit/__ip6_datagram_connect") int BPF_PROG(ph_udp6_fx, struct sock *sk, void *addr, int len, int ret) { handle_connect_inner(sk, AF_INET6, addr, ret); return 0; }
SEC("fexit/__udp_disconnect") int BPF_PROG(ph_unpeer_fx, struct sock *sk, int flags, int ret) { handle_udp_disconnect(sk); return 0; }
SEC("fentry/udp_destroy_sock") int BPF_PROG(ph_close4_fe, struct sock *sk) { handle_release(sk); return 0; }
SEC("fentry/udpv6_destroy_sock") int BPF_PROG(ph_close6_fe, struct sock *sk) { handle_release(sk); return 0; }

/* tracepoint tier; a cgroup program that returns 1 lets the call go on */
SEC("cgroup/bind4") int ph_bind4_e(struct bpf_sock_addr *ctx) { handle_bind_enter(note_of(ctx->sk), ctx->user_port); return 1; }
SEC("cgroup/bind6") int ph_bind6_e(struct bpf_sock_addr *ctx) { handle_bind_enter(note_of(ctx->sk), ctx->user_port); return 1; }
SEC("cgroup/post_bind4") int ph_bind4_x(struct bpf_sock *ctx) { handle_bind_done(plain_sock(ctx), note_of(ctx)); return 1; }
SEC("cgroup/post_bind6") int ph_bind6_x(struct bpf_sock *ctx) { handle_bind_done(plain_sock(ctx), note_of(ctx)); return 1; }
SEC("cgroup/sendmsg4") int ph_sendmsg4_e(struct bpf_sock_addr *ctx) { handle_send(plain_sock(ctx->sk), note_of(ctx->sk)); return 1; }
SEC("cgroup/sendmsg6") int ph_sendmsg6_e(struct bpf_sock_addr *ctx) { handle_send(plain_sock(ctx->sk), note_of(ctx->sk)); return 1; }
SEC("cgroup/connect4") int ph_connect4_e(struct bpf_sock_addr *ctx) { if (ctx->type == SOCK_DGRAM) handle_connect_udp_enter(plain_sock(ctx->sk), known_note_of(ctx->sk)); return 1; }
SEC("cgroup/connect6") int ph_connect6_e(struct bpf_sock_addr *ctx) { if (ctx->type == SOCK_DGRAM) handle_connect_udp_enter(plain_sock(ctx->sk), known_note_of(ctx->sk)); return 1; }
SEC("cgroup/getpeername4") int ph_peername4_x(struct bpf_sock_addr *ctx) { if (peer_name_wanted()) handle_peer_name(plain_sock(ctx->sk), note_of(ctx->sk)); return 1; }
SEC("cgroup/getpeername6") int ph_peername6_x(struct bpf_sock_addr *ctx) { if (peer_name_wanted()) handle_peer_name(plain_sock(ctx->sk), note_of(ctx->sk)); return 1; }
SEC("cgroup/sock_release") int ph_release_e(struct bpf_sock *ctx) { if (ctx->type == SOCK_DGRAM) handle_release(plain_sock(ctx)); return 1; }
SEC("tp_btf/inet_sk_error_report") int BPF_PROG(ph_error_x, struct sock *sk) { handle_error(sk); return 0; }
SEC("sockops") int ph_sockops(struct bpf_sock_ops *ctx) { handle_sockops(ctx); return 1; }
SEC("tp_btf/sys_exit") int BPF_PROG(ph_sys_x, struct pt_regs *regs, long ret) { handle_sys_exit(regs, ret); return 0; }
SEC("tp_btf/io_uring_complete") int BPF_PROG(ph_uring_x, void *ring, const struct io_kiocb *req, __u64 user_data, int res, __u32 flags) { handle_uring_complete(req, res, flags); return 0; }
SEC("tp_btf/io_uring_complete") int BPF_PROG(ph_uring_cqe_x, void *ring, const struct io_kiocb *req, const struct io_uring_cqe *cqe) { handle_uring_complete(req, READ(cqe, res), READ(cqe, flags)); return 0; }
