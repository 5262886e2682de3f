/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Where the time of each vCPU thread of a VM that migrates goes: in the guest, in KVM, in the VMM,
 * asleep, or waiting for a CPU. Nothing is sent: the collector reads the totals from `vcpus`.
 *
 * A thread is in one state at a time. Each event ends a state and books its time, so that the sum
 * of `ns` is always since_ns - begun_ns. If it is not, the collector has read the entry while it
 * changed, and reads it again.
 */
#define KVM_RUN 0xae80

#define AT_ONCE_NS 20000

#define TASK_STATES 0xff /* prev_state without TASK_REPORT_MAX: preempted */
#define TASK_INTERRUPTIBLE 1
#define TASK_STOPPED_OR_TRACED 0xc

/* Powers of two, so that a mask bounds an index for the verifier. */
#define STATES 16
#define WAITS 32

struct vcpu {
	u64 begun_ns;
	u64 since_ns; /* of the state it is in */
	u64 exit_ns; /* the latest exit from the guest */
	u64 touched_ns; /* since when it sleeps for a page that KVM itself touched */
	u64 ns[STATES];
	u64 exits;
	u64 faults;
	u64 ring_full;
	u64 waits; /* faults in which the thread slept */
	u64 wait_ns;
	u64 longest_wait_ns;
	u64 held_from_ns; /* the latest time that the VMM held it */
	u64 held_until_ns; /* 0: it lasts */
	u32 wait[WAITS];
	u32 tgid;
	u32 state;
	u32 back; /* its state when it has a CPU again */
	u32 held_state;
	u8 asleep;
	u8 slept; /* since the latest exit from the guest */
	u8 ring; /* the latest exit was for a full dirty ring */
	u8 touched; /* KVM itself took a page fault since then */
	u8 off; /* it has no CPU */
	u8 pad[3];
};

struct watched_vm {
	u32 refused; /* vCPUs for which there was no room */
	u32 pad;
};

struct raw_fpu {
	u64 load;
};

AS_BYTES(vcpu);
BPF_TABLE("hash", u32, struct vcpu_bytes, vcpus, 16384);
/* By process. The collector makes and deletes the entries. */
BPF_TABLE("hash", u32, struct watched_vm, watched_vms, 1024);
BPF_TABLE("array", u32, struct vcpu_bytes, new_vcpu, 1);

static void *(*const current_task_btf)(void) = (void *)158;
static void *(*const task_pt_regs)(void *task) = (void *)175;

static __always_inline struct vcpu *vcpu_of(u32 tid)
{
	return (struct vcpu *)vcpus.lookup(&tid);
}

/* Ends the state that the thread is in. */
static __always_inline void move_to(struct vcpu *v, u32 state, u64 now)
{
	if (now > v->since_ns) {
		v->ns[v->state & (STATES - 1)] += now - v->since_ns;
		v->since_ns = now;
	}
	v->state = state;
}

/* Adds a vCPU that the collector did not know when the tracing began. */
static __always_inline struct vcpu *meet(u32 tid, u32 tgid, u64 now)
{
	u32 zero = 0;
	struct vcpu_bytes *fresh;
	struct vcpu *v;
	struct watched_vm *vm = watched_vms.lookup(&tgid);

	if (!vm)
		return NULL;
	fresh = new_vcpu.lookup(&zero);
	if (!fresh)
		return NULL;
	vcpus.insert(&tid, fresh);
	v = vcpu_of(tid);
	if (!v) {
		__sync_fetch_and_add(&vm->refused, 1);
		return NULL;
	}
	v->tgid = tgid;
	v->begun_ns = v->since_ns = now;
	v->state = VFT_VCPU_EXIT;
	return v;
}

/* Returns the exponent of the least power of two, in us, that is longer than a wait. */
static __always_inline u32 bucket_of(u64 ns)
{
	u64 us = ns / 1000;
	u32 bucket = 0;

	if (us >> 16) {
		bucket += 16;
		us >>= 16;
	}
	if (us >> 8) {
		bucket += 8;
		us >>= 8;
	}
	if (us >> 4) {
		bucket += 4;
		us >>= 4;
	}
	if (us >> 2) {
		bucket += 2;
		us >>= 2;
	}
	if (us >> 1) {
		bucket += 1;
		us >>= 1;
	}
	bucket += us;
	return bucket < VFT_VCPU_WAITS ? bucket : VFT_VCPU_WAITS - 1;
}

static __always_inline void count_wait(struct vcpu *v, u64 ns)
{
	u32 bucket = bucket_of(ns);

	v->waits++;
	v->wait_ns += ns;
	if (ns > v->longest_wait_ns)
		v->longest_wait_ns = ns;
	v->wait[bucket & (WAITS - 1)]++;
}

static __always_inline int guest_enter(void)
{
	u64 id = bpf_get_current_pid_tgid(), now = now_ns();
	u32 tid = (u32)id;
	struct vcpu *v = vcpu_of(tid);

	if (!v) {
		v = meet(tid, id >> 32, now);
		if (!v)
			return 0;
	}
	if (v->slept && v->state == VFT_VCPU_FAULT)
		count_wait(v, now - v->exit_ns);
	move_to(v, VFT_VCPU_GUEST, now);
	v->slept = v->ring = 0;
	return 0;
}

static __always_inline int guest_exit(void)
{
	struct vcpu *v = vcpu_of((u32)bpf_get_current_pid_tgid());
	u64 now;

	if (!v)
		return 0;
	now = now_ns();
	/* KVM enters the guest again after some exits without a further kvm_entry
	 * (EXIT_FASTPATH_REENTER_GUEST in arch/x86/kvm/x86.c, before 6.10). */
	v->state = VFT_VCPU_GUEST;
	move_to(v, VFT_VCPU_EXIT, now);
	v->exit_ns = now;
	v->exits++;
	v->touched = 0;
	return 0;
}

/* What the latest exit was for. Its time is booked when the state ends. */
static __always_inline struct vcpu *exit_is(u32 state)
{
	struct vcpu *v = vcpu_of((u32)bpf_get_current_pid_tgid());

	if (v && v->state == VFT_VCPU_EXIT)
		v->state = state;
	return v;
}

static __always_inline int page_fault(void)
{
	struct vcpu *v = exit_is(VFT_VCPU_FAULT);

	if (v)
		v->faults++;
	return 0;
}

static __always_inline int ring_exit(void)
{
	struct vcpu *v = vcpu_of((u32)bpf_get_current_pid_tgid());

	if (!v)
		return 0;
	v->ring = 1;
	v->ring_full++;
	/* The ring is full still: KVM_RUN ends at once. */
	if (v->state == VFT_VCPU_EXIT && now_ns() - v->since_ns < AT_ONCE_NS)
		v->state = VFT_VCPU_RING;
	return 0;
}

/* The beginning of KVM_RUN (x86): KVM loads the guest's FPU registers. What it runs by emulation,
 * as a guest in real mode, has no kvm_entry. */
static __always_inline int enter_kvm(void)
{
	u64 id = bpf_get_current_pid_tgid(), now = now_ns();
	u32 tid = (u32)id;
	struct vcpu *v = vcpu_of(tid);

	if (!v)
		v = meet(tid, id >> 32, now);
	if (!v)
		return 0;
	move_to(v, VFT_VCPU_EXIT, now);
	v->ring = v->touched = v->off = 0;
	return 0;
}

/* KVM itself takes a page fault: where the page has to come from the source, it sleeps. */
static __always_inline int kernel_fault(void)
{
	struct vcpu *v = vcpu_of((u32)bpf_get_current_pid_tgid());

	if (v && v->state == VFT_VCPU_EXIT)
		v->touched = 1;
	return 0;
}

/* The end of KVM_RUN. */
static __always_inline int leave_kvm(void)
{
	struct vcpu *v = vcpu_of((u32)bpf_get_current_pid_tgid());

	if (v)
		move_to(v, v->ring ? VFT_VCPU_RING : VFT_VCPU_USER, now_ns());
	return 0;
}

/* Why a thread sleeps outside of KVM_RUN: by the system call that it is in. QEMU's throttle waits
 * on a condition with a timeout, or sleeps where less than a millisecond is left
 * (softmmu/cpu-throttle.c); a vCPU that is stopped, and a lock, are waited for without one. After
 * an exit for a full dirty ring a sleep is the dirty limit's (softmmu/dirtylimit.c). */
static __always_inline u32 outside(struct vcpu *v)
{
	void *regs = task_pt_regs(current_task_btf());
	u32 nr;

	if (!regs)
		return VFT_VCPU_USER;
	nr = register_at(regs, NUMBER_OFFSET);
	if (nr == SYS_FUTEX)
		return register_at(regs, FOURTH_ARGUMENT_OFFSET) ? VFT_VCPU_THROTTLE
								 : VFT_VCPU_STOPPED;
	if (nr == SYS_NANOSLEEP || nr == SYS_CLOCK_NANOSLEEP)
		return v->ring ? VFT_VCPU_LIMIT : VFT_VCPU_THROTTLE;
	if (nr == SYS_IOCTL && (u32)register_at(regs, SECOND_ARGUMENT_OFFSET) == KVM_RUN)
		return VFT_VCPU_IDLE;
	return v->ring ? VFT_VCPU_RING : VFT_VCPU_USER;
}

/* sched_switch runs in the thread that leaves its CPU. */
static __always_inline void switch_out(u32 tid, u64 state)
{
	struct vcpu *v = vcpu_of(tid);
	u32 where;
	u64 now;

	if (!v)
		return;
	now = now_ns();
	/* If the vCPU is off its CPU already, an event was missed: it had a CPU in between. */
	if (v->off)
		v->state = v->back;
	v->back = v->state;
	v->off = 1;
	if (!(state & TASK_STATES)) {
		move_to(v, VFT_VCPU_QUEUE, now);
		return;
	}
	v->asleep = v->slept = 1;
	if (v->state == VFT_VCPU_FAULT || v->state == VFT_VCPU_GUEST)
		return;
	if (v->state == VFT_VCPU_EXIT || v->state == VFT_VCPU_IDLE) {
		if (v->touched) {
			move_to(v, VFT_VCPU_FAULT, now);
			v->touched_ns = now;
		} else if (state & TASK_INTERRUPTIBLE)
			/* The state also covers the time before, in which a halted vCPU polls. */
			v->state = VFT_VCPU_IDLE;
		return;
	}
	where = state & TASK_STOPPED_OR_TRACED ? VFT_VCPU_STOPPED : outside(v);
	move_to(v, where, now);
	if (where == VFT_VCPU_THROTTLE || where == VFT_VCPU_LIMIT) {
		v->held_from_ns = now;
		v->held_until_ns = 0;
		v->held_state = where;
	}
}

static __always_inline int woken(u32 tid)
{
	struct vcpu *v = vcpu_of(tid);
	u64 now;

	if (!v || !v->asleep)
		return 0;
	now = now_ns();
	v->asleep = 0;
	if (v->state == VFT_VCPU_THROTTLE || v->state == VFT_VCPU_LIMIT)
		v->held_until_ns = now;
	move_to(v, VFT_VCPU_QUEUE, now);
	return 0;
}

static __always_inline void switch_in(u32 tid)
{
	struct vcpu *v = vcpu_of(tid);

	u64 now;

	if (!v)
		return;
	now = now_ns();
	if (!v->off) {
		/* It waited for a CPU when it was first seen, or an event was missed. */
		u32 state = v->state;

		v->state = VFT_VCPU_QUEUE;
		move_to(v, state, now);
		return;
	}
	v->off = v->asleep = 0;
	move_to(v, v->back, now);
	if (v->touched && v->touched_ns) {
		count_wait(v, now - v->touched_ns);
		v->faults++;
		v->touched = 0;
	}
	v->touched_ns = 0;
}
