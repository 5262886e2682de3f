/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * KVM's dirty ring. KVM_RESET_DIRTY_RINGS counts pushes, and one page may be pushed many times, so
 * distinct pages come from a bitmap that these probes keep. A chunk of it has the form of a piece
 * (32768 pages). A reset sends and clears the chunks that were touched since the previous reset.
 */
#define CHUNKS_PER_CALL 16
/* As many chunks as one reset can send: the walker runs at most 33 times (bitmap.h). */
#define MAX_TOUCHED (33 * CHUNKS_PER_CALL)

struct chunk_key {
	u32 tgid;
	u32 slot;
	u64 number;
};

struct chunk {
	u64 touched;
	u64 word[VFT_PIECE_WORDS];
};

struct touched_key {
	u32 tgid;
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

int tp_dirty_ring_push(struct dirty_ring_push *ctx)
{
	struct vm *vm = current_vm();
	struct chunk_key key = {};
	struct chunk *chunk;
	u64 offset = ctx->offset;
	u32 zero = 0;

	if (!vm)
		return 0;
	__sync_fetch_and_add(&vm->pushes, 1);
	key.tgid = bpf_get_current_pid_tgid() >> 32;
	key.slot = ctx->slot;
	key.number = offset / (VFT_PIECE_WORDS * 64);
	chunk = (struct chunk *)chunks.lookup(&key);
	if (!chunk) {
		struct chunk_bytes *fresh = new_chunk.lookup(&zero);
		if (fresh)
			chunks.update(&key, fresh);
		chunk = (struct chunk *)chunks.lookup(&key);
		if (!chunk) {
			__sync_fetch_and_add(&vm->untracked, 1);
			return 0;
		}
	}
	__sync_fetch_and_or(&chunk->word[offset / 64 % VFT_PIECE_WORDS], 1ULL << (offset % 64));
	if (!__sync_lock_test_and_set(&chunk->touched, 1)) {
		struct touched_key at = { .tgid = key.tgid };

		at.index = fetch_add(&vm->touched_count, 1);
		if (at.index < MAX_TOUCHED) {
			touched.update(&at, &key);
		} else {
			__sync_fetch_and_add(&vm->untracked, 1);
			__sync_lock_test_and_set(&chunk->touched, 0);
		}
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

/* Sends one touched chunk and clears it. Returns false if there is no such chunk. */
static __always_inline bool ship_chunk(struct walk *walk, struct vm *vm, struct thread *t,
				       u32 index)
{
	struct touched_key at = { .tgid = bpf_get_current_pid_tgid() >> 32, .index = index };
	struct vft_piece *piece = (struct vft_piece *)walk->before;
	struct chunk_key *key = touched.lookup(&at);
	struct chunk *chunk;

	if (!key)
		return false;
	chunk = (struct chunk *)chunks.lookup(key);
	if (!chunk)
		return false;
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

/* Returns true if there are more chunks to send. */
static __always_inline bool ship_chunks(struct walk *walk, struct vm *vm, struct thread *t)
{
#pragma nounroll
	for (u32 i = 0; i < CHUNKS_PER_CALL; i++) {
		u32 index = walk->offset;

		if (index >= walk->bytes)
			break;
		walk->offset++;
		/* The next call continues. If this one did, the verifier would follow the rest of
		 * the loop again for each turn. */
		if (!ship_chunk(walk, vm, t, index))
			break;
	}
	return walk->offset < walk->bytes;
}
