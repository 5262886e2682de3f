/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * The mailbox between a PF's driver and its VFs (drivers/net/ethernet/intel/ixgbe/ixgbe_mbx.h,
 * igb/e1000_mbx.h). The driver runs in whatever task the interrupt hit, so the task is used only to
 * pair a call's entry with its return.
 *
 * Guests may write hostile messages, and some messages carry keys. The mailbox memory keeps the
 * words of earlier messages, and the PF drivers read all of it (ixgbe_rcv_msg_from_vf) and answer
 * from the same buffer, so a key may follow a message that has none. Therefore only as many words
 * leave the kernel as the table of the message's driver in vftrace/mailbox/ allows; of a message in
 * no table, only the first.
 */
#define MAX_FLOWS 16384
#define BURST_NS 1000000000ULL /* 1000 records at once ... */
#define RECORD_NS 1000000ULL /* ... and 1000 per second, per VF, plus the answers to them */

/* A value of `exportable_words`: the number of words of a message that may leave the kernel, and
 * flags. */
#define WORDS 0xff
#define WORDS_BY_COUNT 0x100 /* u16 hashes from word 1 on, their number in bits 23:16 of word 0 */
#define HOLDS_KEY 0x200

static long (*const read_kernel_text)(void *to, u32 size, const void *from) = (void *)115;

/* A call that has not returned, by task and function. The idle task has one number on all CPUs, so
 * the CPU's number stands for it. */
enum function {
	READ = 0,
	CHECK_FOR_RST = 1
};

struct call_in_flight {
	u64 task;
	u64 function;
};

/* Offsets that lead from a driver's `hw` to its card, from the kernel's BTF: hw->back is the
 * adapter, adapter->pdev the PCI device, whose struct device begins with the name of its kobject.
 */
struct layout {
	u64 back;
	u64 pdev;
	u64 device;
	/* virtchnl.h */
	u64 hw;
	u64 vf_base; /* in struct i40e_hw; 0: the driver's messages have the PF's own VF numbers */
	u64 vf_pf;
	u64 vf_id;
	u64 event_len;
	u64 event_buffer;
};

struct arguments {
	u64 hw;
	u64 msg;
	u32 size;
	u32 vf;
};

struct flow_key {
	u64 hw;
	u64 vf;
};

/* One VF. `key_residue`: the words that the last message with a key left in the mailbox's memory.
 * `full_until_ns`: until when the VF's records have used up the allowed rate. `unsent_*`: messages
 * beyond that rate, which the collector reports. */
struct flow {
	u64 full_until_ns;
	u64 unsent_from_vf;
	u64 unsent_to_vf;
	u64 unsent_resets;
	u32 key_in_memory;
	u32 answer_due;
	u32 reset_asked;
	u32 driver;
	u32 vf;
	u32 pad;
	char pf[VFT_PF_NAME];
	u32 key_residue[VFT_MAILBOX_WORDS];
};

BPF_TABLE("lru_hash", struct call_in_flight, struct arguments, calls_in_flight, 4096);
BPF_TABLE("hash", struct flow_key, struct flow, flows, MAX_FLOWS);
BPF_TABLE("hash", u32, u32, exportable_words, 1024);
BPF_TABLE("array", u32, struct layout, layouts, 16);

static __always_inline struct call_in_flight call_key(u64 function)
{
	u64 id = bpf_get_current_pid_tgid();
	struct call_in_flight key = { .function = function };

	key.task = id ? id : 1ULL << 63 | bpf_get_smp_processor_id();
	return key;
}

/* `hw` is the adapter itself if the driver's layout has no way back from its hw. */
static __always_inline void read_pf(char *name, u32 driver, u64 hw)
{
	struct layout *layout = layouts.lookup(&driver);
	u64 at = hw;

	if (!layout)
		return;
	if (!layout->hw)
		read_kernel(&at, sizeof(at), (void *)hw + layout->back);
	read_kernel(&at, sizeof(at), (void *)at + layout->pdev);
	read_kernel(&at, sizeof(at), (void *)at + layout->device);
	read_kernel_text(name, VFT_PF_NAME, (void *)at);
}

static __always_inline struct flow *flow_of(u32 driver, u64 hw, u32 vf)
{
	struct flow_key key = { .hw = hw, .vf = vf };
	struct flow *flow = flows.lookup(&key);

	if (!flow) {
		struct flow fresh = { .driver = driver, .vf = vf };

		read_pf(fresh.pf, driver, hw);
		flows.insert(&key, &fresh);
		flow = flows.lookup(&key);
	}
	return flow;
}

/* Returns whether the VF may send one more record now; if not, counts the message in `unsent`. The
 * answer to a recorded request (`due`) may always be sent. */
static __always_inline bool may_send(struct flow *flow, u64 now, u64 *unsent, bool due)
{
	u64 from = flow->full_until_ns > now ? flow->full_until_ns : now;

	if (from > now + BURST_NS && !due) {
		__sync_fetch_and_add(unsent, 1);
		return false;
	}
	flow->full_until_ns = from + RECORD_NS;
	return true;
}

/* Fills the header of a record that belongs to no process (tgid 0). Returns false if there is no
 * counter. */
static __always_inline bool fill_mailbox_header(struct vft_header *h, u64 now, u16 kind, u32 size)
{
	u32 zero = 0;
	u64 *seq = mailbox_seq.lookup(&zero);

	if (!seq)
		return false;
	h->at_ns = now;
	h->size = size;
	h->kind = kind;
	h->seq = fetch_add(seq, 1);
	return true;
}

static __always_inline u32 words_of(struct flow *flow, u32 rule, u32 first, u32 size)
{
	u32 words = rule & WORDS;

	if (rule & WORDS_BY_COUNT && !flow->key_in_memory)
		words = 1 + ((first >> 16 & 0xff) + 1) / 2;
	if (words > size)
		words = size;
	return words > VFT_MAILBOX_WORDS ? VFT_MAILBOX_WORDS : words;
}

/* Reads the words that may leave the kernel. A word that equals the residue of a message with a key
 * is replaced by 0: a short message that claims to be a longer one would show that memory. Masks
 * replace branches, because the verifier would follow both sides of each of thirty branches. */
static __always_inline void read_words(struct flow *flow, u64 msg, u32 rule, struct vft_mailbox *e)
{
	u32 key = rule & HOLDS_KEY ? 0xffffffff : 0;
	u32 word[VFT_MAILBOX_WORDS] = {};

	read_kernel(word, sizeof(word), (void *)msg);
#pragma unroll
	for (u32 i = 1; i < VFT_MAILBOX_WORDS; i++) {
		u32 differs = word[i] ^ flow->key_residue[i];
		u32 mine = (s32)(i - e->words) >> 31 & (s32)(differs | -differs) >> 31;

		e->word[i] = word[i] & mine;
		flow->key_residue[i] = (flow->key_residue[i] & ~key) | (word[i] & ~mine & key);
	}
	flow->key_in_memory |= key;
}

static __always_inline void emit_mailbox(u32 driver, u64 hw, u64 msg, u32 size, u32 vf,
					 u32 direction, s32 ret)
{
	struct flow *flow = flow_of(driver, hw, vf);
	struct vft_mailbox e = {};
	bool asked = direction == VFT_FROM_VF, due;
	u32 key = driver << 24 | direction << 16, *rule;
	u64 now = now_ns();

	if (!flow) {
		count_lost(NULL, EVENTS, 1);
		return;
	}
	if (!ret) {
		read_kernel(e.word, sizeof(u32), (void *)msg);
		key |= e.word[0] & 0xffff;
		rule = exportable_words.lookup(&key);
		e.words = words_of(flow, rule ? *rule : 1, e.word[0], size);
		read_words(flow, msg, rule ? *rule : 1, &e);
	}
	due = !asked && flow->answer_due;
	flow->answer_due = 0;
	if (!may_send(flow, now, asked ? &flow->unsent_from_vf : &flow->unsent_to_vf, due))
		return;
	flow->answer_due = asked;
	if (!fill_mailbox_header(&e.h, now, VFT_MAILBOX, sizeof(e)))
		return;
	__builtin_memcpy(e.pf, flow->pf, sizeof(e.pf));
	e.driver = driver;
	e.vf = vf;
	e.direction = direction;
	e.size = size;
	e.ret = ret;
	send(NULL, &e, sizeof(e), NO_WAKE);
}

static __always_inline void function_reset(u32 driver, u64 hw, u32 vf)
{
	struct flow *flow = flow_of(driver, hw, vf);
	struct vft_vf_reset e = {};
	u64 now = now_ns();

	if (!flow) {
		count_lost(NULL, EVENTS, 1);
		return;
	}
	if (!may_send(flow, now, &flow->unsent_resets, false) ||
	    !fill_mailbox_header(&e.h, now, VFT_VF_RESET, sizeof(e)))
		return;
	__builtin_memcpy(e.pf, flow->pf, sizeof(e.pf));
	e.driver = driver;
	e.vf = vf;
	send(NULL, &e, sizeof(e), NO_WAKE);
}
