/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * Ships the non-zero parts of a user-space bitmap as VFT_PIECE records. A piece is 4 KiB of
 * bitmap (128 MiB of guest memory in 4 KiB pages). One call of walk_pieces() does
 * PIECES_PER_CALL of them, copied from the user PIECES_PER_COPY at once; the walker then tail-calls
 * itself, 33 times at most (the kernel's MAX_TAIL_CALL_CNT), so 33 * PIECES_PER_CALL * 4 KiB is the
 * longest bitmap that is read whole.
 */
/* VFIO's walker (vfio.bpf.c) takes this: 66 GiB in one bitmap. With 32 Linux 6.12's verifier was not through in
 * two minutes of the lab, with 16 all programs are loaded after one. */
#ifndef PIECES_PER_CALL
#define PIECES_PER_CALL 16
#endif
#define PIECES_PER_COPY 4
/* Many words a turn: what the verifier has to follow are the turns. */
#define WORDS_PER_TURN 16
#define PIECE_BYTES (VFT_PIECE_WORDS * 8)
#define COPY_BYTES (PIECES_PER_COPY * PIECE_BYTES)
#define COPY_WORDS (PIECES_PER_COPY * VFT_PIECE_WORDS)

/* A piece is sent from where its words were copied to: what comes before them overwrites the end of the
 * piece before it. */
struct walk {
	u64 user;
	u64 offset;
	u64 bytes;
	u64 part;		/* bytes of the copy in hand */
	u64 any[PIECES_PER_COPY];	/* the words of each of its pieces by OR */
	u64 all[PIECES_PER_COPY];	/* and by AND */
	u8 before[sizeof(struct vft_piece) - PIECE_BYTES];
	u64 word[COPY_WORDS];
};

/* Keyed by thread, not by CPU: fentry programs may be preempted. */
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
	walk->part = 0;
	return walk;
}

/* Joins the words of each piece by `op`: four chains that do not wait for each other. */
#define JOIN_PIECES(walk, op, start, joined) do { \
	u64 a = start, b = start, c = start, d = start; \
	_Pragma("nounroll") \
	for (u32 i = 0; i < VFT_PIECE_WORDS; i += WORDS_PER_TURN) { \
		_Pragma("unroll") \
		for (u32 j = 0; j < WORDS_PER_TURN; j++) { \
			a op (walk)->word[i + j]; \
			b op (walk)->word[VFT_PIECE_WORDS + i + j]; \
			c op (walk)->word[2 * VFT_PIECE_WORDS + i + j]; \
			d op (walk)->word[3 * VFT_PIECE_WORDS + i + j]; \
		} \
	} \
	(joined)[0] = a; \
	(joined)[1] = b; \
	(joined)[2] = c; \
	(joined)[3] = d; \
} while (0)

/* Whether more than the first words is to be looked at to know what is empty and what is all ones. */
static __always_inline bool first_words_tell(struct walk *walk)
{
	u64 tell = 1;

#pragma unroll
	for (u32 n = 0; n < PIECES_PER_COPY; n++) {
		u64 first = walk->word[n * VFT_PIECE_WORDS];

		walk->any[n] = walk->all[n] = first;
		first ^= (s64)first >> 63;	/* 0 of all zeroes and of all ones */
		tell &= (first | -first) >> 63;
	}
	return tell;
}

static __always_inline void ship_piece(struct walk *walk, struct vm *vm, struct thread *t, u32 n)
{
	u32 at = n * PIECE_BYTES;
	struct vft_piece *piece = (struct vft_piece *)(walk->before + at);
	u64 left = AGAIN(walk->part) - at;
	u32 bytes = left < PIECE_BYTES ? left : PIECE_BYTES;
	u32 size = sizeof(*piece) - sizeof(piece->word);

	piece->fill = AGAIN(walk->all[n]) == ~0ULL ? VFT_FILL_ONES : VFT_FILL_WORDS;
	piece->call_ns = t->enter_ns;
	piece->first_page = t->first_page + (walk->offset + at) * 8;
	piece->slot = t->slot;
	piece->words = bytes / 8;
	if (AGAIN(piece->fill) == VFT_FILL_WORDS)
		size += AGAIN(piece->words) * 8;
	fill_header(&piece->h, vm, VFT_PIECE, size);
	if (size <= sizeof(*piece))
		send(piece, size, NO_WAKE);
	t->pieces++;
}

/* Copies the next `bytes` and ships what is not empty of them. */
static __always_inline void ship_copy(struct walk *walk, struct vm *vm, struct thread *t, u32 bytes)
{
	if (bytes < COPY_BYTES) {
		/* the tail: words behind it must not hold an older piece's bits */
		u32 zero = 0;
		struct walk *clean = (struct walk *)new_walk.lookup(&zero);

		if (clean)
			read_kernel(walk->word, COPY_BYTES, clean->word);
	}
	if (read_user(walk->word, bytes, (void *)(walk->user + walk->offset))) {
		t->read_errors++;
		return;
	}
	if (!first_words_tell(walk)) {
		JOIN_PIECES(walk, |=, 0, walk->any);
		if (!(walk->any[0] | walk->any[1] | walk->any[2] | walk->any[3]))
			return;
		JOIN_PIECES(walk, &=, ~0ULL, walk->all);
	}
#pragma nounroll
	for (u32 n = 0; n < PIECES_PER_COPY; n++) {
		if (AGAIN(walk->any[n]))
			ship_piece(walk, vm, t, n);
	}
}

/* True when there is more to walk. */
static __always_inline bool walk_pieces(struct walk *walk, struct vm *vm, struct thread *t)
{
#pragma nounroll
	for (u32 i = 0; i < PIECES_PER_CALL / PIECES_PER_COPY; i++) {
		u64 left = walk->bytes - walk->offset;
		u32 bytes;

		if (walk->offset >= walk->bytes)
			break;
		walk->part = left < COPY_BYTES ? left : COPY_BYTES;
		bytes = AGAIN(walk->part);
		bytes &= 0x7ff8 /* whole words; also tells the verifier the range */;
		if (bytes > COPY_BYTES)
			break;
		ship_copy(walk, vm, t, bytes);
		walk->offset += AGAIN(walk->part) & 0x7ff8;
	}
	t->walked_bytes = walk->offset;
	return walk->offset < walk->bytes;
}
