/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * What the threads of a migrating VMM do while its guest stands still: an object of its own,
 * attached only while one migrates. System calls by raw_syscalls, times off the CPU by sched.
 */
#define SHARES_RING
#include "common.h"
#include "calls.h"

/* TP_PROTO(struct pt_regs *regs, long id), and (regs, long ret) (include/trace/events/syscalls.h).
 */
int raw_call_enter(struct raw_syscall *ctx)
{
	return call_enter((void *)ctx->regs, ctx->value);
}

int raw_call_exit(struct raw_syscall *ctx)
{
	return call_exit((void *)ctx->regs, ctx->value);
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
