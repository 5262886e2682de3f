/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * The records that the kernel side sends to Python and that a recording holds, and the only list of
 * their kinds. Every record starts with struct vft_header; behind it is the struct with the kind's
 * name, or JSON. `make layout` generates vftrace/events/layout.py from this file. Fields have fixed
 * width, natural alignment and host byte order. Times are CLOCK_BOOTTIME in ns.
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
	VFT_BURST = 15,
	VFT_THREAD_EXIT = 16,
	VFT_BITMAP = 17,
	VFT_VFIO_OPEN = 20,
	VFT_VFIO_CLOSE = 21,
	VFT_VFIO_STATE = 22,
	VFT_VFIO_MIGRATION = 23,
	VFT_VFIO_DATA_SIZE = 24,
	VFT_VFIO_PRECOPY_INFO = 25,
	VFT_VFIO_RESET = 26,
	VFT_VFIO_DIRTY_TRACKING = 27,
	VFT_VFIO_DIRTY = 28,
	VFT_VFIO_DATA = 29,
	VFT_VFIO_MAPPED = 30,
	VFT_VFIO_PAGE_TABLE = 31,
	VFT_MAILBOX = 40,
	VFT_VF_RESET = 41,
	VFT_VIRTCHNL = 42,
	VFT_CALL = 50,
	VFT_OFF_CPU = 51,

	/* The collector writes these, never the kernel side. These have a struct below ... */
	VFT_TICK = 100,
	VFT_CLOCK_SAMPLE = 101,
	VFT_LOST = 102,
	VFT_GONE = 103,
	VFT_VCPU_TIME = 104,

	/* ... and these JSON: the fields of the class in vftrace/events/. */
	VFT_PROCESS = 110,
	VFT_FILE_DESCRIPTOR = 111,
	VFT_END = 112,
	VFT_DEVICE = 113,
	VFT_MAILBOX_FLOOD = 114,
	VFT_VF_ADDRESS = 115,
	VFT_NET_LINK = 116,
	VFT_NET_ADDRESS = 117,
	VFT_NET_MISSED = 118,
	VFT_PING_SETTINGS = 120,
	VFT_PING_GAP = 121,
	VFT_PING_SUMMARY = 122,
	VFT_UNCOUNTED = 123,
	VFT_TABLE_FULL = 124,
	VFT_RECORDED_MIGRATION = 125,
	VFT_VM_LOST = 126,
	VFT_PING_ROUND_TRIPS = 127,
	VFT_MISSED_RUNS = 128,
	VFT_UNTRACED = 129,
	VFT_CALLS_TRACED = 140,
	VFT_CALL_THREAD = 141,
	VFT_CALL_FD = 142,
	VFT_CALLS_MISSED = 143,
	VFT_VCPU_BASELINE = 144,
};

/* seq numbers the records of one process (tgid), or of no process (tgid 0). A record that did not
 * fit into the ring buffer leaves a gap. Records of kind VFT_BITMAP have numbers of their own,
 * because they go through a ring buffer of their own. */
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
	u64 size;
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

/* bitmap_bytes 0: the slot's size is unknown. read_errors counts the pieces that could not be read,
 * pieces those that were sent (a piece of zeroes is not sent). */
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

enum vft_fill {
	VFT_FILL_WORDS = 0,
	VFT_FILL_ONES = 1
};

#define VFT_PIECE_WORDS 512

/* A part of a bitmap, in recordings of versions before VFT_BITMAP. call_ns is enter_ns of the ioctl
 * it belongs to (same tid). Only the first `words` words are sent. Where all their bits are set the
 * collector drops the words and sets fill to VFT_FILL_ONES. */
struct vft_piece {
	struct vft_header h;
	u64 call_ns;
	u64 first_page;
	u32 slot;
	u16 words;
	u16 fill;
	u64 word[VFT_PIECE_WORDS];
};

#define VFT_BITMAP_WORDS 4096
#define VFT_BLOCK_WORDS 16
#define VFT_BITMAP_ENTRIES 4352 /* all words, and a head for each block */

/* What is not zero in `words` words of a bitmap. call_ns is enter_ns of the ioctl it belongs to
 * (same tid). The words are divided into blocks of VFT_BLOCK_WORDS. `entry` holds, in order of
 * place and only as many as there are, for each block with a bit set a head and words. A head is
 *
 *   bits  0-15  the number of the block
 *   bits 16-31  bit 16 + i is set if the i-th word of the block follows
 *   bits 32-47  if not zero: as many blocks from this one on have all bits set, and no word follows
 */
struct vft_bitmap {
	struct vft_header h;
	u64 call_ns;
	u64 first_page;
	u32 slot;
	u32 words;
	u64 entry[VFT_BITMAP_ENTRIES];
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

enum vft_clock_op {
	VFT_CLOCK_GET = 0,
	VFT_CLOCK_SET = 1,
	VFT_CLOCK_CTRL = 2
};

/* clock is the guest's kvmclock. The destination sets the value that the source read last (QEMU
 * hw/i386/kvm/clock.c), so it identifies the attempt on both hosts. */
struct vft_clock {
	struct vft_header h;
	u64 enter_ns;
	u64 last_exit_ns;
	u32 op;
	s32 ret;
	u64 clock;
};

/* An entry into the guest: the first one (exit_ns 0), or one more than 1 ms after the last exit. */
struct vft_run {
	struct vft_header h;
	u64 exit_ns;
};

/* KVM_SET_MP_STATE, with which QEMU ends a full register set (kvm_arch_put_registers). */
struct vft_vcpu_state {
	struct vft_header h;
	s32 ret;
	u32 pad;
};

enum vft_channel_op {
	VFT_SENDMSG = 0,
	VFT_SENDTO = 1,
	VFT_WRITE = 2,
	VFT_WRITEV = 3,
	VFT_PWRITE = 4,
	VFT_PWRITEV = 5
};

/* Totals of one fd since the process began to log dirty pages. error is the last negative errno
 * other than EAGAIN and EINTR, 0 if there was none. */
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

/* Totals of one fd: the time spent sending and the bytes sent in it. Pauses of more than 2 ms
 * between two calls do not count (a VMM that limits its bandwidth sleeps), pauses inside a call do.
 */
struct vft_burst {
	struct vft_header h;
	u64 bytes;
	u64 ns;
	s32 fd;
	u32 pad;
};

enum vft_uffd_op {
	VFT_UFFD_API = 0,
	VFT_UFFD_REGISTER = 1,
	VFT_UFFD_UNREGISTER = 2,
	VFT_UFFD_COPY = 3,
	VFT_UFFD_ZEROPAGE = 4,
	VFT_UFFD_CONTINUE = 5
};

/* For COPY, ZEROPAGE and CONTINUE: totals of the process, at most one record in 10 ms. */
struct vft_uffd {
	struct vft_header h;
	u64 calls;
	u64 bytes;
	u32 op;
	s32 ret;
};

#define VFT_NAME 48

enum vft_vfio_how {
	VFT_VFIO_GROUP = 0,
	VFT_VFIO_BIND = 1,
	VFT_VFIO_SEEN = 2
};

/* A VFIO device fd: returned by its group, bound to an iommufd, or first seen in another request.
 * The name is a PCI address or a UUID, empty if unknown. mapping_ns: when the VMM began to map the
 * guest's memory for its first device, else 0. */
struct vft_vfio_open {
	struct vft_header h;
	s32 fd;
	u32 how;
	char name[VFT_NAME];
	u64 mapping_ns;
};

struct vft_vfio_close {
	struct vft_header h;
	s32 fd;
	u32 pad;
};

enum vft_vfio_op {
	VFT_VFIO_GET = 0,
	VFT_VFIO_SET = 1
};

/* DEVICE_FEATURE MIG_DEVICE_STATE. data_fd -1: the request returned none. */
struct vft_vfio_state {
	struct vft_header h;
	u64 enter_ns;
	s32 fd;
	u32 op;
	u32 state;
	s32 data_fd;
	s32 ret;
	u32 pad;
};

/* DEVICE_FEATURE MIGRATION: STOP_COPY 1, P2P 2, PRE_COPY 4. */
struct vft_vfio_migration {
	struct vft_header h;
	u64 flags;
	s32 fd;
	s32 ret;
};

struct vft_vfio_data_size {
	struct vft_header h;
	u64 stop_copy_length;
	s32 fd;
	s32 ret;
};

struct vft_vfio_precopy_info {
	struct vft_header h;
	u64 initial_bytes;
	u64 dirty_bytes;
	s32 data_fd;
	s32 ret;
};

enum vft_vfio_reset_op {
	VFT_VFIO_DEVICE_RESET = 0,
	VFT_VFIO_HOT_RESET = 1,
	VFT_VFIO_FLR = 2
};

/* An FLR is recorded when it begins (enter_ns 0), by the device's name; its fd is unknown (-1). */
struct vft_vfio_reset {
	struct vft_header h;
	u64 enter_ns;
	s32 fd;
	u32 op;
	char name[VFT_NAME];
	s32 ret;
	u32 pad;
};

enum vft_vfio_by {
	VFT_VFIO_BY_DEVICE = 0,
	VFT_VFIO_BY_CONTAINER = 1,
	VFT_VFIO_BY_IOMMUFD = 2
};

/* Dirty tracking of DMA is switched on or off. dma_maps, dma_unmaps: totals of the process. */
struct vft_vfio_dirty_tracking {
	struct vft_header h;
	u64 enter_ns;
	u64 page_size;
	u64 dma_maps;
	u64 dma_unmaps;
	s32 fd;
	u32 by;
	u32 on;
	s32 ret;
};

/* A bitmap of pages written by DMA. Page 0 of its pieces is at iova. */
struct vft_vfio_dirty {
	struct vft_header h;
	u64 enter_ns;
	u64 iova;
	u64 length;
	u64 page_size;
	u64 bitmap_bytes;
	u64 walked_bytes;
	s32 fd;
	u32 by;
	u32 unmap;
	s32 ret;
	u32 pieces;
	u32 read_errors;
	u32 kept;
	u32 page_table;
};

/* The mappings of guest memory for devices since the last such record of the process: sent with the
 * next other request, if there were any. first_ns and last_ns: the begin of the first request and
 * the end of the last; took_ns: the time within requests. */
struct vft_vfio_mapped {
	struct vft_header h;
	u64 first_ns;
	u64 last_ns;
	u64 took_ns;
	u64 maps;
	u64 unmaps;
};

enum vft_vfio_page_table_op {
	VFT_VFIO_TABLE_ALLOC = 0,
	VFT_VFIO_TABLE_ATTACH = 1
};

/* iommufd: a page table is made, or a device is attached to one or to an address space; `id` is
 * iommufd's number of it. `tracks`: it was made to mark written pages. */
struct vft_vfio_page_table {
	struct vft_header h;
	s32 fd;
	u32 op;
	u32 id;
	u32 tracks;
	s32 ret;
	u32 pad;
};

enum vft_vfio_data_op {
	VFT_VFIO_SAVE = 0,
	VFT_VFIO_LOAD = 1
};
#define VFT_VFIO_DATA_END 1 /* a read returned 0: end of the data */
#define VFT_VFIO_DATA_LEFT 2 /* the device has left the state that the fd belongs to */

/* Totals of a device's data fd since a request returned it. */
struct vft_vfio_data {
	struct vft_header h;
	u64 bytes;
	u64 calls;
	u64 first_ns;
	u64 last_ns;
	u64 error_ns;
	s32 fd;
	s32 data_fd;
	u32 op;
	s32 error;
	u32 flags;
	u32 pad;
};

#define VFT_PF_NAME 16
#define VFT_MAILBOX_WORDS 16

enum vft_driver {
	VFT_IXGBE = 1,
	VFT_IGB = 2,
	VFT_I40E = 3,
	VFT_ICE = 4
};
enum vft_direction {
	VFT_FROM_VF = 0,
	VFT_TO_VF = 1
};

/* A message in the mailbox of a VF of the card `pf` (its PCI address). The message had `size`
 * words, of which the record has the first `words`; the rest is 0. ret: the return value of the
 * driver's read; if it is not 0 there are no words. */
struct vft_mailbox {
	struct vft_header h;
	char pf[VFT_PF_NAME];
	u32 driver;
	u32 vf;
	u32 direction;
	u32 size;
	u32 words;
	s32 ret;
	u32 word[VFT_MAILBOX_WORDS];
};

#define VFT_VIRTCHNL_WORDS 10

/* A virtchnl message of a VF of the card `pf`. Of its `size` bytes only the first `bytes` are here,
 * the others are 0. status: the PF's answer. ret: nonzero if the PF could not send the message. */
struct vft_virtchnl {
	struct vft_header h;
	char pf[VFT_PF_NAME];
	u32 driver;
	u32 vf;
	u32 direction;
	u32 opcode;
	s32 status;
	u32 size;
	u32 bytes;
	s32 ret;
	u32 word[VFT_VIRTCHNL_WORDS];
};

/* The PF's driver found that the VF had a function level reset, as opposed to a RESET message. */
struct vft_vf_reset {
	struct vft_header h;
	char pf[VFT_PF_NAME];
	u32 driver;
	u32 vf;
};

/* The last thread of a process exited. lost, bulk_lost: its records for which the ring buffers had
 * no room. */
struct vft_exit {
	struct vft_header h;
	u64 last_exit_ns;
	u64 lost;
	u64 bulk_lost;
};

/* A thread of a process that logs dirty pages ended. Its process continues, or ends with it. */
struct vft_thread_exit {
	struct vft_header h;
};

/* System calls of one thread while its guest was stopped: one of at least 100 us (count 1), or the
 * shorter ones with the same nr, cmd and fd that ended within 10 ms. start_ns 0: it began before
 * the calls were traced. cmd: the request of an ioctl, else 0. fd: the first argument if it can be
 * an fd, else -1. ret: what the last one returned. sleep_ns, queue_ns: times in them that the
 * thread slept, and that it waited for a CPU. The collector holds such records back until they
 * belong to a blackout, and writes them as records of its own, so process and thread are fields. */
struct vft_call {
	struct vft_header h;
	u64 start_ns;
	u64 end_ns;
	u64 ns;
	u64 longest_ns;
	u64 sleep_ns;
	u64 queue_ns;
	s64 ret;
	u32 pid;
	u32 thread;
	u32 nr;
	u32 cmd;
	s32 fd;
	u32 count;
};

enum vft_off_cpu_reason {
	VFT_QUEUED = 0,
	VFT_STOPPED = 1,
	VFT_SLEPT = 2
};

/* A thread was off its CPU for at least 100 us: it waited for a CPU, was stopped by a signal, or
 * slept outside of a system call, as a page fault does. `state` is the task's (TASK_*). */
struct vft_off_cpu {
	struct vft_header h;
	u64 start_ns;
	u64 end_ns;
	u32 pid;
	u32 thread;
	u32 reason;
	u32 state;
};

struct vft_tick {
	struct vft_header h;
};

struct vft_clock_sample {
	struct vft_header h;
	s64 realtime_offset_ns;
	s64 error_ns;
};

/* count: records of both ring buffers; bulk: those among them that are parts of bitmaps. */
struct vft_lost {
	struct vft_header h;
	u64 count;
	u64 bulk;
};

struct vft_gone {
	struct vft_header h;
	u64 pid;
};

/* Where the time of a vCPU thread goes. THROTTLE: the VMM waits with a timeout outside of KVM_RUN,
 * as QEMU's auto-converge does. LIMIT: it sleeps after an exit for a full dirty ring, as QEMU's
 * dirty limit does. STOPPED: it waits for something else, until the VM runs or for a lock. */
enum vft_vcpu_where {
	VFT_VCPU_UNKNOWN = 0,
	VFT_VCPU_GUEST = 1,
	VFT_VCPU_IDLE = 2,
	VFT_VCPU_FAULT = 3,
	VFT_VCPU_EXIT = 4,
	VFT_VCPU_USER = 5,
	VFT_VCPU_QUEUE = 6,
	VFT_VCPU_THROTTLE = 7,
	VFT_VCPU_LIMIT = 8,
	VFT_VCPU_RING = 9,
	VFT_VCPU_STOPPED = 10
};
#define VFT_VCPU_STATES 11
#define VFT_VCPU_WAITS 24

/* Totals of one vCPU thread from begun_ns to until_ns: the times sum up to that. `vcpu` is its
 * number, ~0 if it is not known. waits: page faults in which it slept, by the power of two of
 * microseconds that they were shorter than. held_*: the latest time that the VMM held it (THROTTLE
 * or LIMIT), held_until_ns 0 while that lasts. */
struct vft_vcpu_time {
	struct vft_header h;
	u64 begun_ns;
	u64 until_ns;
	u64 guest_ns;
	u64 idle_ns;
	u64 fault_ns;
	u64 exit_ns;
	u64 user_ns;
	u64 queue_ns;
	u64 throttle_ns;
	u64 limit_ns;
	u64 ring_ns;
	u64 stopped_ns;
	u64 unknown_ns;
	u64 exits;
	u64 faults;
	u64 ring_full;
	u64 waits;
	u64 wait_ns;
	u64 longest_wait_ns;
	u64 held_from_ns;
	u64 held_until_ns;
	u32 pid;
	u32 thread;
	u32 vcpu;
	u32 held_state;
	u32 wait[VFT_VCPU_WAITS];
};

#endif
