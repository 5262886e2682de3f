/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * KVM's uAPI: what a VMM asks of /dev/kvm, of a VM fd and of a vCPU fd. Numbers and layouts
 * are ABI (include/uapi/linux/kvm.h). Numbers are compared whole: KVM reuses the low bytes.
 */
#define KVM_CREATE_VM 0xae01
#define KVM_CREATE_VCPU 0xae41
#define KVM_SET_USER_MEMORY_REGION 0x4020ae46
#define KVM_SET_USER_MEMORY_REGION2 0x40a0ae49
#define KVM_GET_DIRTY_LOG 0x4010ae42
#define KVM_CLEAR_DIRTY_LOG 0xc018aec0
#define KVM_RESET_DIRTY_RINGS 0xaec7
#define KVM_ENABLE_CAP 0x4068aea3
#define KVM_GET_CLOCK 0x8030ae7c
#define KVM_SET_CLOCK 0x4030ae7b
#define KVM_KVMCLOCK_CTRL 0xaead
#define KVM_SET_MP_STATE 0x4004ae99
#define KVM_RUN 0xae80

#define KVM_MEM_LOG_DIRTY_PAGES 1
#define RUN_GAP_NS 1000000

struct kvm_region_arg { u32 slot, flags; u64 gpa, bytes, uaddr; };
struct kvm_get_dirty_log_arg { u32 slot, pad; u64 bitmap; };
struct kvm_clear_dirty_log_arg { u32 slot, num_pages; u64 first_page, bitmap; };
struct kvm_cap_arg { u32 cap, flags; u64 arg0; };

static __always_inline bool is_kvm(u32 cmd)
{
	switch (cmd) {
	case KVM_CREATE_VM:
	case KVM_CREATE_VCPU:
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_SET_USER_MEMORY_REGION2:
	case KVM_GET_DIRTY_LOG:
	case KVM_CLEAR_DIRTY_LOG:
	case KVM_RESET_DIRTY_RINGS:
	case KVM_ENABLE_CAP:
	case KVM_GET_CLOCK:
	case KVM_SET_CLOCK:
	case KVM_KVMCLOCK_CTRL:
	case KVM_SET_MP_STATE:
		return true;
	}
	return false;
}

static __always_inline u64 bitmap_bytes(u64 pages)
{
	return (pages + 63) / 64 * 8;
}

static __always_inline void run_enter(u32 fd)
{
	u64 id = bpf_get_current_pid_tgid();
	struct vm *vm = current_vm();
	struct thread *t;

	if (!vm)
		return;
	t = threads.lookup(&id);
	if (!t) {
		struct thread fresh = { .cmd = KVM_RUN, .fd = fd };

		threads.update(&id, &fresh);
		t = threads.lookup(&id);
		if (!t)
			return;
	}
	t->cmd = KVM_RUN;
	if (now_ns() - t->exit_ns > RUN_GAP_NS) {
		struct vft_run e = { .exit_ns = t->exit_ns };

		EMIT(vm, VFT_RUN, &e);
	}
}

static __always_inline void run_exit(struct thread *t)
{
	struct vm *vm = current_vm();
	u64 now = now_ns();

	t->exit_ns = now;
	t->cmd = 0;
	if (vm)
		vm->last_exit_ns = now;
}

/* Remembers the call; what it is about is read when it returns. */
static __always_inline void kvm_enter(u64 id, u32 cmd, u64 arg)
{
	struct thread t = { .cmd = cmd, .arg = arg, .enter_ns = now_ns() };
	struct thread *old;

	if (cmd != KVM_CREATE_VM && !current_vm())
		return;
	/* a vCPU thread keeps the time of its last exit across other calls */
	old = threads.lookup(&id);
	if (old)
		t.exit_ns = old->exit_ns;
	threads.update(&id, &t);
}

static __always_inline void report_channels(struct vm *vm);

static __always_inline void get_dirty_log_done(struct vm *vm, struct thread *t, s32 ret)
{
	struct vft_get_dirty_log e = {
		.enter_ns = t->enter_ns, .last_exit_ns = vm->last_exit_ns,
		.bitmap_bytes = t->bitmap_bytes, .walked_bytes = t->walked_bytes, .slot = t->slot,
		.ret = ret, .pieces = t->pieces, .read_errors = t->read_errors,
	};

	EMIT(vm, VFT_GET_DIRTY_LOG, &e);
}

static __always_inline void reset_rings_done(struct vm *vm, struct thread *t, s32 ret)
{
	struct vft_reset_dirty_rings e = {
		.enter_ns = t->enter_ns, .last_exit_ns = vm->last_exit_ns, .pushes = vm->pushes,
		.ring_full_exits = vm->ring_full_exits, .ret = ret, .pieces = t->pieces,
		.untracked = vm->untracked,
	};

	EMIT(vm, VFT_RESET_DIRTY_RINGS, &e);
}

static __always_inline void clear_dirty_log_done(struct vm *vm, struct thread *t, s32 ret)
{
	struct vft_clear_dirty_log e = {
		.enter_ns = t->enter_ns, .first_page = t->first_page, .num_pages = t->num_pages,
		.bitmap_bytes = t->bitmap_bytes, .walked_bytes = t->walked_bytes, .slot = t->slot,
		.ret = ret, .pieces = t->pieces, .read_errors = t->read_errors,
	};

	EMIT(vm, VFT_CLEAR_DIRTY_LOG, &e);
}

static __always_inline void region_done(struct vm *vm, struct thread *t, s32 ret)
{
	struct kvm_region_arg region = {};
	struct vft_region e = {};
	struct slot_key key = {};
	u64 pages;

	read_user(&region, sizeof(region), (void *)t->arg);
	e.slot = region.slot;
	e.flags = region.flags;
	e.gpa = region.gpa;
	e.bytes = region.bytes;
	e.uaddr = region.uaddr;
	e.ret = ret;
	if (!ret) {
		key.tgid = bpf_get_current_pid_tgid() >> 32;
		key.slot = region.slot;
		pages = region.bytes >> PAGE_SHIFT;
		if (pages)
			slot_pages.update(&key, &pages);
		else
			slot_pages.delete(&key);
		if (region.flags & KVM_MEM_LOG_DIRTY_PAGES)
			vm->logging = 1;
	}
	EMIT(vm, VFT_REGION, &e);
}

static __always_inline void vm_created(s32 fd)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct vft_vm_created e = { .fd = fd };
	u32 zero = 0;
	struct vm *vm = new_vm.lookup(&zero);

	if (fd < 0 || !vm)
		return;
	vms.insert(&tgid, vm);
	vm = vms.lookup(&tgid);
	if (vm)
		EMIT_WAKING(vm, VFT_VM_CREATED, &e, WAKE);
}

static __always_inline void clock_done(struct vm *vm, struct thread *t, u32 op, s32 ret)
{
	struct vft_clock e = {
		.enter_ns = t->enter_ns, .last_exit_ns = vm->last_exit_ns, .op = op, .ret = ret,
	};

	EMIT(vm, VFT_CLOCK, &e);
}

/* True when a bitmap is to be walked: the caller tail-calls the walker, which ends the call. */
static __always_inline bool kvm_exit(u64 id, struct thread *t, s32 ret)
{
	struct vm *vm = current_vm();
	struct slot_key key = { .tgid = id >> 32 };
	struct kvm_get_dirty_log_arg get = {};
	struct kvm_clear_dirty_log_arg clear = {};
	struct kvm_cap_arg cap = {};
	struct walk *walk;
	u64 *pages;

	if (t->cmd == KVM_CREATE_VM) {
		vm_created(ret);
		return false;
	}
	if (!vm)
		return false;
	t->ret = ret;
	switch (t->cmd) {
	case KVM_CREATE_VCPU: {
		struct vft_vcpu_created e = { .fd = ret, .vcpu_id = t->arg };

		EMIT(vm, VFT_VCPU_CREATED, &e);
		break;
	}
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_SET_USER_MEMORY_REGION2:
		region_done(vm, t, ret);
		break;
	case KVM_ENABLE_CAP: {
		struct vft_cap e = { .ret = ret };

		read_user(&cap, sizeof(cap), (void *)t->arg);
		e.cap = cap.cap;
		e.arg0 = cap.arg0;
		EMIT(vm, VFT_CAP, &e);
		break;
	}
	case KVM_GET_DIRTY_LOG:
		report_channels(vm);
		read_user(&get, sizeof(get), (void *)t->arg);
		key.slot = get.slot;
		t->slot = get.slot;
		t->bitmap_bytes = 0;
		t->first_page = 0;
		pages = slot_pages.lookup(&key);
		if (pages)
			t->bitmap_bytes = bitmap_bytes(*pages);
		t->pieces = t->read_errors = 0;
		t->walked_bytes = 0;
		if (!ret && walk_begin(id, t, get.bitmap))
			return true;
		get_dirty_log_done(vm, t, ret);
		break;
	case KVM_CLEAR_DIRTY_LOG:
		/* The kernel only reads this bitmap (kvm_clear_dirty_log_protect), QEMU changes it
		 * after the call (kvm_log_clear_one_slot): it still says what was asked for. */
		read_user(&clear, sizeof(clear), (void *)t->arg);
		t->slot = clear.slot;
		t->num_pages = clear.num_pages;
		t->first_page = clear.first_page;
		t->bitmap_bytes = bitmap_bytes(clear.num_pages);
		t->pieces = t->read_errors = 0;
		t->walked_bytes = 0;
		if (walk_begin(id, t, clear.bitmap))
			return true;
		clear_dirty_log_done(vm, t, ret);
		break;
	case KVM_RESET_DIRTY_RINGS:
		report_channels(vm);
		walk = walk_begin(id, t, 0);
		if (walk) {
			walk->bytes = __sync_lock_test_and_set(&vm->touched_count, 0);
			if (walk->bytes > MAX_TOUCHED)
				walk->bytes = MAX_TOUCHED;
			return true;
		}
		reset_rings_done(vm, t, ret);
		break;
	case KVM_GET_CLOCK:
		report_channels(vm);
		clock_done(vm, t, VFT_CLOCK_GET, ret);
		break;
	case KVM_SET_CLOCK:
		clock_done(vm, t, VFT_CLOCK_SET, ret);
		break;
	case KVM_KVMCLOCK_CTRL:
		clock_done(vm, t, VFT_CLOCK_CTRL, ret);
		break;
	case KVM_SET_MP_STATE: {
		struct vft_vcpu_state e = { .ret = ret };

		EMIT(vm, VFT_VCPU_STATE, &e);
		break;
	}
	}
	return false;
}

/* Calls on a vCPU fd where only their beginning is seen: a kretprobe on kvm_vcpu_ioctl would hold an
 * instance for every vCPU that waits inside KVM_RUN. */
static __always_inline void vcpu_enter_only(u32 cmd)
{
	struct thread t = { .enter_ns = now_ns() };
	struct vm *vm = current_vm();
	struct vft_vcpu_state e = {};

	if (!vm)
		return;
	if (cmd == KVM_SET_MP_STATE)
		EMIT(vm, VFT_VCPU_STATE, &e);
	else if (cmd == KVM_KVMCLOCK_CTRL)
		clock_done(vm, &t, VFT_CLOCK_CTRL, 0);
}

/* A vCPU thread keeps its entry for the time of its last exit, any other gives it back. */
static __always_inline void call_done(u64 id, struct thread *t)
{
	t->cmd = 0;
	if (!t->exit_ns)
		threads.delete(&id);
}
