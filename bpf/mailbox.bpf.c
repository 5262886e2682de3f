/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * Entry points of the mailbox probes of all PF drivers. The object is loaded when the first of the
 * drivers' modules is loaded. The functions have the same arguments in ixgbe and igb, except for an
 * additional last argument of igb_read_mbx.
 */
#define SHARES_RING
#include "common.h"
#include "mailbox.h"

/* -- common to all drivers: the words of a message are valid when the driver's read returns -- */

static __always_inline int read_returns(u32 driver, s32 ret)
{
	struct call_in_flight key = call_key(READ);
	struct arguments *a = calls_in_flight.lookup(&key);

	if (!a)
		return 0;
	emit_mailbox(driver, a->hw, a->msg, a->size, a->vf, VFT_FROM_VF, ret);
	calls_in_flight.delete(&key);
	return 0;
}

/* The driver's function returns 0 if the VF was reset. */
static __always_inline int check_for_rst_returns(u32 driver, s32 ret)
{
	struct call_in_flight key = call_key(CHECK_FOR_RST);
	struct arguments *a = calls_in_flight.lookup(&key);

	if (!a)
		return 0;
	if (ret == 0)
		function_reset(driver, a->hw, a->vf);
	calls_in_flight.delete(&key);
	return 0;
}

int kp_read(struct pt_regs *ctx, u64 hw, u64 msg, u16 size, u16 vf)
{
	struct call_in_flight key = call_key(READ);
	struct arguments a = { .hw = hw, .msg = msg, .size = size, .vf = vf };

	calls_in_flight.update(&key, &a);
	return 0;
}

int kp_check_for_rst(struct pt_regs *ctx, u64 hw, u16 vf)
{
	struct call_in_flight key = call_key(CHECK_FOR_RST);
	struct arguments a = { .hw = hw, .vf = vf };

	calls_in_flight.update(&key, &a);
	return 0;
}

/* -- ixgbe ------------------------------------------------------------------------------------ */

int kr_ixgbe_read(struct pt_regs *ctx)
{
	return read_returns(VFT_IXGBE, PT_REGS_RC(ctx));
}

int kp_ixgbe_write(struct pt_regs *ctx, u64 hw, u64 msg, u16 size, u16 vf)
{
	emit_mailbox(VFT_IXGBE, hw, msg, size, vf, VFT_TO_VF, 0);
	return 0;
}

int kr_ixgbe_check_for_rst(struct pt_regs *ctx)
{
	return check_for_rst_returns(VFT_IXGBE, PT_REGS_RC(ctx));
}

/* -- igb -------------------------------------------------------------------------------------- */

int kr_igb_read(struct pt_regs *ctx)
{
	return read_returns(VFT_IGB, PT_REGS_RC(ctx));
}

int kp_igb_write(struct pt_regs *ctx, u64 hw, u64 msg, u16 size, u16 vf)
{
	emit_mailbox(VFT_IGB, hw, msg, size, vf, VFT_TO_VF, 0);
	return 0;
}

int kr_igb_check_for_rst(struct pt_regs *ctx)
{
	return check_for_rst_returns(VFT_IGB, PT_REGS_RC(ctx));
}
