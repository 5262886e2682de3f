/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Behind mailbox.bpf.c: a call of getpgid(2) is a request of a VF, and the card's answer to it. The words are
 * the kernel's memory here as they are there.
 */
BPF_TABLE("array", u32, struct vft_mailbox, said, 2);	/* of which only `word` is used: the request, the answer */
BPF_TABLE("array", u32, u64, flooder, 1);		/* the process whose calls count */
BPF_TABLE("array", u32, u64, requests, 1);

int flood(struct syscall_enter *ctx)
{
	u32 zero = 0, one = 1;
	struct vft_mailbox *request = said.lookup(&zero), *answer = said.lookup(&one);
	u64 *pid = flooder.lookup(&zero), *count = requests.lookup(&zero);
	u32 vf = ctx->args[0];

	if (!request || !answer || !pid || !count || bpf_get_current_pid_tgid() >> 32 != *pid)
		return 0;
	__sync_fetch_and_add(count, 1);
	emit_mailbox(VFT_IXGBE, 1, (u64)request->word, 2, vf, VFT_FROM_VF, 0);
	emit_mailbox(VFT_IXGBE, 1, (u64)answer->word, 2, vf, VFT_TO_VF, 0);
	return 0;
}
