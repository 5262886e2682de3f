/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * virtchnl, the mailbox of i40e and ice (include/linux/avf/virtchnl.h). A message is an opcode, a
 * status and up to 4 KiB of bytes. The PF driver handles it in a kworker, so neither task nor time
 * of the VF is known.
 *
 * RSS keys, raw packets and, with vendors' drivers, cipher keys pass here, and the drivers use one
 * buffer for all VFs without clearing it. Therefore only as many bytes leave the kernel as the
 * driver's table allows, and never bytes behind the message's length; of an opcode in no table,
 * none.
 */
#define VIRTCHNL_OP_RESET_VF 2

enum virtchnl_function {
	SEND = 2,
	RESET_FUNCTION = 3
};

/* A message that is being sent to a VF, until the driver's function returns. */
struct sending {
	struct vft_virtchnl e;
};

struct resetting {
	u64 vf;
	u64 pad;
};

BPF_TABLE("lru_hash", struct call_in_flight, struct sending, sends_in_flight, 1024);
BPF_TABLE("lru_hash", struct call_in_flight, struct resetting, resets_in_flight, 1024);

static __always_inline void read_virtchnl(struct vft_virtchnl *e, u64 msg)
{
	u32 key = e->driver << 24 | e->direction << 16 | (e->opcode & 0xffff);
	u32 *rule = exportable_words.lookup(&key);
	u64 bytes = rule && e->opcode < 0x10000 ? *rule : 0;

	if (bytes > e->size)
		bytes = e->size;
	/* The compiler must not know the bound, or it leaves out the check that the verifier needs.
	 */
	asm volatile("" : "+r"(bytes));
	if (bytes > sizeof(e->word))
		return;
	e->bytes = bytes;
	read_kernel(e->word, bytes, (void *)msg);
}

static __always_inline void emit_virtchnl(u64 pf, struct vft_virtchnl *e)
{
	struct flow *flow = flow_of(e->driver, pf, e->vf);
	bool asked = e->direction == VFT_FROM_VF, due;
	u64 now = now_ns();

	if (!flow) {
		count_lost(NULL, EVENTS, 1);
		return;
	}
	if (asked)
		flow->reset_asked = e->opcode == VIRTCHNL_OP_RESET_VF;
	due = !asked && flow->answer_due;
	flow->answer_due = 0;
	if (!may_send(flow, now, asked ? &flow->unsent_from_vf : &flow->unsent_to_vf, due))
		return;
	flow->answer_due = asked;
	if (!fill_mailbox_header(&e->h, now, VFT_VIRTCHNL, sizeof(*e)))
		return;
	__builtin_memcpy(e->pf, flow->pf, sizeof(e->pf));
	send(NULL, e, sizeof(*e), NO_WAKE);
}

/* i40e numbers the VFs of messages over the whole card. */
static __always_inline u32 own_vf(struct layout *layout, u64 pf, u32 vf)
{
	u32 base = 0;

	if (layout->vf_base)
		read_kernel(&base, sizeof(base), (void *)pf + layout->hw + layout->vf_base);
	return vf - base;
}

static __always_inline int request(u32 driver, u64 pf, u32 vf, u32 opcode, u64 msg, u32 size)
{
	struct layout *layout = layouts.lookup(&driver);
	struct vft_virtchnl e = {
		.driver = driver, .direction = VFT_FROM_VF, .opcode = opcode, .size = size
	};

	if (!layout)
		return 0;
	e.vf = own_vf(layout, pf, vf);
	read_virtchnl(&e, msg);
	emit_virtchnl(pf, &e);
	return 0;
}

/* struct ice_rq_event_info: the descriptor comes first. Its layout is the hardware's. */
static __always_inline int request_event(u32 driver, u64 pf, u64 event)
{
	struct layout *layout = layouts.lookup(&driver);
	u32 opcode = 0;
	u16 vf = 0, size = 0;
	u64 msg = 0;

	if (!layout)
		return 0;
	read_kernel(&vf, sizeof(vf), (void *)event + 6); /* retval */
	read_kernel(&opcode, sizeof(opcode), (void *)event + 8); /* cookie_high */
	read_kernel(&size, sizeof(size), (void *)event + layout->event_len);
	read_kernel(&msg, sizeof(msg), (void *)event + layout->event_buffer);
	return request(driver, pf, vf, opcode, msg, size);
}

static __always_inline int send_enters(u32 driver, u64 hw, u32 vf, u32 opcode, s32 status, u64 msg,
				       u32 size)
{
	struct call_in_flight key = call_key(SEND);
	struct layout *layout = layouts.lookup(&driver);
	struct sending s = {};

	if (!layout)
		return 0;
	s.e.driver = driver;
	s.e.direction = VFT_TO_VF;
	s.e.opcode = opcode;
	s.e.status = status;
	s.e.size = size;
	s.e.vf = own_vf(layout, hw - layout->hw, vf);
	read_virtchnl(&s.e, msg);
	/* Until it returns, the header's time is the card. */
	s.e.h.at_ns = hw - layout->hw;
	sends_in_flight.update(&key, &s);
	return 0;
}

static __always_inline int send_returns(s32 ret)
{
	struct call_in_flight key = call_key(SEND);
	struct sending *s = sends_in_flight.lookup(&key);
	struct vft_virtchnl e;

	if (!s)
		return 0;
	__builtin_memcpy(&e, &s->e, sizeof(e));
	sends_in_flight.delete(&key);
	e.ret = ret;
	emit_virtchnl(e.h.at_ns, &e);
	return 0;
}

static __always_inline int reset_enters(u64 vf)
{
	struct call_in_flight key = call_key(RESET_FUNCTION);
	struct resetting r = { .vf = vf };

	resets_in_flight.update(&key, &r);
	return 0;
}

/* Reports a reset that was not requested by a RESET_VF message of the VF. */
static __always_inline int reset_returns(u32 driver, bool was_reset)
{
	struct call_in_flight key = call_key(RESET_FUNCTION);
	struct resetting *r = resets_in_flight.lookup(&key);
	struct layout *layout = layouts.lookup(&driver);
	struct flow *flow;
	u64 pf = 0, vf;
	u16 id = 0;

	if (!r || !layout)
		return 0;
	vf = r->vf;
	resets_in_flight.delete(&key);
	if (!was_reset)
		return 0;
	read_kernel(&pf, sizeof(pf), (void *)vf + layout->vf_pf);
	read_kernel(&id, sizeof(id), (void *)vf + layout->vf_id);
	flow = flow_of(driver, pf, id);
	if (flow && flow->reset_asked) {
		flow->reset_asked = 0;
		return 0;
	}
	function_reset(driver, pf, id);
	return 0;
}
