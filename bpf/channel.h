/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Bytes and errors that a VMM sends while it logs dirty pages, per fd. User space decides which fd
 * is the migration channel: the one that the thread which reads the dirty log writes to.
 */
struct channel_key {
	u32 tgid;
	s32 fd;
};

struct channel {
	u64 bytes;
	u64 calls;
	u64 first_ns;
	u64 last_ns;
	u64 error_ns;
	u64 reported_ns;
	u64 burst_bytes;
	u64 burst_ns;
	s32 error;
	u32 sender_tid;
	u32 op;
	u32 changed;
};

struct sending {
	u64 enter_ns;
	s32 fd;
	u32 op;
};

BPF_TABLE("hash", struct channel_key, struct channel, channels, 16384);
BPF_TABLE("hash", u64, struct sending, sending, 16384);

#define REPORT_NS 100000000
#define PAUSE_NS 2000000
#define EAGAIN 11
#define EINTR 4

static __always_inline void report_channel(struct vm *vm, s32 fd, struct channel *c, u64 wake)
{
	struct vft_channel e = {
		.bytes = c->bytes,
		.calls = c->calls,
		.first_ns = c->first_ns,
		.last_ns = c->last_ns,
		.error_ns = c->error_ns,
		.fd = fd,
		.error = c->error,
		.sender_tid = c->sender_tid,
		.op = c->op,
	};

	c->changed = 0;
	c->reported_ns = c->last_ns;
	EMIT_WAKING(vm, VFT_CHANNEL, &e, wake);
	if (c->burst_ns) {
		struct vft_burst burst = { .bytes = c->burst_bytes, .ns = c->burst_ns, .fd = fd };

		EMIT(vm, VFT_BURST, &burst);
	}
}

static __always_inline void report_channels(struct vm *vm)
{
	struct channel_key key = { .tgid = bpf_get_current_pid_tgid() >> 32 };

	if (!vm->unreported)
		return;
	vm->unreported = 0;
#pragma nounroll
	for (u32 i = 0; i < MAX_CHANNELS; i++) {
		struct channel *c;

		if (i >= vm->nr_channels)
			break;
		key.fd = vm->channel_fd[i];
		c = channels.lookup(&key);
		if (c && c->changed)
			report_channel(vm, key.fd, c, NO_WAKE);
	}
}

static __always_inline int send_enter(s32 fd, u32 op)
{
	u64 id = bpf_get_current_pid_tgid();
	struct vm *vm = current_vm();
	struct sending s = { .fd = fd, .op = op };

	if (vm && vm->logging) {
		s.enter_ns = now_ns();
		sending.update(&id, &s);
	}
	return 0;
}

static __always_inline int send_exit(long ret)
{
	u64 id = bpf_get_current_pid_tgid();
	struct sending *s = sending.lookup(&id);
	struct channel_key key = { .tgid = id >> 32 };
	struct vm *vm;
	struct channel *c;
	u64 now;
	u32 at;

	if (!s)
		return 0;
	key.fd = s->fd;
	vm = current_vm();
	if (!vm || ret == 0 || ret == -EAGAIN || ret == -EINTR)
		goto done;
	now = now_ns();
	c = channels.lookup(&key);
	if (!c) {
		struct channel fresh = { .first_ns = now };

		at = fetch_add(&vm->nr_channels, 1);
		if (at >= MAX_CHANNELS) {
			__sync_fetch_and_add(&vm->channels_overflow, 1);
			goto done;
		}
		asm volatile("" : "+r"(at)); /* the verifier must see the mask that follows */
		vm->channel_fd[at & (MAX_CHANNELS - 1)] = key.fd;
		channels.update(&key, &fresh);
		c = channels.lookup(&key);
		if (!c)
			goto done;
	}
	if (ret > 0 && c->last_ns) {
		u64 pause = s->enter_ns > c->last_ns ? s->enter_ns - c->last_ns : 0;

		c->burst_ns += now - s->enter_ns + (pause < PAUSE_NS ? pause : 0);
		c->burst_bytes += ret;
	}
	c->changed = 1;
	c->last_ns = now;
	c->sender_tid = (u32)id;
	c->op = s->op;
	vm->unreported = 1;
	if (ret > 0) {
		__sync_fetch_and_add(&c->bytes, ret);
		__sync_fetch_and_add(&c->calls, 1);
	} else {
		c->error = ret;
		c->error_ns = now;
	}
	/* The first report wakes the collector, which must look up the fd while it is open. */
	if (ret < 0 || now - c->reported_ns > REPORT_NS)
		report_channel(vm, key.fd, c, c->reported_ns ? NO_WAKE : WAKE);
done:
	sending.delete(&id);
	return 0;
}
