/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Bytes and errors that a VMM sends while it logs dirty pages, per fd. User space decides which fd
 * is the migration channel: the one that the thread which reads the dirty log writes to.
 */
struct channel_key {
	u32 vm;
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
	u32 pad;
	u64 changed; /* since it was last reported */
};

struct sending {
	u64 enter_ns;
	s32 fd;
	u32 op;
};

BPF_TABLE("hash", struct channel_key, struct channel, channels, CHANNELS);
/* By VM: how many of its channels the collector deleted, because their fds were closed. */
BPF_F_TABLE("hash", u32, u64, deleted_channels, 8192, 1 /* BPF_F_NO_PREALLOC */);
BPF_TABLE("hash", u64, struct sending, sending, 16384);

#define REPORT_NS 100000000
#define PAUSE_NS 2000000
#define EAGAIN 11
#define EINTR 4

/* The number of the lowest bit that is set; BPF has no instruction for it. */
static __always_inline u32 lowest_bit(u64 bits)
{
	u64 below = (bits & -bits) - 1;

	/* LLVM 19 would replace all of this by a table in .rodata, which BCC does not load. */
	asm volatile("" : "+r"(below));
	below -= below >> 1 & 0x5555555555555555ULL;
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return below * 0x0101010101010101ULL >> 56;
}

/* Returns how many of its records were lost. `changed` is cleared before the totals are read: a
 * sender that adds to them later marks the channel again. */
static __always_inline u64 report_channel(struct vm *vm, s32 fd, struct channel *c, u64 wake)
{
	struct vft_burst burst = { .fd = fd };
	struct vft_channel e = { .fd = fd };
	u64 failed;

	__sync_lock_test_and_set(&c->changed, 0);
	e.bytes = c->bytes;
	e.calls = c->calls;
	e.first_ns = c->first_ns;
	e.last_ns = c->last_ns;
	e.error_ns = c->error_ns;
	e.error = c->error;
	e.sender_tid = c->sender_tid;
	e.op = c->op;
	c->reported_ns = c->last_ns;
	fill_header(&e.h, vm, VFT_CHANNEL, sizeof(e));
	failed = try_send(vm, &e, sizeof(e), wake);
	burst.ns = c->burst_ns;
	burst.bytes = c->burst_bytes;
	if (burst.ns) {
		fill_header(&burst.h, vm, VFT_BURST, sizeof(burst));
		failed += try_send(vm, &burst, sizeof(burst), NO_WAKE);
	}
	return failed;
}

static __always_inline void mark_changed(struct vm *vm, struct channel *c, u32 fd)
{
	u32 word = fd / 64 % FD_WORDS;

	if (c->changed || __sync_lock_test_and_set(&c->changed, 1))
		return;
	__sync_fetch_and_or(&vm->changed[word], 1ULL << (fd % 64));
	__sync_fetch_and_or(&vm->changed_words, 1ULL << word);
}

/* Takes the lowest fd that is marked in vm->changed. A word's bit in vm->changed_words is cleared
 * before the word is read, and set again if more bits are left, so no mark is lost. */
static __always_inline u32 take_changed(struct vm *vm)
{
	u32 word = lowest_bit(vm->changed_words), bit;
	u64 bits;

	/* LLVM would prove the mask away; the verifier needs it. */
	asm volatile("" : "+r"(word));
	word %= FD_WORDS;
	__sync_fetch_and_and(&vm->changed_words, ~(1ULL << word));
	bits = vm->changed[word];
	bit = lowest_bit(bits) % 64;
	__sync_fetch_and_and(&vm->changed[word], ~(1ULL << bit));
	if (bits & (bits - 1))
		__sync_fetch_and_or(&vm->changed_words, 1ULL << word);
	return word * 64 + bit;
}

int loop_channel(u64 index)
{
	struct channel_key key = {};
	struct channel *c;
	struct vm **vm;

	LOOP_CONTEXT(vm);
	if (!(*vm)->changed_words)
		return 1;
	key.vm = (*vm)->id;
	key.fd = take_changed(*vm);
	c = channels.lookup(&key);
	if (c && c->changed)
		count_lost(*vm, EVENTS, report_channel(*vm, key.fd, c, NO_WAKE));
	return 0;
}

/* Reports the channels that sent since they were last reported. Others may be marked meanwhile, so
 * the loop ends after as many channels as a VM may have. */
static __always_inline void report_channels(struct vm *vm)
{
	loop(MAX_FD, LOOP_CHANNEL, &vm, 0);
}

static __always_inline void forget_sending(struct vm *vm, u64 id)
{
	if (!sending.delete(&id) && vm)
		__sync_fetch_and_add(&vm->nr_sending, -1);
}

static __always_inline int send_enter(s32 fd, u32 op)
{
	u64 id = bpf_get_current_pid_tgid();
	struct vm *vm = current_vm();
	struct sending s = { .fd = fd, .op = op };
	struct sending *old;

	if (vm && vm->logging) {
		s.enter_ns = now_ns();
		if (vm->nr_sending < MAX_SENDING && !sending.insert(&id, &s)) {
			__sync_fetch_and_add(&vm->nr_sending, 1);
			return 0;
		}
		old = sending.lookup(&id);
		if (!old) {
			count_full(vm, TABLE_SENDING);
			return 0;
		}
		/* The kernel skipped the program at the return of the thread's last send. That
		 * send is counted as missed; its fd and its begin must not be taken for this
		 * one's. */
		*old = s;
		__sync_fetch_and_add(&vm->not_counted, 1);
	}
	return 0;
}

/* Returns NULL if there is no room for the channel. A send on a negative fd fails, which is
 * reported as any error. */
static __always_inline struct channel *new_channel(struct vm *vm, struct channel_key *key, u64 now)
{
	struct channel fresh = { .first_ns = now };
	u64 *deleted = deleted_channels.lookup(&key->vm);
	u64 count = vm->nr_channels - (deleted ? *deleted : 0);

	if (count >= MAX_CHANNELS || key->fd >= MAX_FD ||
	    !has_room(vm->uid, TABLE_CHANNELS, CHANNELS) || channels.update(key, &fresh)) {
		count_full(vm, TABLE_CHANNELS);
		return NULL;
	}
	__sync_fetch_and_add(&vm->nr_channels, 1);
	count_held(vm->uid, TABLE_CHANNELS, 1);
	return channels.lookup(key);
}

static __always_inline int send_exit(long ret)
{
	u64 id = bpf_get_current_pid_tgid();
	struct sending *s = sending.lookup(&id);
	struct channel_key key = {};
	struct vm *vm;
	struct channel *c;
	u64 now;

	if (!s)
		return 0;
	key.fd = s->fd;
	vm = current_vm();
	if (!vm || ret == 0 || ret == -EAGAIN || ret == -EINTR)
		goto done;
	key.vm = vm->id;
	now = now_ns();
	c = channels.lookup(&key);
	if (!c) {
		c = new_channel(vm, &key, now);
		if (!c)
			goto done;
	}
	if (ret > 0 && c->last_ns) {
		u64 pause = s->enter_ns > c->last_ns ? s->enter_ns - c->last_ns : 0;

		c->burst_ns += now - s->enter_ns + (pause < PAUSE_NS ? pause : 0);
		c->burst_bytes += ret;
	}
	c->last_ns = now;
	c->sender_tid = (u32)id;
	c->op = s->op;
	if (ret > 0) {
		__sync_fetch_and_add(&c->bytes, ret);
		__sync_fetch_and_add(&c->calls, 1);
	} else {
		c->error = ret;
		c->error_ns = now;
	}
	/* The first report wakes the collector, which must look up the fd while it is open. */
	if (ret < 0 || now - c->reported_ns > REPORT_NS)
		count_lost(vm, EVENTS,
			   report_channel(vm, key.fd, c, c->reported_ns ? NO_WAKE : WAKE));
	else
		mark_changed(vm, c, key.fd);
done:
	forget_sending(vm, id);
	return 0;
}
