/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * KVM's dirty ring. KVM_RESET_DIRTY_RINGS counts pushes, and one page may be pushed many times, so
 * distinct pages come from a bitmap that these probes keep. A chunk of it has 32768
 * pages. A reset sends and clears the chunks that were touched since the previous reset.
 */
#define CHUNK_WORDS 512

struct chunk_key {
	u32 vm;
	u32 slot;
	u64 number;
};

struct chunk {
	u64 touched;
	u64 word[CHUNK_WORDS];
};

/* The touched chunks of a VM are a queue: from vm->touched_done to vm->touched_count. */
struct touched_key {
	u32 vm;
	u32 index;
};

AS_BYTES(chunk);
BPF_TABLE("array", u32, struct chunk_bytes, new_chunk, 1);
BPF_F_TABLE("hash", struct chunk_key, struct chunk_bytes, chunks, CHUNKS,
	    1 /* BPF_F_NO_PREALLOC */);
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
	if (vm->nr_chunks >= MAX_CHUNKS || !has_room(vm->uid, TABLE_CHUNKS, CHUNKS) ||
	    chunks.update(key, fresh)) {
		count_full(vm, TABLE_CHUNKS);
		return NULL;
	}
	__sync_fetch_and_add(&vm->nr_chunks, 1);
	count_held(vm->uid, TABLE_CHUNKS, 1);
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
	key.number = offset / (CHUNK_WORDS * 64);
	chunk = chunk_of(vm, &key);
	if (!chunk) {
		__sync_fetch_and_add(&vm->untracked, 1);
		return 0;
	}
	__sync_fetch_and_or(&chunk->word[offset / 64 % CHUNK_WORDS], 1ULL << (offset % 64));
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
static __always_inline bool ship_chunk(struct walker *w, u32 index)
{
	struct touched_key at = { .vm = w->vm->id, .index = index };
	struct chunk_key *key = touched.lookup(&at);
	struct walk *walk = w->walk;
	struct chunk *chunk;
	u64 first_page;
	u32 slot;

	if (!key)
		return false;
	chunk = (struct chunk *)chunks.lookup(key);
	if (!chunk) {
		touched.delete(&at);
		return true;
	}
	slot = key->slot;
	first_page = key->number * CHUNK_WORDS * 64;
	__sync_lock_test_and_set(&chunk->touched, 0);
#pragma nounroll
	for (u32 i = 0; i < CHUNK_WORDS; i += VFT_BLOCK_WORDS) {
#pragma unroll
		for (u32 j = 0; j < VFT_BLOCK_WORDS; j++)
			walk->word[i + j] = __sync_lock_test_and_set(&chunk->word[i + j], 0);
	}
	touched.delete(&at);
	begin_entries(walk);
	w->ones = ALL_ONES;
	loop(CHUNK_WORDS / GROUP_WORDS, LOOP_GROUP, w, 0);
	ship_entries(walk, w->vm, w->t, first_page, slot, CHUNK_WORDS);
	return true;
}

/* Handles an index of the queue that has no entry: a vCPU has taken the index and not written the
 * entry yet, or there was no room, which was counted. The next reset continues there; if the entry
 * is still missing then, it is passed over. Returns whether to continue. */
static __always_inline bool pass_missing(struct vm *vm, u64 index)
{
	if (vm->touched_missing == index + 1)
		return true;
	vm->touched_missing = index + 1;
	vm->touched_done = index;
	return false;
}

int loop_chunk(u64 number)
{
	struct walker *w;
	u64 index;

	LOOP_CONTEXT(w);
	index = w->walk->offset;
	if (index >= w->walk->bytes)
		return 1;
	if (!ship_chunk(w, index) && !pass_missing(w->vm, index))
		return 1;
	w->walk->offset++;
	return 0;
}

/* Sends the chunks that were claimed. */
static __always_inline void ship_chunks(struct walk *walk, struct vm *vm, struct thread *t)
{
	struct walker w = { .walk = walk, .vm = vm, .t = t };

	loop(MAX_TURNS, LOOP_CHUNK, &w, 0);
}

static __always_inline u64 chunks_of(u64 pages)
{
	return (pages + CHUNK_WORDS * 64 - 1) / (CHUNK_WORDS * 64);
}

int loop_free(u64 number)
{
	struct walker *w;
	struct chunk_key key = {};

	LOOP_CONTEXT(w);
	if (number >= w->t->bitmap_bytes)
		return 1;
	key.vm = w->vm->id;
	key.slot = w->t->slot;
	key.number = number;
	if (!chunks.delete(&key)) {
		__sync_fetch_and_add(&w->vm->nr_chunks, -1);
		count_held(w->vm->uid, TABLE_CHUNKS, -1);
	}
	return 0;
}

/* Frees the chunks of a slot that is no longer logged: KVM pushes none of its pages from now on. */
static __always_inline void free_chunks(struct vm *vm, struct thread *t)
{
	struct walker w = { .vm = vm, .t = t };

	loop(MAX_TURNS, LOOP_FREE, &w, 0);
}
