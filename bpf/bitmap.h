/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * Sends the non-zero parts of a user-space bitmap as VFT_PIECE records. A piece is 4 KiB of bitmap
 * (128 MiB of guest memory in 4 KiB pages). One call of walk_pieces() handles PIECES_PER_CALL
 * pieces and copies PIECES_PER_COPY of them at once. The walker then tail-calls itself, at most 33
 * times (the kernel's MAX_TAIL_CALL_CNT), so the longest bitmap that is read whole has 33 *
 * PIECES_PER_CALL * 4 KiB.
 */
#ifndef PIECES_PER_CALL
#define PIECES_PER_CALL 32
#endif
#define PIECES_PER_COPY 4
#define WORDS_PER_TURN 16
#define PIECE_BYTES (VFT_PIECE_WORDS * 8)
#define COPY_BYTES (PIECES_PER_COPY * PIECE_BYTES)
#define COPY_WORDS (PIECES_PER_COPY * VFT_PIECE_WORDS)

/* A piece is sent from the place its words were copied to: its header overwrites the end of the
 * previous piece, which was sent before. */
struct walk {
	u64 user;
	u64 offset;
	u64 bytes;
	u64 part; /* bytes of the copy, then of the current piece */
	u8 before[sizeof(struct vft_piece) - PIECE_BYTES];
	u64 word[COPY_WORDS];
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
	walk->part = 0;
	return walk;
}

static __always_inline void ship_piece(struct walk *walk, struct vft_piece *piece, struct vm *vm,
				       struct thread *t, u32 bytes)
{
	u64 a = piece->word[0], b, c, d;
	u32 size = sizeof(*piece) - sizeof(piece->word) + bytes;

	/* If the first word is not zero, the piece is not empty. Else four independent OR chains
	 * run, so that no operation waits for the one before. Each turn handles many words, because
	 * the verifier follows every turn. */
	if (!a) {
		b = c = d = 0;
#pragma nounroll
		for (u32 i = 0; i < VFT_PIECE_WORDS; i += WORDS_PER_TURN) {
#pragma unroll
			for (u32 j = 0; j < WORDS_PER_TURN; j += 4) {
				a |= piece->word[i + j];
				b |= piece->word[i + j + 1];
				c |= piece->word[i + j + 2];
				d |= piece->word[i + j + 3];
			}
		}
		a |= b | c | d;
	}
	if (!a)
		return;
	piece->call_ns = t->enter_ns;
	piece->first_page = t->first_page + walk->offset * 8;
	piece->slot = t->slot;
	piece->words = bytes / 8;
	piece->fill = VFT_FILL_WORDS;
	fill_header(&piece->h, vm, VFT_PIECE, size);
	if (size <= sizeof(*piece))
		send(piece, size, NO_WAKE);
	t->pieces++;
}

static __always_inline void zero_words(struct walk *walk)
{
	u32 zero = 0;
	struct walk *clean = (struct walk *)new_walk.lookup(&zero);

	if (clean)
		read_kernel(walk->word, COPY_BYTES, clean->word);
}

/* Copies the next pieces. Words past the end of the bitmap are zero, so they are never sent. */
static __always_inline void copy_pieces(struct walk *walk, struct thread *t)
{
	u64 left = walk->bytes - walk->offset;
	u32 bytes;

	walk->part = left < COPY_BYTES ? left : COPY_BYTES;
	if (REREAD(walk->part) < COPY_BYTES)
		zero_words(walk);
	bytes = REREAD(walk->part);
	bytes &= 0x7ff8 /* whole words; also gives the verifier the range */;
	if (bytes > COPY_BYTES)
		return;
	if (read_user(walk->word, bytes, (void *)(walk->user + walk->offset))) {
		t->read_errors++;
		zero_words(walk);
	}
}

/* Returns true if there is more to walk. */
static __always_inline bool walk_pieces(struct walk *walk, struct vm *vm, struct thread *t)
{
#pragma nounroll
	for (u32 i = 0; i < PIECES_PER_CALL; i++) {
		u32 at = i % PIECES_PER_COPY * PIECE_BYTES, bytes;
		u64 left;

		if (walk->offset >= walk->bytes)
			break;
		if (!at)
			copy_pieces(walk, t);
		left = walk->bytes - walk->offset;
		walk->part = left < PIECE_BYTES ? left : PIECE_BYTES;
		bytes = REREAD(walk->part);
		bytes &= 0x1ff8 /* whole words; also gives the verifier the range */;
		if (bytes > PIECE_BYTES)
			break;
		ship_piece(walk, (struct vft_piece *)(walk->before + at), vm, t, bytes);
		walk->offset += bytes;
	}
	t->walked_bytes = walk->offset;
	return walk->offset < walk->bytes;
}
