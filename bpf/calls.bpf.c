/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * What the threads of a migrating VMM do while its guest stands still: an object of its own,
 * attached only while one migrates. System calls by raw_syscalls, times off the CPU by sched.
 */
#define SHARES_RING
#include "common.h"
#include "calls.h"

int tp_call_enter(struct syscall_enter *ctx)
{
	return call_enter(ctx);
}

int tp_call_exit(struct syscall_exit *ctx)
{
	return call_exit(ctx->nr, ctx->ret);
}

int tp_switch(struct sched_switch *ctx)
{
	switch_out(ctx->prev_pid, ctx->prev_state);
	switch_in(ctx->next_pid);
	return 0;
}

int tp_wakeup(struct sched_wakeup *ctx)
{
	return woken(ctx->pid);
}
