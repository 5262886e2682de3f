/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Behind mailbox.bpf.c: a call of getpgid(2) is a request of a VF, and the card's answer to it. The words are
 * the kernel's memory here as they are there.
 */
#define ENABLE_QUEUES 8					/* of virtchnl */
#define BYTES 12					/* of its message */

BPF_TABLE("array", u32, struct vft_mailbox, said, 2);	/* of which only `word` is used: the request, the answer */
BPF_TABLE("array", u32, u64, flooder, 1);		/* the process whose calls count */
BPF_TABLE("array", u32, u64, requests, 1);

/* Returns the request that this call is, NULL if it is another process's. */
static __always_inline struct vft_mailbox *asked(void)
{
	u32 zero = 0;
	u64 *pid = flooder.lookup(&zero), *count = requests.lookup(&zero);

	if (!pid || !count || bpf_get_current_pid_tgid() >> 32 != *pid)
		return NULL;
	__sync_fetch_and_add(count, 1);
	return said.lookup(&zero);
}

int flood_words(struct syscall_enter *ctx)
{
	u32 one = 1, vf = ctx->args[0];
	struct vft_mailbox *request = asked(), *answer = said.lookup(&one);

	if (!request || !answer)
		return 0;
	emit_mailbox(VFT_IXGBE, 1, (u64)request->word, 2, vf, VFT_FROM_VF, 0);
	emit_mailbox(VFT_IXGBE, 1, (u64)answer->word, 2, vf, VFT_TO_VF, 0);
	return 0;
}

/* As the programs on i40e's functions do it. */
int flood_virtchnl(struct syscall_enter *ctx)
{
	u32 vf = ctx->args[0];
	struct vft_mailbox *message = asked();

	if (!message)
		return 0;
	request(VFT_I40E, 1, vf, ENABLE_QUEUES, (u64)message->word, BYTES);
	send_enters(VFT_I40E, 1, vf, ENABLE_QUEUES, 0, 0, 0);
	return send_returns(0);
}
