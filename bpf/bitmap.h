/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Sends a user-space bitmap as VFT_BITMAP records, which have only the words that are not zero. 32
 * KiB of it (1 GiB of guest memory in 4 KiB pages) are copied at once and sent in one record.
 */
#define COPY_BYTES (VFT_BITMAP_WORDS * 8)
#define MAX_COPIES 32768 /* 1 GiB of bitmap */
#define GROUP_WORDS 64
#define GROUPS (VFT_BITMAP_WORDS / GROUP_WORDS)
#define HEADS (VFT_BITMAP_ENTRIES - VFT_BITMAP_WORDS)
#define NO_RUN ((u64) - 1)
#define ALL_ONES ((u64) - 1)

/* The entries of the record are written over the words that were copied, which begin HEADS entries
 * behind the record's first entry. Block n is read from entry HEADS + 16 n on, and what was written
 * before it has 17 n entries at most, so nothing is overwritten before it was read. */
struct walk {
	u64 user;
	u64 offset;
	u64 bytes;
	u64 part; /* bytes of the copy */
	u64 used; /* entries */
	u64 run; /* the entry of the last head, if that is a run of ones */
	u8 head[sizeof(struct vft_bitmap) - VFT_BITMAP_ENTRIES * 8];
	u64 entry[HEADS];
	u64 word[VFT_BITMAP_WORDS];
};

/* Keyed by thread, not by CPU, because fentry programs may be preempted. */
AS_BYTES(walk);
BPF_TABLE("lru_hash", u64, struct walk_bytes, walks, 256);
BPF_TABLE("array", u32, struct walk_bytes, new_walk, 1);
BPF_PROG_ARRAY(walkers, 1);

static __always_inline struct walk *walk_of(u64 id)
{
	return (struct walk *)walks.lookup(&id);
}

static __always_inline struct walk *walk_begin(u64 id, struct thread *t, u64 user)
{
	struct walk *walk = walk_of(id);
	u32 zero = 0;

	if (!walk) {
		struct walk_bytes *fresh = new_walk.lookup(&zero);
		if (!fresh)
			return NULL;
		walks.update(&id, fresh);
		walk = walk_of(id);
		if (!walk)
			return NULL;
	}
	walk->user = user;
	walk->offset = 0;
	walk->bytes = t->bitmap_bytes;
	return walk;
}

/* What the callbacks of one walk need. */
struct walker {
	struct walk *walk;
	struct vm *vm;
	struct thread *t;
	u64 ones; /* bit n: group n of the copy may have ones */
};

/* Writes a head for one more block of ones, or counts it in the head before. Returns how many
 * entries were written. */
static __always_inline u64 pack_ones(struct walk *walk, u64 *entry, u64 used, u64 number)
{
	u64 run = REREAD(walk->run), before;

	if (run < VFT_BITMAP_ENTRIES) {
		before = walk->entry[run];
		if ((before & 0xffff) + (before >> 32) == number) {
			walk->entry[run] = before + (1ULL << 32);
			return 0;
		}
	}
	*entry = number | 1ULL << 32;
	walk->run = used;
	return 1;
}

/* Writes the entries of one block. Every word is written, and the next one over it if it was zero,
 * so that there are no branches to mispredict. */
static __always_inline u64 pack_words(u64 *begin, u64 *word, u64 number)
{
	u64 *entry = begin + 1, mask = 0;

#pragma unroll
	for (u32 i = 0; i < VFT_BLOCK_WORDS; i++) {
		u64 set = word[i], negative = -set;

		*entry = set;
		/* Hides the value from LLVM, which would make a branch of it. */
		asm volatile("" : "+r"(negative));
		set = (set | negative) >> 63;
		mask |= set << i;
		entry += set;
	}
	*begin = number | mask << 16;
	return entry - begin;
}

static __always_inline void pack_block(struct walk *walk, u64 *word, u64 number)
{
	u64 used = REREAD(walk->used), *entry, any = 0, all = ALL_ONES;

#pragma unroll
	for (u32 i = 0; i < VFT_BLOCK_WORDS; i++) {
		any |= word[i];
		all &= word[i];
	}
	if (!any || used > VFT_BITMAP_ENTRIES - VFT_BLOCK_WORDS - 1)
		return;
	entry = walk->entry + used;
	if (all == ALL_ONES)
		used += pack_ones(walk, entry, used, number);
	else
		used += pack_words(entry, word, number);
	walk->used = used;
}

/* Writes the entries of a group of blocks. */
int loop_group(u64 index)
{
	struct walker *w;
	u64 *word, group;

	LOOP_CONTEXT(w);
	if (index >= GROUPS)
		return 1;
	if (!(w->ones >> index & 1))
		return 0;
	/* The verifier of 6.1 does not apply a comparison to a copy that was spilled before it. */
	group = index;
	asm volatile("" : "+r"(group));
	group &= GROUPS - 1;
	word = w->walk->word + group * GROUP_WORDS;
#pragma nounroll
	for (u32 i = 0; i < GROUP_WORDS / VFT_BLOCK_WORDS; i++)
		pack_block(w->walk, word + i * VFT_BLOCK_WORDS,
			   index * (GROUP_WORDS / VFT_BLOCK_WORDS) + i);
	return 0;
}

/* Returns which groups of a whole copy have ones. Most copies have none, and a callback for each of
 * their groups would take longer than this. Four independent chains, so that no operation waits
 * for the one before; a group in each turn, because the verifier follows every turn. */
static __always_inline u64 groups_with_ones(struct walk *walk)
{
	u64 ones = 0;

#pragma nounroll
	for (u32 group = 0; group < GROUPS; group++) {
		u64 *word = walk->word + group * GROUP_WORDS, a = 0, b = 0, c = 0, d = 0, negative;

#pragma unroll
		for (u32 i = 0; i < GROUP_WORDS; i += 4) {
			a |= word[i];
			b |= word[i + 1];
			c |= word[i + 2];
			d |= word[i + 3];
		}
		a |= b | c | d;
		negative = -a;
		/* Hides the value from LLVM, which would make a branch of it. */
		asm volatile("" : "+r"(negative));
		ones |= (a | negative) >> 63 << group;
	}
	return ones;
}

/* Begins a record. */
static __always_inline void begin_entries(struct walk *walk)
{
	walk->used = 0;
	walk->run = NO_RUN;
}

/* Sends the entries, if there are any, of words that begin at a page. */
static __always_inline void ship_entries(struct walk *walk, struct vm *vm, struct thread *t,
					 u64 first_page, u32 slot, u32 words)
{
	struct vft_bitmap *e = (struct vft_bitmap *)walk->head;
	u64 used = REREAD(walk->used), size = sizeof(walk->head) + used * 8;

	/* The verifier of 6.12 loses the bound of `used` on the way to the size: it needs one on
	 * the very value that is passed on. */
	asm volatile("" : "+r"(size));
	if (!used || used > VFT_BITMAP_ENTRIES || size > sizeof(struct vft_bitmap))
		return;
	t->pieces++;
	e->call_ns = t->enter_ns;
	e->first_page = first_page;
	e->slot = slot;
	e->words = words;
	fill_header_of(&e->h, VFT_BITMAP, size, &vm->bulk_seq);
	if (!has_share(MAP_BULK, &vm->bulk_until_ns, e->h.at_ns, size) ||
	    bulk.ringbuf_output(e, size, NO_WAKE))
		count_lost(vm, BULK, 1);
}

static __always_inline void zero_words(struct walk *walk)
{
	u32 zero = 0;
	struct walk *clean = (struct walk *)new_walk.lookup(&zero);

	if (clean)
		read_kernel(walk->word, COPY_BYTES, clean->word);
}

/* Copies the next words. Those past the end of the bitmap are zero, so they are never sent. */
static __always_inline void copy_words(struct walk *walk, struct thread *t)
{
	u64 left = walk->bytes - walk->offset;
	u32 bytes;

	walk->part = left < COPY_BYTES ? left : COPY_BYTES;
	if (REREAD(walk->part) < COPY_BYTES)
		zero_words(walk);
	bytes = REREAD(walk->part);
	bytes &= 0xfff8 /* whole words; also gives the verifier the range */;
	if (bytes > COPY_BYTES)
		return;
	if (read_user(walk->word, bytes, (void *)(walk->user + walk->offset))) {
		t->read_errors++;
		zero_words(walk);
	}
}

/* Copies a part of the bitmap and sends what is in it. */
int loop_copy(u64 index)
{
	struct walker *w;
	struct walk *walk;
	u64 groups;

	LOOP_CONTEXT(w);
	walk = w->walk;
	if (walk->offset >= walk->bytes)
		return 1;
	copy_words(walk, w->t);
	begin_entries(walk);
	groups = (walk->part + GROUP_WORDS * 8 - 1) / (GROUP_WORDS * 8);
	w->ones = groups < GROUPS ? ALL_ONES : groups_with_ones(walk);
	if (w->ones)
		loop(groups, LOOP_GROUP, w, 0);
	ship_entries(walk, w->vm, w->t, w->t->first_page + walk->offset * 8, w->t->slot,
		     walk->part / 8);
	walk->offset += walk->part;
	return 0;
}

static __always_inline void walk_bitmap(struct walk *walk, struct vm *vm, struct thread *t)
{
	struct walker w = { .walk = walk, .vm = vm, .t = t };

	loop(MAX_COPIES, LOOP_COPY, &w, 0);
	t->walked_bytes = walk->offset;
}
