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

struct raw_switch {
	u64 preempt;
	u64 prev;
	u64 next;
	u64 prev_state;
};

struct raw_wakeup {
	u64 task;
};

static __always_inline u32 pid_of(void *task)
{
	u32 pid = 0;

	read_kernel(&pid, sizeof(pid), task + TASK_PID_OFFSET);
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
int raw_switch(struct raw_switch *ctx)
{
	switch_out(pid_of((void *)ctx->prev), ctx->preempt ? 0 : ctx->prev_state);
	switch_in(pid_of((void *)ctx->next));
	return 0;
}

int raw_wakeup(struct raw_wakeup *ctx)
{
	return woken(pid_of((void *)ctx->task));
}
