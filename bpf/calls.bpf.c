/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Traces the threads of a migrating VMM while its guest is stopped: system calls by raw_syscalls,
 * times off the CPU by sched. An object of its own, attached only while a VM migrates.
 */
#define SHARES_RING
#include "common.h"
#include "thread.h"
#include "calls.h"

/* TP_PROTO(struct pt_regs *regs, long id), and (regs, long ret) (include/trace/events/syscalls.h).
 */
struct typed_syscall {
	u64 regs;
	u64 value;
};

int typed__sys_enter(struct typed_syscall *ctx)
{
	return call_enter((void *)ctx->regs, ctx->value);
}

int typed__sys_exit(struct typed_syscall *ctx)
{
	return call_exit((void *)ctx->regs, ctx->value);
}
