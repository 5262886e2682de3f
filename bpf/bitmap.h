/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * Ships the non-zero parts of a user-space bitmap as VFT_PIECE records. A piece is 4 KiB of
 * bitmap (128 MiB of guest memory in 4 KiB pages). One call of walk_pieces() does
 * PIECES_PER_CALL of them; the walker then tail-calls itself, 33 times at most (the kernel's
 * MAX_TAIL_CALL_CNT), so 33 * PIECES_PER_CALL * 4 KiB is the longest bitmap that is read whole.
 */
#ifndef PIECES_PER_CALL
#define PIECES_PER_CALL 32
#endif
#define WORDS_PER_TURN 8
#define PIECE_BYTES (VFT_PIECE_WORDS * 8)

struct walk {
	u64 user;
	u64 offset;
	u64 bytes;
	u64 part;		/* bytes of the piece in hand */
	struct vft_piece piece;
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

static __always_inline void ship_piece(struct walk *walk, struct vm *vm, struct thread *t, u32 bytes)
{
	struct vft_piece *piece = &walk->piece;
	u64 first, differ;
	u32 size;

	if (read_user(piece->word, bytes, (void *)(walk->user + walk->offset))) {
		t->read_errors++;
		return;
	}
	/* Where the first word is neither all zeroes nor all ones nothing is left to find out; else it is
	 * asked whether all others are the same. Many words a turn: what the verifier has to follow are
	 * the turns. */
	first = piece->word[0];
	differ = first && first != ~0ULL;
	if (!differ) {
		first = AGAIN(piece->word[0]);
#pragma nounroll
		for (u32 i = 0; i < VFT_PIECE_WORDS; i += WORDS_PER_TURN) {
#pragma unroll
			for (u32 j = 0; j < WORDS_PER_TURN; j++)
				differ |= piece->word[i + j] ^ first;
		}
	}
	if (!first && !differ)
		return;
	piece->call_ns = t->enter_ns;
	piece->first_page = t->first_page + walk->offset * 8;
	piece->slot = t->slot;
	piece->words = bytes / 8;
	piece->fill = first && !differ ? VFT_FILL_ONES : VFT_FILL_WORDS;
	size = sizeof(*piece) - sizeof(piece->word);
	if (piece->fill == VFT_FILL_WORDS)
		size += bytes;
	fill_header(&piece->h, vm, VFT_PIECE, size);
	if (size <= sizeof(*piece))
		send(piece, size, NO_WAKE);
	t->pieces++;
}

/* True when there is more to walk. */
static __always_inline bool walk_pieces(struct walk *walk, struct vm *vm, struct thread *t)
{
#pragma nounroll
	for (u32 i = 0; i < PIECES_PER_CALL; i++) {
		u64 left = walk->bytes - walk->offset;
		u32 bytes = left < PIECE_BYTES ? left : PIECE_BYTES;

		if (walk->offset >= walk->bytes)
			break;
		if (bytes < PIECE_BYTES) {
			/* the tail: words behind it must not hold an older piece's bits */
			u32 zero = 0;
			struct walk *clean = (struct walk *)new_walk.lookup(&zero);

			if (clean)
				read_kernel(walk->piece.word, PIECE_BYTES, clean->piece.word);
		}
		walk->part = bytes;
		bytes = AGAIN(walk->part);
		bytes &= 0x1ff8 /* whole words; also tells the verifier the range */;
		if (bytes > PIECE_BYTES)
			break;
		ship_piece(walk, vm, t, bytes);
		walk->offset += bytes;
	}
	t->walked_bytes = walk->offset;
	return walk->offset < walk->bytes;
}
