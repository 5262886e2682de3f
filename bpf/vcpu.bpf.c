/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Accounts where the vCPUs of migrating VMs spend their time. An object of its own, attached only
 * while a VM migrates. All are raw tracepoints; most read nothing but the thread that they
 * run in.
 */
#define SHARES_RING
#include "common.h"
#include "thread.h"
#include "vcpu.h"

int raw_guest_enter(void *ctx)
{
	return guest_enter();
}

int raw_guest_exit(void *ctx)
{
	return guest_exit();
}

int raw_userspace_exit(void *ctx)
{
	return leave_kvm();
}

/* TP_PROTO(int load) (arch/x86/kvm/trace.h). */
int raw_fpu(struct raw_fpu *ctx)
{
	return (u32)ctx->load ? enter_kvm() : 0;
}

int raw_kernel_fault(void *ctx)
{
	return kernel_fault();
}

int raw_page_fault(void *ctx)
{
	return page_fault();
}

/* arm64's name of kvm_page_fault. */
int raw_guest_fault(void *ctx)
{
	return page_fault();
}

/* The CPU's buffer of dirty pages is full (x86). */
int raw_pml_full(void *ctx)
{
	return page_fault();
}

/* The end of a halt, which may have been polled without sleeping. */
int raw_halted(void *ctx)
{
	exit_is(VFT_VCPU_IDLE);
	return 0;
}

int raw_ring_exit(void *ctx)
{
	return ring_exit();
}
