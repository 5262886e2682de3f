/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * The only contract between the kernel side and Python. Every record starts with
 * struct vft_header; vftrace/wire.py holds the same layouts and a test compares both.
 * Fixed-width fields only, naturally aligned, host byte order. Times are CLOCK_BOOTTIME, ns.
 */
#ifndef VFTRACE_WIRE_H
#define VFTRACE_WIRE_H

enum vft_kind {
	VFT_VM_CREATED = 1,
	VFT_VCPU_CREATED = 2,
	VFT_REGION = 3,
	VFT_CAP = 4,
	VFT_GET_DIRTY_LOG = 5,
	VFT_CLEAR_DIRTY_LOG = 6,
	VFT_PIECE = 7,
	VFT_RESET_DIRTY_RINGS = 8,
	VFT_CLOCK = 9,
	VFT_RUN = 10,
	VFT_VCPU_STATE = 11,
	VFT_CHANNEL = 12,
	VFT_UFFD = 13,
	VFT_EXIT = 14,
};

/* seq counts the records of one stream: a process (tgid), or what belongs to no process
 * (tgid 0). A record that did not fit into the ring leaves a hole in it. */
struct vft_header {
	u64 at_ns;
	u64 seq;
	u32 size;
	u16 kind;
	u16 reserved;
	u32 tgid;
	u32 tid;
};

struct vft_vm_created {
	struct vft_header h;
	s32 fd;
	u32 pad;
};

struct vft_vcpu_created {
	struct vft_header h;
	s32 fd;
	u32 vcpu_id;
};

struct vft_region {
	struct vft_header h;
	u32 slot;
	u32 flags;
	u64 gpa;
	u64 bytes;
	u64 uaddr;
	s32 ret;
	u32 pad;
};

struct vft_cap {
	struct vft_header h;
	u32 cap;
	s32 ret;
	u64 arg0;
};

/* bitmap_bytes 0: the slot's size is not known. read_errors counts pieces that could not
 * be read, pieces those that were shipped (a piece of zeroes is not). */
struct vft_get_dirty_log {
	struct vft_header h;
	u64 enter_ns;
	u64 last_exit_ns;
	u64 bitmap_bytes;
	u64 walked_bytes;
	u32 slot;
	s32 ret;
	u32 pieces;
	u32 read_errors;
};

struct vft_clear_dirty_log {
	struct vft_header h;
	u64 enter_ns;
	u64 first_page;
	u64 bitmap_bytes;
	u64 walked_bytes;
	u32 num_pages;
	u32 slot;
	s32 ret;
	u32 pieces;
	u32 read_errors;
	u32 pad;
};

enum vft_fill { VFT_FILL_WORDS = 0, VFT_FILL_ONES = 1 };

#define VFT_PIECE_WORDS 512

/* A part of a bitmap. call_ns is enter_ns of the ioctl it belongs to (same tid).
 * Only the first `words` words are sent, none where fill is VFT_FILL_ONES. */
struct vft_piece {
	struct vft_header h;
	u64 call_ns;
	u64 first_page;
	u32 slot;
	u16 words;
	u16 fill;
	u64 word[VFT_PIECE_WORDS];
};

struct vft_reset_dirty_rings {
	struct vft_header h;
	u64 enter_ns;
	u64 last_exit_ns;
	u64 pushes;
	u64 ring_full_exits;
	s32 ret;
	u32 pieces;
	u32 untracked;
	u32 pad;
};

enum vft_clock_op { VFT_CLOCK_GET = 0, VFT_CLOCK_SET = 1, VFT_CLOCK_CTRL = 2 };

struct vft_clock {
	struct vft_header h;
	u64 enter_ns;
	u64 last_exit_ns;
	u32 op;
	s32 ret;
};

/* An entry into the guest, first ever (exit_ns 0) or more than 1 ms after the last exit. */
struct vft_run {
	struct vft_header h;
	u64 exit_ns;
};

/* KVM_SET_MP_STATE: QEMU's full register set ends with it (kvm_arch_put_registers). */
struct vft_vcpu_state {
	struct vft_header h;
	s32 ret;
	u32 pad;
};

enum vft_channel_op { VFT_SENDMSG = 0, VFT_SENDTO = 1, VFT_WRITE = 2, VFT_WRITEV = 3,
		      VFT_PWRITE = 4, VFT_PWRITEV = 5 };

/* Totals of one fd since the process began to log. error is the last negative errno that
 * was not EAGAIN or EINTR, 0 if none. */
struct vft_channel {
	struct vft_header h;
	u64 bytes;
	u64 calls;
	u64 first_ns;
	u64 last_ns;
	u64 error_ns;
	s32 fd;
	s32 error;
	u32 sender_tid;
	u32 op;
};

enum vft_uffd_op { VFT_UFFD_API = 0, VFT_UFFD_REGISTER = 1, VFT_UFFD_UNREGISTER = 2,
		   VFT_UFFD_COPY = 3, VFT_UFFD_ZEROPAGE = 4, VFT_UFFD_CONTINUE = 5 };

/* COPY, ZEROPAGE and CONTINUE: totals of the process, at most one record in 10 ms. */
struct vft_uffd {
	struct vft_header h;
	u64 calls;
	u64 bytes;
	u32 op;
	s32 ret;
};

/* The last thread of a process ended. */
struct vft_exit {
	struct vft_header h;
	u64 last_exit_ns;
};

#endif
