/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * Where the probes are hung up. Every way to attach ends in the same functions of kvm.h,
 * channel.h, uffd.h and process.h; the collector attaches the way this kernel takes and never
 * loads the others.
 */
#include "common.h"
#include "bitmap.h"
#include "ring.h"
#include "kvm.h"
#include "channel.h"
#include "uffd.h"
#include "process.h"

#define WALK_GET 0
#define WALK_RING 1

static __always_inline int ioctl_enter(void *ctx, u32 fd, u32 cmd, u64 arg)
{
	u64 id = bpf_get_current_pid_tgid();

	if (cmd == KVM_RUN) {
		run_enter(fd);
	} else if (is_kvm(cmd)) {
		if (kvm_enter(id, cmd, arg))
			walkers.call(ctx, WALK_GET);
	} else if (is_uffd(cmd) && current_vm()) {
		struct thread t = { .cmd = cmd, .arg = arg, .enter_ns = now_ns() };

		threads.update(&id, &t);
	}
	return 0;
}

static __always_inline int ioctl_exit(void *ctx, s32 ret)
{
	u64 id = bpf_get_current_pid_tgid();
	struct thread *t = threads.lookup(&id);

	if (!t || !t->cmd)
		return 0;
	if (t->cmd == KVM_RUN) {
		run_exit(t);
		return 0;
	}
	if (is_uffd(t->cmd))
		uffd_exit(t, ret);
	else if (kvm_exit(id, t, ret))
		walkers.call(ctx, t->cmd == KVM_RESET_DIRTY_RINGS ? WALK_RING : WALK_GET);
	call_done(id, t);
	return 0;
}

/* The walker goes on where ioctl_enter (CLEAR) or ioctl_exit (GET) stopped. */
int walk_bitmap(void *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct thread *t = threads.lookup(&id);
	struct walk *walk = walks.lookup(&id);
	struct vm *vm = current_vm();

	if (!t || !walk || !vm)
		return 0;
	if (walk_pieces(walk, vm, t))
		walkers.call(ctx, WALK_GET);
	if (t->cmd == KVM_GET_DIRTY_LOG) {
		get_dirty_log_done(vm, t, 0);
		call_done(id, t);
	}
	return 0;
}

int walk_ring(void *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct thread *t = threads.lookup(&id);
	struct walk *walk = walks.lookup(&id);
	struct vm *vm = current_vm();

	if (!t || !walk || !vm)
		return 0;
	if (ship_chunks(walk, vm, t))
		walkers.call(ctx, WALK_RING);
	reset_rings_done(vm, t, 0);
	call_done(id, t);
	return 0;
}

/* Tracepoints syscalls:sys_enter_* and sys_exit_*: the layout is the same for all of them. */
struct syscall_enter {
	u64 common;
	long nr;
	u64 args[6];
};

struct syscall_exit {
	u64 common;
	long nr;
	long ret;
};

int tp_ioctl_enter(struct syscall_enter *ctx)
{
	return ioctl_enter(ctx, ctx->args[0], ctx->args[1], ctx->args[2]);
}

int tp_ioctl_exit(struct syscall_exit *ctx)
{
	return ioctl_exit(ctx, ctx->ret);
}

#define SENDER(name, op) \
int tp_##name##_enter(struct syscall_enter *ctx) { return send_enter(ctx->args[0], op); }
SENDER(sendmsg, VFT_SENDMSG)
SENDER(sendto, VFT_SENDTO)
SENDER(write, VFT_WRITE)
SENDER(writev, VFT_WRITEV)
SENDER(pwrite64, VFT_PWRITE)
SENDER(pwritev, VFT_PWRITEV)

int tp_send_exit(struct syscall_exit *ctx)
{
	return send_exit(ctx->ret);
}
