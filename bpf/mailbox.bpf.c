/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * The mailboxes of all drivers: one object, loaded when the first of their modules is there. The functions
 * have the same arguments in ixgbe and igb, but for a last one of igb_read_mbx.
 */
#define SECOND_OBJECT
#include "common.h"
#include "mailbox.h"

/* -- what each driver does: the words are there when its read returns ------------------------- */

static __always_inline int read_returns(u32 driver, s32 ret)
{
	struct inside key = inside_of(READ);
	struct arguments *a = insides.lookup(&key);

	if (!a)
		return 0;
	message(driver, a->hw, a->msg, a->size, a->vf, VFT_FROM_VF, ret);
	insides.delete(&key);
	return 0;
}

/* 0: it was reset. */
static __always_inline int check_for_rst_returns(u32 driver, s32 ret)
{
	struct inside key = inside_of(CHECK_FOR_RST);
	struct arguments *a = insides.lookup(&key);

	if (!a)
		return 0;
	if (ret == 0)
		function_reset(driver, a->hw, a->vf);
	insides.delete(&key);
	return 0;
}

int kp_read(struct pt_regs *ctx, u64 hw, u64 msg, u16 size, u16 vf)
{
	struct inside key = inside_of(READ);
	struct arguments a = { .hw = hw, .msg = msg, .size = size, .vf = vf };

	insides.update(&key, &a);
	return 0;
}

int kp_check_for_rst(struct pt_regs *ctx, u64 hw, u16 vf)
{
	struct inside key = inside_of(CHECK_FOR_RST);
	struct arguments a = { .hw = hw, .vf = vf };

	insides.update(&key, &a);
	return 0;
}

/* -- ixgbe ------------------------------------------------------------------------------------ */

int kr_ixgbe_read(struct pt_regs *ctx)
{
	return read_returns(VFT_IXGBE, PT_REGS_RC(ctx));
}

int kp_ixgbe_write(struct pt_regs *ctx, u64 hw, u64 msg, u16 size, u16 vf)
{
	message(VFT_IXGBE, hw, msg, size, vf, VFT_TO_VF, 0);
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
	message(VFT_IGB, hw, msg, size, vf, VFT_TO_VF, 0);
	return 0;
}

int kr_igb_check_for_rst(struct pt_regs *ctx)
{
	return check_for_rst_returns(VFT_IGB, PT_REGS_RC(ctx));
}
