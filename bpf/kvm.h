/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * KVM's uAPI: the ioctls of /dev/kvm, of VM fds and of vCPU fds. Numbers and layouts are ABI
 * (include/uapi/linux/kvm.h). Numbers are compared whole, because KVM reuses their low bytes.
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

struct kvm_get_dirty_log_arg {
	u32 slot, pad;
	u64 bitmap;
};
struct kvm_clear_dirty_log_arg {
	u32 slot, num_pages;
	u64 first_page, bitmap;
};
struct kvm_cap_arg {
	u32 cap, flags;
	u64 arg0;
};

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

static __always_inline bool is_region(u32 cmd)
{
	return cmd == KVM_SET_USER_MEMORY_REGION || cmd == KVM_SET_USER_MEMORY_REGION2;
}

static __always_inline bool has_bitmap(u32 cmd)
{
	return cmd == KVM_GET_DIRTY_LOG || cmd == KVM_CLEAR_DIRTY_LOG ||
	       cmd == KVM_RESET_DIRTY_RINGS;
}

/* Calls that have a bitmap, and calls before which channels are reported. */
static __always_inline bool ends_in_walker(u32 cmd)
{
	return has_bitmap(cmd) || is_region(cmd) || cmd == KVM_GET_CLOCK;
}

static __always_inline u64 bitmap_bytes(u64 pages)
{
	return (pages + 63) / 64 * 8;
}

/* Makes the entry of a thread that has none; `vm` is NULL in KVM_CREATE_VM. */
static __always_inline void keep_thread(struct vm *vm, u64 id, struct thread *t)
{
	if ((vm && vm->nr_threads >= MAX_THREADS) || threads.insert(&id, t))
		count_full(vm, TABLE_THREADS);
	else if (vm)
		__sync_fetch_and_add(&vm->nr_threads, 1);
}

/* A thread that entered before its process had a VM, or that the collector found, was not counted.
 */
static __always_inline void forget_thread(struct vm *vm, u64 id)
{
	if (!threads.delete(&id) && vm && vm->nr_threads)
		__sync_fetch_and_add(&vm->nr_threads, -1);
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

		keep_thread(vm, id, &fresh);
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

/* Stores the call. Its arguments are read when it returns, except for a memory region's: KVM reads
 * those at the beginning, and later bitmaps depend on them, so another thread must not be able to
 * change them. */
static __always_inline void kvm_enter(u64 id, u32 cmd, u64 arg)
{
	struct thread t = { .cmd = cmd, .arg = arg, .enter_ns = now_ns() };
	struct vm *vm = current_vm();
	struct thread *old;

	if (cmd != KVM_CREATE_VM && !vm)
		return;
	if (is_region(cmd))
		t.has_region = !read_user(&t.region, sizeof(t.region), (void *)arg);
	/* A vCPU thread keeps the time of its last exit across other calls. */
	old = threads.lookup(&id);
	if (old) {
		t.exit_ns = old->exit_ns;
		*old = t;
	} else {
		keep_thread(vm, id, &t);
	}
}

/* The record of a call that returned. It is sent in one place: BCC inlines everything, and each
 * send() in the text adds to the compile time. */
union kvm_record {
	struct vft_header h;
	struct vft_vcpu_created vcpu;
	struct vft_region region;
	struct vft_cap cap;
	struct vft_get_dirty_log get;
	struct vft_clear_dirty_log clear;
	struct vft_reset_dirty_rings reset;
	struct vft_clock clock;
	struct vft_vcpu_state state;
};

#define SET_RECORD(record, number, member) \
	do { \
		(record)->h.kind = number; \
		(record)->h.size = sizeof((record)->member); \
	} while (0)

static __always_inline void emit_record(struct vm *vm, union kvm_record *r)
{
	u32 size = r->h.size;

	if (!size || size > sizeof(*r))
		return;
	fill_header(&r->h, vm, r->h.kind, size);
	send(vm, r, size, NO_WAKE);
}

static __always_inline void set_clock(struct vm *vm, struct thread *t, u32 op, struct vft_clock *e)
{
	e->enter_ns = t->enter_ns;
	e->last_exit_ns = vm->last_exit_ns;
	e->op = op;
	e->ret = t->ret;
	/* struct kvm_clock_data begins with the clock. */
	if (op != VFT_CLOCK_CTRL)
		read_user(&e->clock, sizeof(e->clock), (void *)t->arg);
}

/* Keeps the size of a slot, which GET_DIRTY_LOG does not give. */
static __always_inline void keep_slot(struct vm *vm, u32 slot, u64 pages)
{
	struct slot_key key = { .vm = vm->id, .slot = slot };
	bool known = slot_pages.lookup(&key);

	if (!pages) {
		if (!slot_pages.delete(&key)) {
			__sync_fetch_and_add(&vm->nr_slots, -1);
			count_held(vm->uid, TABLE_SLOT_PAGES, -1);
		}
		return;
	}
	if (!known && (vm->nr_slots >= MAX_SLOTS || !has_room(vm->uid, TABLE_SLOT_PAGES, SLOTS))) {
		count_full(vm, TABLE_SLOT_PAGES);
		return;
	}
	if (slot_pages.update(&key, &pages)) {
		count_full(vm, TABLE_SLOT_PAGES);
	} else if (!known) {
		__sync_fetch_and_add(&vm->nr_slots, 1);
		count_held(vm->uid, TABLE_SLOT_PAGES, 1);
	}
}

static __always_inline void region_done(struct vm *vm, struct thread *t, struct vft_region *e)
{
	struct region *region = &t->region;

	e->slot = region->slot;
	e->flags = region->flags;
	e->gpa = region->gpa;
	e->size = region->bytes;
	e->uaddr = region->uaddr;
	e->ret = t->ret;
	if (t->ret)
		return;
	keep_slot(vm, region->slot, region->bytes >> PAGE_SHIFT);
	if (region->flags & KVM_MEM_LOG_DIRTY_PAGES)
		vm->logging = 1;
}

/* Reports a call that ends in the walker, after its channels were reported and its bitmap was
 * walked. */
static __always_inline void walk_done(struct vm *vm, struct thread *t)
{
	union kvm_record r = {};
	u32 cmd = REREAD(t->cmd);

	if (is_region(cmd)) {
		region_done(vm, t, &r.region);
		SET_RECORD(&r, VFT_REGION, region);
	} else if (cmd == KVM_GET_CLOCK) {
		set_clock(vm, t, VFT_CLOCK_GET, &r.clock);
		SET_RECORD(&r, VFT_CLOCK, clock);
	} else if (cmd == KVM_GET_DIRTY_LOG) {
		r.get.enter_ns = t->enter_ns;
		r.get.last_exit_ns = vm->last_exit_ns;
		r.get.bitmap_bytes = t->bitmap_bytes;
		r.get.walked_bytes = t->walked_bytes;
		r.get.slot = t->slot;
		r.get.ret = t->ret;
		r.get.pieces = t->pieces;
		r.get.read_errors = t->read_errors;
		SET_RECORD(&r, VFT_GET_DIRTY_LOG, get);
	} else if (cmd == KVM_CLEAR_DIRTY_LOG) {
		r.clear.enter_ns = t->enter_ns;
		r.clear.first_page = t->first_page;
		r.clear.num_pages = t->num_pages;
		r.clear.bitmap_bytes = t->bitmap_bytes;
		r.clear.walked_bytes = t->walked_bytes;
		r.clear.slot = t->slot;
		r.clear.ret = t->ret;
		r.clear.pieces = t->pieces;
		r.clear.read_errors = t->read_errors;
		SET_RECORD(&r, VFT_CLEAR_DIRTY_LOG, clear);
	} else {
		r.reset.enter_ns = t->enter_ns;
		r.reset.last_exit_ns = vm->last_exit_ns;
		r.reset.pushes = vm->pushes;
		r.reset.ring_full_exits = vm->ring_full_exits;
		r.reset.ret = t->ret;
		r.reset.pieces = t->pieces;
		r.reset.untracked = vm->untracked;
		SET_RECORD(&r, VFT_RESET_DIRTY_RINGS, reset);
	}
	emit_record(vm, &r);
}

static __always_inline void vm_created(s32 fd)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u32 uid = current_uid_gid();
	struct vft_vm_created e = { .fd = fd };
	u32 zero = 0;
	struct vm *vm = new_vm.lookup(&zero);
	u64 *id = next_vm_id.lookup(&zero);
	bool known = vms.lookup(&tgid);

	if (fd < 0 || !vm || !id)
		return;
	if (!known && (!has_room(uid, TABLE_VMS, VMS) || vms.insert(&tgid, vm)))
		count_untraced(uid);
	vm = vms.lookup(&tgid);
	if (!vm)
		return;
	if (!known) {
		vm->id = fetch_add(id, 1);
		vm->uid = uid;
		count_held(uid, TABLE_VMS, 1);
	}
	EMIT_WAKING(vm, VFT_VM_CREATED, &e, WAKE);
}

/* Reads the arguments of a GET or CLEAR for the walker. Returns the address of the bitmap, 0 if
 * there is nothing to walk. */
static __always_inline u64 describe_walk(struct vm *vm, struct thread *t)
{
	struct kvm_get_dirty_log_arg get = {};
	struct kvm_clear_dirty_log_arg clear = {};
	struct slot_key key = { .vm = vm->id };
	u64 *pages;

	if (t->cmd == KVM_GET_DIRTY_LOG) {
		read_user(&get, sizeof(get), (void *)t->arg);
		key.slot = get.slot;
		t->slot = get.slot;
		pages = slot_pages.lookup(&key);
		t->bitmap_bytes = pages ? bitmap_bytes(*pages) : 0;
		return t->ret ? 0 : get.bitmap;
	}
	/* KVM only reads this bitmap (kvm_clear_dirty_log_protect) and QEMU changes it after the
	 * call (kvm_log_clear_one_slot), so it still holds the request. */
	read_user(&clear, sizeof(clear), (void *)t->arg);
	t->slot = clear.slot;
	t->num_pages = clear.num_pages;
	t->first_page = clear.first_page;
	t->bitmap_bytes = bitmap_bytes(clear.num_pages);
	return t->ret ? 0 : clear.bitmap;
}

/* Prepares the walk over a bitmap of the user, or over the VM's touched chunks. */
static __always_inline void begin_walk(u64 id, struct vm *vm, struct thread *t)
{
	u64 bitmap = 0;
	struct walk *walk;

	t->pieces = t->read_errors = 0;
	t->walked_bytes = t->first_page = 0;
	if (t->cmd != KVM_RESET_DIRTY_RINGS)
		bitmap = describe_walk(vm, t);
	walk = walk_begin(id, t, bitmap);
	if (!walk)
		return;
	if (t->cmd == KVM_RESET_DIRTY_RINGS)
		begin_chunks(walk, vm);
	else if (!bitmap)
		walk->bytes = 0;
}

/* Completes the data of a region call when it returns. If its argument has changed since the entry,
 * one of the VM's records counts as lost: KVM may have read either value. */
static __always_inline void read_region(struct vm *vm, struct thread *t)
{
	struct region now = {}, *before = &t->region;

	if (read_user(&now, sizeof(now), (void *)t->arg))
		return;
	if (!t->has_region) {
		t->region = now;
	} else if (now.slot != before->slot || now.flags != before->flags ||
		   now.gpa != before->gpa || now.bytes != before->bytes ||
		   now.uaddr != before->uaddr) {
		fetch_add(&vm->seq, 1);
		count_lost(vm, EVENTS, 1);
	}
}

/* Prepares the end of a region call: the walker frees the chunks of a slot that is no longer
 * logged. The walker finds the flags in t->num_pages and the number of chunks in t->bitmap_bytes.
 */
static __always_inline void begin_region(struct vm *vm, struct thread *t)
{
	struct slot_key key = { .vm = vm->id };
	u64 *pages;

	read_region(vm, t);
	t->slot = t->region.slot;
	t->num_pages = t->region.flags;
	t->bitmap_bytes = 0;
	if (t->region.flags & KVM_MEM_LOG_DIRTY_PAGES || t->ret || !vm->nr_chunks)
		return;
	key.slot = t->region.slot;
	pages = slot_pages.lookup(&key);
	t->bitmap_bytes = pages ? chunks_of(*pages) : 0;
}

/* Whether the channels must be reported before this call: what was sent so far belongs to the round
 * that ends, or to the migration whose logging ends. The next one may use the same fd number. */
static __always_inline bool channels_due(struct thread *t)
{
	u32 cmd = t->cmd;

	if (is_region(cmd))
		return !(t->num_pages & KVM_MEM_LOG_DIRTY_PAGES);
	return cmd != KVM_CLEAR_DIRTY_LOG;
}

/* Reports a call. Returns true if the walker does so. */
static __always_inline bool kvm_exit(u64 id, struct thread *t, s32 ret)
{
	struct vm *vm = current_vm();
	union kvm_record r = {};
	struct kvm_cap_arg cap = {};
	u32 cmd = t->cmd;

	if (cmd == KVM_CREATE_VM) {
		vm_created(ret);
		return false;
	}
	if (!vm)
		return false;
	t->ret = ret;
	if (ends_in_walker(cmd)) {
		if (has_bitmap(cmd))
			begin_walk(id, vm, t);
		else if (is_region(cmd))
			begin_region(vm, t);
		return true;
	}
	switch (cmd) {
	case KVM_CREATE_VCPU:
		r.vcpu.fd = ret;
		r.vcpu.vcpu_id = t->arg;
		SET_RECORD(&r, VFT_VCPU_CREATED, vcpu);
		break;
	case KVM_ENABLE_CAP:
		read_user(&cap, sizeof(cap), (void *)t->arg);
		r.cap.cap = cap.cap;
		r.cap.ret = ret;
		r.cap.arg0 = cap.arg0;
		SET_RECORD(&r, VFT_CAP, cap);
		break;
	case KVM_SET_MP_STATE:
		r.state.ret = ret;
		SET_RECORD(&r, VFT_VCPU_STATE, state);
		break;
	default:
		set_clock(vm, t, cmd == KVM_SET_CLOCK ? VFT_CLOCK_SET : VFT_CLOCK_CTRL, &r.clock);
		SET_RECORD(&r, VFT_CLOCK, clock);
	}
	emit_record(vm, &r);
	return false;
}

static __always_inline bool is_vcpu(u32 cmd)
{
	return cmd == KVM_SET_MP_STATE || cmd == KVM_KVMCLOCK_CTRL;
}

/* Reports a call on a vCPU fd, for methods that probe vCPU fds separately. */
static __always_inline void emit_vcpu_call(u32 cmd, u64 enter_ns, s32 ret)
{
	union kvm_record r = {};
	struct vm *vm = current_vm();

	if (!vm)
		return;
	if (cmd == KVM_SET_MP_STATE) {
		r.state.ret = ret;
		SET_RECORD(&r, VFT_VCPU_STATE, state);
	} else if (cmd == KVM_KVMCLOCK_CTRL) {
		r.clock.enter_ns = enter_ns;
		r.clock.last_exit_ns = vm->last_exit_ns;
		r.clock.op = VFT_CLOCK_CTRL;
		r.clock.ret = ret;
		SET_RECORD(&r, VFT_CLOCK, clock);
	}
	emit_record(vm, &r);
}

/* Ends a call. A vCPU thread keeps its entry, which holds the time of its last exit. */
static __always_inline void call_done(u64 id, struct thread *t)
{
	t->cmd = 0;
	if (!t->exit_ns)
		forget_thread(current_vm(), id);
}
