/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * One driver's mailbox: an object of its own for each (-DDRIVER), loaded when its module is there. The
 * functions have the same arguments in ixgbe and igb, but for a last one of igb_read_mbx.
 */
#define SECOND_OBJECT
#include "common.h"
#include "mailbox.h"

enum function { READ = 0, CHECK_FOR_RST = 1 };

int kp_read(struct pt_regs *ctx, u64 hw, u64 msg, u16 size, u16 vf)
{
	struct inside key = inside_of(READ);
	struct arguments a = { .hw = hw, .msg = msg, .size = size, .vf = vf };

	insides.update(&key, &a);
	return 0;
}

/* The words are there when the function returns. */
int kr_read(struct pt_regs *ctx)
{
	struct inside key = inside_of(READ);
	struct arguments *a = insides.lookup(&key);

	if (!a)
		return 0;
	message(a->hw, a->msg, a->size, a->vf, VFT_FROM_VF, PT_REGS_RC(ctx));
	insides.delete(&key);
	return 0;
}

int kp_write(struct pt_regs *ctx, u64 hw, u64 msg, u16 size, u16 vf)
{
	message(hw, msg, size, vf, VFT_TO_VF, 0);
	return 0;
}

int kp_check_for_rst(struct pt_regs *ctx, u64 hw, u16 vf)
{
	struct inside key = inside_of(CHECK_FOR_RST);
	struct arguments a = { .hw = hw, .vf = vf };

	insides.update(&key, &a);
	return 0;
}

/* 0: it was reset. */
int kr_check_for_rst(struct pt_regs *ctx)
{
	struct inside key = inside_of(CHECK_FOR_RST);
	struct arguments *a = insides.lookup(&key);

	if (!a)
		return 0;
	if ((s32)PT_REGS_RC(ctx) == 0)
		function_reset(a->hw, a->vf);
	insides.delete(&key);
	return 0;
}
