/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Entry points of the probes of KVM, userfaultfd, channels and processes. Every attach method ends
 * in the same functions of kvm.h, channel.h, userfault.h and process.h. The collector loads only
 * the method that this kernel accepts.
 */
#include "common.h"
#include "bitmap.h"
#include "dirty_ring.h"
#include "kvm.h"
#include "channel.h"
#include "userfault.h"
#include "process.h"

static __always_inline int ioctl_enter(void *ctx, u32 fd, u32 cmd, u64 arg)
{
	u64 id = bpf_get_current_pid_tgid();

	if (cmd == KVM_RUN) {
		run_enter(fd);
	} else if (is_kvm(cmd)) {
		kvm_enter(id, cmd, arg);
	} else {
		uffd_enter(id, cmd, arg);
	}
	return 0;
}

static __always_inline int kvm_ioctl_exit(void *ctx, u64 id, struct thread *t, s32 ret)
{
	if (kvm_exit(id, t, ret))
		walkers.call(ctx, 0);
	call_done(id, t);
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
	if (is_uffd(t->cmd)) {
		uffd_exit(t, ret);
		call_done(id, t);
		return 0;
	}
	return kvm_ioctl_exit(ctx, id, t, ret);
}

/* Reports channels and walks a bitmap, then reports the call. */
static __always_inline int walk_on(void *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct thread *t = threads.lookup(&id);
	struct walk *walk = walk_of(id);
	struct vm *vm = current_vm();

	if (!t || !vm || !ends_in_walker(t->cmd))
		return 0;
	if (channels_due(t))
		report_channels(vm);
	switch (REREAD(t->cmd)) {
	case KVM_GET_DIRTY_LOG:
	case KVM_CLEAR_DIRTY_LOG:
		if (walk)
			walk_bitmap(walk, vm, t);
		break;
	case KVM_RESET_DIRTY_RINGS:
		if (walk)
			ship_chunks(walk, vm, t);
		break;
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_SET_USER_MEMORY_REGION2:
		if (t->bitmap_bytes)
			free_chunks(vm, t);
	}
	walk_done(vm, t);
	call_done(id, t);
	return 0;
}

#ifndef WAY_FENTRY
int walk(void *ctx)
{
	return walk_on(ctx);
}
#endif

#define TP_SENDER(name, op) \
	int tp_##name##_enter(struct syscall_enter *ctx) \
	{ \
		return send_enter(ctx->args[0], op); \
	}
TP_SENDER(sendmsg, VFT_SENDMSG)
TP_SENDER(sendto, VFT_SENDTO)
TP_SENDER(write, VFT_WRITE)
TP_SENDER(writev, VFT_WRITEV)
TP_SENDER(pwrite64, VFT_PWRITE)
TP_SENDER(pwritev, VFT_PWRITEV)

int tp_send_exit(struct syscall_exit *ctx)
{
	return send_exit(ctx->ret);
}

/* write has a program of its own. Kernel 7.x runs programs of system calls preemptibly, and skips
 * one that a preempted task is inside on that CPU (bpf_prog_run_array_sleepable): a thread that
 * writes to eventfds, as QEMU's do to wake each other, would hide what another one sends to a
 * socket. */
int tp_write_exit(struct syscall_exit *ctx)
{
	return send_exit(ctx->ret);
}

#ifdef WAY_TRACEPOINT
int tp_ioctl_enter(struct syscall_enter *ctx)
{
	return ioctl_enter(ctx, ctx->args[0], ctx->args[1], ctx->args[2]);
}

int tp_ioctl_exit(struct syscall_exit *ctx)
{
	return ioctl_exit(ctx, ctx->ret);
}
#else
#define KP_SENDER(name, op) \
	int kp_##name(struct pt_regs *ctx) \
	{ \
		return send_enter(PT_REGS_PARM1(ctx), op); \
	}
KP_SENDER(sendmsg, VFT_SENDMSG)
KP_SENDER(sendto, VFT_SENDTO)
KP_SENDER(write, VFT_WRITE)
KP_SENDER(writev, VFT_WRITEV)
KP_SENDER(pwrite64, VFT_PWRITE)
KP_SENDER(pwritev, VFT_PWRITEV)

int kr_send(struct pt_regs *ctx)
{
	return send_exit(PT_REGS_RC(ctx));
}
#endif

#ifdef WAY_KPROBE
/* The ioctl functions of KVM's file_operations. They are static, but have the same names
 * in 6.1, 6.12 and 7.x. */
int kp_ioctl(struct pt_regs *ctx, void *file, unsigned int cmd, unsigned long arg)
{
	return ioctl_enter(ctx, 0, cmd, arg);
}

int kr_ioctl(struct pt_regs *ctx)
{
	return ioctl_exit(ctx, PT_REGS_RC(ctx));
}

/* Entry only: a kretprobe here would hold an instance for every vCPU that waits inside KVM_RUN. */
int kp_vcpu_ioctl(struct pt_regs *ctx, void *file, unsigned int cmd, unsigned long arg)
{
	if (cmd == KVM_RUN)
		run_enter(0);
	else if (is_vcpu(cmd))
		emit_vcpu_call(cmd, now_ns(), 0);
	return 0;
}

/* kvm:kvm_userspace_exit marks the end of KVM_RUN (virt/kvm/kvm_main.c, kvm_vcpu_ioctl). */
int tp_userspace_exit(void *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct thread *t = threads.lookup(&id);

	if (t && t->cmd == KVM_RUN)
		run_exit(t);
	return 0;
}
#endif

#ifdef WAY_FENTRY
/* The walker is attached to kvm_device_ioctl, which has the prototype of kvm_vm_ioctl, because the
 * kernel allows tail calls only between programs of one prototype (bpf_prog_map_compatible). When
 * kvm_device_ioctl itself runs it, it finds no walk and returns. */
#define IOCTL_ARGS void *file, unsigned int cmd, unsigned long arg

/* Each function receives only its own requests, so each program handles only those. */
static __always_inline struct thread *own_thread(u64 id)
{
	struct thread *t = threads.lookup(&id);

	return t && t->cmd ? t : NULL;
}

FENTRY(kvm_dev_ioctl, IOCTL_ARGS)
{
	if (cmd == KVM_CREATE_VM)
		kvm_enter(bpf_get_current_pid_tgid(), cmd, arg);
	return 0;
}

FEXIT(kvm_dev_ioctl, IOCTL_ARGS, long ret)
{
	u64 id = bpf_get_current_pid_tgid();
	struct thread *t = own_thread(id);

	if (!t)
		return 0;
	vm_created(ret);
	call_done(id, t);
	return 0;
}

FENTRY(kvm_vm_ioctl, IOCTL_ARGS)
{
	if (is_kvm(cmd))
		kvm_enter(bpf_get_current_pid_tgid(), cmd, arg);
	return 0;
}

FEXIT(kvm_vm_ioctl, IOCTL_ARGS, long ret)
{
	u64 id = bpf_get_current_pid_tgid();
	struct thread *t = own_thread(id);

	return t ? kvm_ioctl_exit(ctx, id, t, ret) : 0;
}

FENTRY(kvm_vcpu_ioctl, IOCTL_ARGS)
{
	if (cmd == KVM_RUN)
		run_enter(0);
	else if (is_vcpu(cmd))
		kvm_enter(bpf_get_current_pid_tgid(), cmd, arg);
	return 0;
}

FEXIT(kvm_vcpu_ioctl, IOCTL_ARGS, long ret)
{
	u64 id = bpf_get_current_pid_tgid();
	struct thread *t = own_thread(id);

	if (!t)
		return 0;
	if (t->cmd == KVM_RUN) {
		run_exit(t);
		return 0;
	}
	emit_vcpu_call(t->cmd, t->enter_ns, ret);
	call_done(id, t);
	return 0;
}

FEXIT(kvm_device_ioctl, IOCTL_ARGS, long ret)
{
	return walk_on(ctx);
}

FENTRY(userfaultfd_ioctl, IOCTL_ARGS)
{
	uffd_enter(bpf_get_current_pid_tgid(), cmd, arg);
	return 0;
}

FEXIT(userfaultfd_ioctl, IOCTL_ARGS, long ret)
{
	u64 id = bpf_get_current_pid_tgid();
	struct thread *t = own_thread(id);

	if (t) {
		uffd_exit(t, ret);
		call_done(id, t);
	}
	return 0;
}
#endif
