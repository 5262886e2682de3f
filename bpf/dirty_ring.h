/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * KVM's dirty ring. KVM_RESET_DIRTY_RINGS counts pushes, and one page may be pushed many times, so
 * distinct pages come from a bitmap that these probes keep. A chunk of it has the form of a piece
 * (32768 pages). A reset sends and clears the chunks that were touched since the previous reset.
 */
#define CHUNKS_PER_CALL 16
#define FREES_PER_CALL 64

struct chunk_key {
	u32 vm;
	u32 slot;
	u64 number;
};

struct chunk {
	u64 touched;
	u64 word[VFT_PIECE_WORDS];
};

/* The touched chunks of a VM are a queue: from vm->touched_done to vm->touched_count. */
struct touched_key {
	u32 vm;
	u32 index;
};

AS_BYTES(chunk);
BPF_TABLE("array", u32, struct chunk_bytes, new_chunk, 1);
BPF_F_TABLE("hash", struct chunk_key, struct chunk_bytes, chunks, 65536, 1 /* BPF_F_NO_PREALLOC */);
BPF_F_TABLE("hash", struct touched_key, struct chunk_key, touched, 65536, 1);

/* kvm:kvm_dirty_ring_push has the same fields on 6.1, 6.12 and 7.2 (include/trace/events/kvm.h). */
struct dirty_ring_push {
	u64 common;
	s32 index;
	u32 dirty_index;
	u32 reset_index;
	u32 slot;
	u64 offset;
};

static __always_inline struct chunk *chunk_of(struct vm *vm, struct chunk_key *key)
{
	struct chunk *chunk = (struct chunk *)chunks.lookup(key);
	struct chunk_bytes *fresh;
	u32 zero = 0;

	if (chunk)
		return chunk;
	fresh = new_chunk.lookup(&zero);
	if (!fresh)
		return NULL;
	if (vm->nr_chunks >= MAX_CHUNKS || chunks.update(key, fresh)) {
		count_full(vm, TABLE_CHUNKS);
		return NULL;
	}
	__sync_fetch_and_add(&vm->nr_chunks, 1);
	return (struct chunk *)chunks.lookup(key);
}

int tp_dirty_ring_push(struct dirty_ring_push *ctx)
{
	struct vm *vm = current_vm();
	struct touched_key at = {};
	struct chunk_key key = {};
	struct chunk *chunk;
	u64 offset = ctx->offset;

	if (!vm)
		return 0;
	__sync_fetch_and_add(&vm->pushes, 1);
	key.vm = vm->id;
	key.slot = ctx->slot;
	key.number = offset / (VFT_PIECE_WORDS * 64);
	chunk = chunk_of(vm, &key);
	if (!chunk) {
		__sync_fetch_and_add(&vm->untracked, 1);
		return 0;
	}
	__sync_fetch_and_or(&chunk->word[offset / 64 % VFT_PIECE_WORDS], 1ULL << (offset % 64));
	if (__sync_lock_test_and_set(&chunk->touched, 1))
		return 0;
	at.vm = vm->id;
	at.index = fetch_add(&vm->touched_count, 1);
	if (touched.update(&at, &key)) {
		count_full(vm, TABLE_TOUCHED);
		__sync_fetch_and_add(&vm->untracked, 1);
		__sync_lock_test_and_set(&chunk->touched, 0);
	}
	return 0;
}

int tp_dirty_ring_exit(void *ctx)
{
	struct vm *vm = current_vm();

	if (vm)
		__sync_fetch_and_add(&vm->ring_full_exits, 1);
	return 0;
}

/* Claims what is in the queue. */
static __always_inline void begin_chunks(struct walk *walk, struct vm *vm)
{
	walk->bytes = vm->touched_count;
	walk->offset = __sync_lock_test_and_set(&vm->touched_done, walk->bytes);
}

/* Sends one touched chunk and clears it. Returns false if the queue has no entry there. */
static __always_inline bool ship_chunk(struct walk *walk, struct vm *vm, struct thread *t,
				       u32 index)
{
	struct touched_key at = { .vm = vm->id, .index = index };
	struct vft_piece *piece = (struct vft_piece *)walk->before;
	struct chunk_key *key = touched.lookup(&at);
	struct chunk *chunk;

	if (!key)
		return false;
	chunk = (struct chunk *)chunks.lookup(key);
	if (!chunk) {
		touched.delete(&at);
		return true;
	}
	piece->slot = key->slot;
	piece->first_page = key->number * VFT_PIECE_WORDS * 64;
	__sync_lock_test_and_set(&chunk->touched, 0);
#pragma nounroll
	for (u32 i = 0; i < VFT_PIECE_WORDS; i += WORDS_PER_TURN) {
#pragma unroll
		for (u32 j = 0; j < WORDS_PER_TURN; j++)
			piece->word[i + j] = __sync_lock_test_and_set(&chunk->word[i + j], 0);
	}
	touched.delete(&at);
	piece->call_ns = t->enter_ns;
	piece->words = VFT_PIECE_WORDS;
	piece->fill = VFT_FILL_WORDS;
	EMIT(vm, VFT_PIECE, piece);
	t->pieces++;
	return true;
}

/* An index of the queue that has no entry: a vCPU has taken it and not written it yet, or there was
 * no room, which was counted. The next reset continues there; if the entry is still missing then,
 * it is passed over. Returns whether to go on. */
static __always_inline bool pass_missing(struct vm *vm, u64 index)
{
	if (vm->touched_missing == index + 1)
		return true;
	vm->touched_missing = index + 1;
	vm->touched_done = index;
	return false;
}

/* Returns true if there are more chunks to send. */
static __always_inline bool ship_chunks(struct walk *walk, struct vm *vm, struct thread *t)
{
#pragma nounroll
	for (u32 i = 0; i < CHUNKS_PER_CALL; i++) {
		u64 index = walk->offset;

		if (index >= walk->bytes)
			return false;
		walk->offset++;
		/* The next call continues. If this one did, the verifier would follow the rest of
		 * the loop again for each turn. */
		if (!ship_chunk(walk, vm, t, index)) {
			if (!pass_missing(vm, index))
				walk->offset = walk->bytes;
			break;
		}
	}
	return walk->offset < walk->bytes;
}

/* Puts back what the tail calls of one reset did not reach. */
static __always_inline void end_chunks(struct walk *walk, struct vm *vm)
{
	if (walk->offset < walk->bytes) {
		vm->touched_done = walk->offset;
		__sync_fetch_and_add(&vm->untracked, 1);
	}
}

static __always_inline u64 chunks_of(u64 pages)
{
	return (pages + VFT_PIECE_WORDS * 64 - 1) / (VFT_PIECE_WORDS * 64);
}

/* Frees the chunks of a slot that is no longer logged: KVM pushes none of its pages from now on.
 * Returns true if there are more. */
static __always_inline bool free_chunks(struct walk *walk, struct vm *vm, struct thread *t)
{
	struct chunk_key key = { .vm = vm->id, .slot = t->slot };

#pragma nounroll
	for (u32 i = 0; i < FREES_PER_CALL; i++) {
		if (walk->offset >= walk->bytes)
			return false;
		key.number = walk->offset;
		if (!chunks.delete(&key))
			__sync_fetch_and_add(&vm->nr_chunks, -1);
		walk->offset++;
	}
	return walk->offset < walk->bytes;
}
