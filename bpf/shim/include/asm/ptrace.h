/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
#ifndef VFTRACE_SHIM_PTRACE_H
#define VFTRACE_SHIM_PTRACE_H
#if defined(__x86_64__) || defined(bpf_target_x86) || !defined(__aarch64__)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax;
	unsigned long ip, cs, flags, sp, ss;
};
#else
struct user_pt_regs { __u64 regs[31], sp, pc, pstate; };
struct pt_regs { struct user_pt_regs user_regs; };
#endif
#endif
