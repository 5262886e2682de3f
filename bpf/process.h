/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * The end of a process. sched:sched_process_exit fires for each thread; the process ends with its
 * last thread. Since 6.16 the tracepoint has a field for that (group_dead, kernel commit 2fe3e78ab,
 * at GROUP_DEAD_OFFSET). On older kernels signal->live is read, which do_exit() has already
 * decremented, at the offsets that BTF gives.
 */
static __always_inline bool group_dead(void *ctx)
{
#ifdef GROUP_DEAD_OFFSET
	u8 dead = 0;

	read_kernel(&dead, sizeof(dead), ctx + GROUP_DEAD_OFFSET);
	return dead;
#elif defined(TASK_SIGNAL_OFFSET)
	void *task = (void *)bpf_get_current_task(), *signal = NULL;
	s32 live = 1;

	read_kernel(&signal, sizeof(signal), task + TASK_SIGNAL_OFFSET);
	read_kernel(&live, sizeof(live), signal + SIGNAL_LIVE_OFFSET);
	return live == 0;
#else
	return false;
#endif
}

int tp_process_exit(void *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	struct vft_thread_exit thread = {};
	struct vft_exit e = {};
	struct vm *vm = current_vm();
	u32 tgid = id >> 32;

	if (!vm)
		return 0;
	forget_thread(vm, id);
	forget_sending(vm, id);
	walks.delete(&id);
	report_channels(vm);
	if (!group_dead(ctx)) {
		/* A migration thread ends with its migration (QEMU migration/migration.c,
		 * migrate_fd_cleanup): its last bytes have been reported now. */
		if (vm->logging)
			EMIT(vm, VFT_THREAD_EXIT, &thread);
		return 0;
	}
	if (vm->not_counted) {
		/* The gap in the sequence marks the VM as incomplete. */
		fetch_add(&vm->seq, 1);
		count_lost(vm, EVENTS, 1);
	}
	e.last_exit_ns = vm->last_exit_ns;
	e.lost = vm->lost;
	e.bulk_lost = vm->bulk_lost;
	fill_header(&e.h, vm, VFT_EXIT, sizeof(e));
	/* `vm` NULL: this record is sent even if the VM has used up its share. */
	send(NULL, &e, sizeof(e), NO_WAKE);
	count_held(vm->uid, TABLE_VMS, -1);
	vms.delete(&tgid);
	return 0;
}
