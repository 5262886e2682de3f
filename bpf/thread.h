/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * What the objects of calls and of vCPUs share: threads, their registers, and the programs at
 * sched's raw tracepoints. Those are not skipped while another program runs on the CPU, as records
 * of tracepoints are (trace_call_bpf): a wake-up often comes by an interrupt of one.
 *
 * The object defines what is done when a thread leaves its CPU, gets one, and wakes up.
 */
static __always_inline void switch_out(u32 tid, u64 state);
static __always_inline void switch_in(u32 tid);
static __always_inline int woken(u32 tid);

struct typed_switch {
	u64 preempt;
	u64 prev;
	u64 next;
	u64 prev_state;
};

struct typed_wakeup {
	u64 task;
};

/* Inlined by the verifier. */
static u64 (*const jiffies)(void) = (void *)118;

/* Load from a pointer whose type the verifier knows: the arguments of a program that is loaded for
 * one tracepoint (BPF_TRACE_RAW_TP) have types. It takes a tenth of the time of read_kernel(). In
 * C, BCC would make that call of it. */
#define typed_u64(pointer, offset) \
	({ \
		u64 value_; \
		asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(value_) : "r"(pointer), "i"(offset)); \
		value_; \
	})

static __always_inline u32 pid_of(void *task)
{
	u32 pid;

	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(pid) : "r"(task), "i"(TASK_PID_OFFSET));
	return pid;
}

static __always_inline u64 register_at(void *regs, u32 offset)
{
	u64 value = 0;

	read_kernel(&value, sizeof(value), regs + offset);
	return value;
}

/* TP_PROTO(bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int
 * prev_state), and (struct task_struct *p) (include/trace/events/sched.h). prev_state is there
 * since 5.18.
 */
int typed__sched_switch(struct typed_switch *ctx)
{
	switch_out(pid_of((void *)ctx->prev), ctx->preempt ? 0 : ctx->prev_state);
	switch_in(pid_of((void *)ctx->next));
	return 0;
}

int typed__sched_wakeup(struct typed_wakeup *ctx)
{
	return woken(pid_of((void *)ctx->task));
}
