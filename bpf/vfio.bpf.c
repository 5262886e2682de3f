/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Entry points of the VFIO probes, a BPF object that is loaded when the vfio module is loaded. Both
 * attach methods end in the functions of vfio.h.
 */
#define SHARES_RING
#include "common.h"
#include "bitmap.h"
#include "vfio.h"

/* The end of a request needs most of the code, so all probes share one program for it. */
static __always_inline int request_exit(void *ctx, s32 ret)
{
	u64 id = bpf_get_current_pid_tgid();
	struct call *c = calls.lookup(&id);
	struct vm *vm = current_vm();

	if (!c)
		return 0;
	c->t.ret = ret;
	if (vm && vfio_exit(id, vm, c))
		walkers.call(ctx, 0);
	calls.delete(&id);
	return 0;
}

/* Continues what request_exit began. */
int walk(void *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct call *c = calls.lookup(&id);
	struct walk *walk = walk_of(id);
	struct vm *vm = current_vm();

	if (!c || !walk || !vm)
		return 0;
	walk_bitmap(walk, vm, &c->t);
	dirty_done(vm, c);
	calls.delete(&id);
	return 0;
}

#ifdef WAY_KPROBE
/* The fd of the current system call is its first argument, in the task's saved registers (x86-64:
 * di, arm64: x0). The helpers are called by number: bpf_get_current_task_btf and bpf_task_pt_regs.
 */
static void *(*const current_task)(void) = (void *)158;
static void *(*const task_registers)(void *task) = (void *)175;

static __always_inline s32 user_fd(void)
{
	u64 fd = -1;

	read_kernel(&fd, sizeof(fd), task_registers(current_task()) + FIRST_ARGUMENT_OFFSET);
	return fd;
}

/* Reports a device when one of its requests is the first to show it. */
static __always_inline void device_seen(struct vm *vm, u64 file, s32 fd)
{
	struct fd_key key = key_of(fd), *old = device_files.lookup(&file);
	struct vft_vfio_open e = { .fd = fd, .how = VFT_VFIO_SEEN };

	if (old && old->tgid == key.tgid && old->fd == fd)
		return;
	device_met(file, &e);
	vfio_opened(vm, &e);
}

int kp_request(struct pt_regs *ctx, void *file, u32 cmd, u64 arg)
{
	vfio_enter(user_fd(), cmd, arg, 0);
	return 0;
}

int kp_device_request(struct pt_regs *ctx, u64 file, u32 cmd, u64 arg)
{
	struct vm *vm = current_vm();
	s32 fd;

	if (!vm)
		return 0;
	fd = user_fd();
	/* A bind request opens the device, if the kernel grants it: the exit reports it. */
	if (cmd != VFIO_DEVICE_BIND_IOMMUFD)
		device_seen(vm, file, fd);
	vfio_enter(fd, cmd, arg, cmd == VFIO_DEVICE_BIND_IOMMUFD ? file : 0);
	return 0;
}

int kr_request(struct pt_regs *ctx)
{
	return request_exit(ctx, PT_REGS_RC(ctx));
}

/* vfio_device_fops_release(inode, file). */
int kp_release(struct pt_regs *ctx, void *inode, u64 file)
{
	struct fd_key *key = device_files.lookup(&file);
	struct vm *vm = current_vm();
	s32 fd;

	if (!key)
		return 0;
	fd = key->fd;
	if (vm && key->tgid == bpf_get_current_pid_tgid() >> 32)
		vfio_closed(vm, fd);
	device_files.delete(&file);
	return 0;
}

int kp_flr(struct pt_regs *ctx, void *pci_dev)
{
	struct vft_vfio_reset e = { .fd = -1, .op = VFT_VFIO_FLR };
	struct vm *vm = current_vm();

	if (!vm)
		return 0;
	read_device_name(e.name, pci_dev + PCI_DEVICE_OFFSET);
	EMIT(vm, VFT_VFIO_RESET, &e);
	return 0;
}
#else
int tp_request(struct syscall_enter *ctx)
{
	vfio_enter(ctx->args[0], ctx->args[1], ctx->args[2], 0);
	return 0;
}

int tp_request_exit(struct syscall_exit *ctx)
{
	return request_exit(ctx, ctx->ret);
}

int tp_close(struct syscall_enter *ctx)
{
	struct fd_key key = key_of(ctx->args[0]);
	struct vm *vm = current_vm();

	if (vm && device_fds.lookup(&key))
		vfio_closed(vm, key.fd);
	return 0;
}
#endif

#ifdef DATA_FENTRY
/* Not a kretprobe: many reads of a host sleep, and each would hold an instance of it. */
FEXIT(ksys_read, unsigned int fd, void *buffer, unsigned long count, long ret)
{
	return data_moved(fd, ret);
}

FEXIT(ksys_write, unsigned int fd, void *buffer, unsigned long count, long ret)
{
	return data_moved(fd, ret);
}
#else
BPF_TABLE("lru_hash", u64, s32, moving, 4096);

int tp_data(struct syscall_enter *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct fd_key key = key_of(ctx->args[0]);

	if (current_vm() && data_fds.lookup(&key))
		moving.update(&id, &key.fd);
	return 0;
}

int tp_data_exit(struct syscall_exit *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	s32 *fd = moving.lookup(&id);

	if (!fd)
		return 0;
	data_moved(*fd, ctx->ret);
	moving.delete(&id);
	return 0;
}
#endif
