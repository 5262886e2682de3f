/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Entry points of the mailbox probes of all PF drivers. The object is loaded when the first of the
 * drivers' modules is loaded. The functions have the same arguments in ixgbe and igb, except for an
 * additional last argument of igb_read_mbx.
 */
#define SHARES_RING
#include "common.h"
#include "mailbox.h"
#include "virtchnl.h"

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

/* -- one line for each driver ----------------------------------------------------------------- */

/* The programs of a driver whose functions are NAME_read_mbx, NAME_write_mbx and
 * NAME_check_for_rst: they know which driver they were attached to. */
#define WORD_MAILBOX(name, driver) \
	int kr_##name##_read(struct pt_regs *ctx) \
	{ \
		return read_returns(driver, PT_REGS_RC(ctx)); \
	} \
	int kp_##name##_write(struct pt_regs *ctx) \
	{ \
		emit_mailbox(driver, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), \
			     (u16)PT_REGS_PARM3(ctx), (u16)PT_REGS_PARM4(ctx), VFT_TO_VF, 0); \
		return 0; \
	} \
	int kr_##name##_check_for_rst(struct pt_regs *ctx) \
	{ \
		return check_for_rst_returns(driver, PT_REGS_RC(ctx)); \
	}

WORD_MAILBOX(ixgbe, VFT_IXGBE)
WORD_MAILBOX(igb, VFT_IGB)

/* The programs of a driver that speaks virtchnl. `was_reset` reads what NAME_reset_vf returned. */
#define VIRTCHNL_MAILBOX(name, driver, was_reset) \
	int kp_##name##_send(struct pt_regs *ctx) \
	{ \
		return send_enters(driver, PT_REGS_PARM1(ctx), (u16)PT_REGS_PARM2(ctx), \
				   PT_REGS_PARM3(ctx), PT_REGS_PARM4(ctx), PT_REGS_PARM5(ctx), \
				   (u16)PT_REGS_PARM6(ctx)); \
	} \
	int kr_##name##_reset(struct pt_regs *ctx) \
	{ \
		return reset_returns(driver, was_reset(PT_REGS_RC(ctx))); \
	}

int kr_send(struct pt_regs *ctx)
{
	return send_returns(PT_REGS_RC(ctx));
}

int kp_reset(struct pt_regs *ctx)
{
	return reset_enters(PT_REGS_PARM1(ctx));
}

int kp_i40e_request(struct pt_regs *ctx)
{
	return request(VFT_I40E, PT_REGS_PARM1(ctx), (u16)PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx),
		       PT_REGS_PARM5(ctx), (u16)PT_REGS_PARM6(ctx));
}

int kp_ice_request(struct pt_regs *ctx)
{
	return request_event(VFT_ICE, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx));
}

#define RETURNS_TRUE(ret) ((ret) & 0xff)
#define RETURNS_ZERO(ret) (!(s32)(ret))

VIRTCHNL_MAILBOX(i40e, VFT_I40E, RETURNS_TRUE)
VIRTCHNL_MAILBOX(ice, VFT_ICE, RETURNS_ZERO)
