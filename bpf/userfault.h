/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * userfaultfd's ioctls, which a post-copy destination uses (include/uapi/linux/userfaultfd.h).
 */
#define UFFDIO_API 0xc018aa3f
#define UFFDIO_REGISTER 0xc020aa00
#define UFFDIO_UNREGISTER 0x8010aa01
#define UFFDIO_COPY 0xc028aa03
#define UFFDIO_ZEROPAGE 0xc020aa04
#define UFFDIO_CONTINUE 0xc020aa07
#define UFFD_REPORT_NS 10000000

static __always_inline bool is_uffd(u32 cmd)
{
	switch (cmd) {
	case UFFDIO_API:
	case UFFDIO_REGISTER:
	case UFFDIO_UNREGISTER:
	case UFFDIO_COPY:
	case UFFDIO_ZEROPAGE:
	case UFFDIO_CONTINUE:
		return true;
	}
	return false;
}

static __always_inline void uffd_enter(u64 id, u32 cmd, u64 arg)
{
	struct vm *vm;

	if (!is_uffd(cmd))
		return;
	vm = current_vm();
	if (vm) {
		struct thread t = { .cmd = cmd, .arg = arg, .enter_ns = now_ns() };

		struct thread *old = threads.lookup(&id);

		if (old) {
			t.exit_ns = old->exit_ns;
			*old = t;
		} else {
			keep_thread(vm, id, &t);
		}
	}
}

static __always_inline void uffd_exit(struct thread *t, s32 ret)
{
	struct vm *vm = current_vm();
	struct vft_uffd e = { .ret = ret };
	u64 length = 0, now;

	if (!vm)
		return;
	switch (t->cmd) {
	case UFFDIO_API:
		e.op = VFT_UFFD_API;
		break;
	case UFFDIO_REGISTER:
		e.op = VFT_UFFD_REGISTER;
		break;
	case UFFDIO_UNREGISTER:
		e.op = VFT_UFFD_UNREGISTER;
		break;
	case UFFDIO_COPY:
		e.op = VFT_UFFD_COPY;
		break;
	case UFFDIO_ZEROPAGE:
		e.op = VFT_UFFD_ZEROPAGE;
		break;
	case UFFDIO_CONTINUE:
		e.op = VFT_UFFD_CONTINUE;
		break;
	}
	if (e.op >= VFT_UFFD_COPY) {
		/* COPY has len at offset 16; ZEROPAGE and CONTINUE begin with {start, len}. */
		read_user(&length, sizeof(length),
			  (void *)(t->arg + (e.op == VFT_UFFD_COPY ? 16 : 8)));
		if (!ret) {
			__sync_fetch_and_add(&vm->uffd_calls, 1);
			__sync_fetch_and_add(&vm->uffd_bytes, length);
		}
		now = now_ns();
		if (now - vm->uffd_reported_ns < UFFD_REPORT_NS)
			return;
		vm->uffd_reported_ns = now;
	}
	e.calls = vm->uffd_calls;
	e.bytes = vm->uffd_bytes;
	EMIT(vm, VFT_UFFD, &e);
}
