/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * VFIO's uAPI (include/uapi/linux/vfio.h, iommufd.h): the ioctls of devices, groups, containers and
 * iommufd. Some numbers have different meanings on a device fd and on a container fd. The arguments
 * distinguish them, because each kind of fd refuses the arguments of the other:
 *
 * - 0x3b75: DEVICE_FEATURE needs GET, SET or PROBE in flags; DIRTY_PAGES knows flags 1, 2, 4 only
 * - 0x3b71: PCI_HOT_RESET needs flags 0; MAP_DMA needs at least one flag
 * - 0x3b72: UNMAP_DMA has argsz 24, or 48 with a bitmap; QUERY_GFX_PLANE has a larger one
 *
 * So nothing here depends on the attach method.
 */
#define VFIO_GROUP_GET_DEVICE_FD 0x3b6a
#define VFIO_DEVICE_RESET 0x3b6f
#define VFIO_MAP_DMA_OR_HOT_RESET 0x3b71
#define VFIO_UNMAP_DMA 0x3b72
#define VFIO_FEATURE_OR_DIRTY_PAGES 0x3b75
#define VFIO_DEVICE_BIND_IOMMUFD 0x3b76
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT 0x3b77
#define VFIO_MIG_GET_PRECOPY_INFO 0x3b79
#define IOMMU_IOAS_COPY 0x3b83
#define IOMMU_IOAS_MAP 0x3b85
#define IOMMU_IOAS_UNMAP 0x3b86
#define IOMMU_HWPT_ALLOC 0x3b89
#define IOMMU_HWPT_SET_DIRTY_TRACKING 0x3b8b
#define IOMMU_HWPT_GET_DIRTY_BITMAP 0x3b8c
#define IOMMU_IOAS_MAP_FILE 0x3b8f

#define FEATURE_GET 0x10000
#define FEATURE_SET 0x20000
#define FEATURE_PROBE 0x40000
enum feature {
	MIGRATION = 1,
	MIG_DEVICE_STATE = 2,
	DMA_LOGGING_START = 6,
	DMA_LOGGING_STOP = 7,
	DMA_LOGGING_REPORT = 8,
	MIG_DATA_SIZE = 9
};
enum state {
	STOP_COPY = 3,
	RESUMING = 4,
	PRE_COPY = 6,
	PRE_COPY_P2P = 7
};

#define DATA_REPORT_NS 100000000
#define EINTR 4
#define EAGAIN 11
#define ENOMSG 42 /* in PRE_COPY: no data to read now */

static long (*const read_kernel_text)(void *to, u32 size, const void *from) = (void *)115;
static long (*const read_user_text)(void *to, u32 size, const void *from) = (void *)114;

struct fd_key {
	u32 tgid;
	s32 fd;
};

/* A device's data fd, from the request that returned it to the one that ends its state. */
struct data {
	u64 bytes;
	u64 calls;
	u64 first_ns;
	u64 last_ns;
	u64 error_ns;
	u64 reported_ns;
	s32 device_fd;
	s32 error;
	u32 op;
	u32 flags;
};

/* What to do at the end of a request. Each action is in the text once, so programs stay small and
 * compile quickly. */
enum act {
	NOTHING,
	OPENED,
	STATE,
	CAPABILITIES,
	DATA_SIZE,
	PRECOPY_INFO,
	RESET,
	TRACKING,
	PAGE_TABLE,
	DIRTY
};

/* One per thread inside a request. The walker of bitmap.h works on `t`. */
struct call {
	struct thread t;
	u64 iova;
	u64 length;
	u64 page_size;
	u64 bitmap;
	u64 file; /* of a bind request that a kprobe sees: struct file of the device */
	u32 by;
	u32 kept;
	u32 page_table; /* of iommufd */
	u32 how; /* by act: vft_vfio_how, vft_vfio_op, vft_vfio_reset_op, on, unmap */
};

struct dma {
	u64 maps;
	u64 unmaps;
	u64 first_ns; /* the first mapping while the process has no device */
	u32 devices;
	struct vft_vfio_mapped unsent;
};

BPF_TABLE("lru_hash", u64, struct call, calls, 4096);
BPF_TABLE("lru_hash", u64, struct fd_key, device_files, 4096);
BPF_TABLE("lru_hash", struct fd_key, u32, device_fds, 4096);
BPF_TABLE("lru_hash", struct fd_key, struct data, data_fds, 1024);
BPF_TABLE("lru_hash", struct fd_key, s32, data_of_device, 1024);
BPF_TABLE("lru_hash", u32, struct dma, dma_counts, 1024);

static __always_inline struct fd_key key_of(s32 fd)
{
	struct fd_key key = { .tgid = bpf_get_current_pid_tgid() >> 32, .fd = fd };

	return key;
}

#ifdef WAY_KPROBE
static __always_inline void read_device_name(char *name, void *device)
{
	void *text = NULL;

	/* struct device begins with its kobject, and that with its name */
	read_kernel(&text, sizeof(text), device);
	read_kernel_text(name, VFT_NAME, text);
}

/* Remembers a device's file, because its release passes the file and no fd, and reads its name. */
static __always_inline void device_met(u64 file, struct vft_vfio_open *e)
{
	struct fd_key key = key_of(e->fd);
	void *at = NULL;

	device_files.update(&file, &key);
	read_kernel(&at, sizeof(at), (void *)file + FILE_PRIVATE_OFFSET);
#ifdef VFIO_DEVICE_FILE
	read_kernel(&at, sizeof(at), at); /* struct vfio_device_file begins with its device */
#endif
	read_kernel(&at, sizeof(at), at); /* struct vfio_device begins with its struct device */
	read_device_name(e->name, at);
}
#endif

static __always_inline void report_data(struct vm *vm, s32 data_fd, struct data *d)
{
	struct vft_vfio_data e = {
		.bytes = d->bytes,
		.calls = d->calls,
		.first_ns = d->first_ns,
		.last_ns = d->last_ns,
		.error_ns = d->error_ns,
		.fd = d->device_fd,
		.data_fd = data_fd,
		.op = d->op,
		.error = d->error,
		.flags = d->flags,
	};

	d->reported_ns = now_ns();
	EMIT(vm, VFT_VFIO_DATA, &e);
}

/* Updates the device's data fd after a change of its state, and reports the totals. */
static __always_inline void follow_data(struct vm *vm, s32 fd, u32 state, s32 data_fd, s32 ret)
{
	bool moves = state == STOP_COPY || state == RESUMING || state == PRE_COPY ||
		     state == PRE_COPY_P2P;
	struct fd_key device = key_of(fd), key = key_of(data_fd);
	s32 *old = data_of_device.lookup(&device);

	if (old) {
		struct fd_key old_key = key_of(*old);
		struct data *d = data_fds.lookup(&old_key);

		if (d) {
			if (!moves)
				d->flags |= VFT_VFIO_DATA_LEFT;
			report_data(vm, old_key.fd, d);
			if (!moves)
				data_fds.delete(&old_key);
		}
		if (!moves)
			data_of_device.delete(&device);
	}
	if (!ret && moves && data_fd >= 0) {
		struct data fresh = {
			.device_fd = fd,
			.op = state == RESUMING ? VFT_VFIO_LOAD : VFT_VFIO_SAVE,
		};

		data_fds.update(&key, &fresh);
		data_of_device.update(&device, &data_fd);
	}
}

/* Counts a read from or a write to any fd of any process, when it returns. */
static __always_inline int data_moved(s32 fd, long ret)
{
	struct vm *vm = current_vm();
	struct fd_key key;
	struct data *d;
	bool report = false;

	if (!vm)
		return 0;
	key = key_of(fd);
	d = data_fds.lookup(&key);
	if (!d || ret == -EAGAIN || ret == -EINTR || ret == -ENOMSG)
		return 0;
	d->last_ns = now_ns();
	if (!d->first_ns)
		d->first_ns = d->last_ns;
	if (ret > 0) {
		__sync_fetch_and_add(&d->bytes, ret);
		__sync_fetch_and_add(&d->calls, 1);
	} else if (ret == 0) {
		report = !(d->flags & VFT_VFIO_DATA_END);
		d->flags |= VFT_VFIO_DATA_END;
	} else {
		report = true;
		d->error = ret;
		d->error_ns = d->last_ns;
	}
	if (report || d->last_ns - d->reported_ns > DATA_REPORT_NS)
		report_data(vm, fd, d);
	return 0;
}

static __always_inline void vfio_opened(struct vm *vm, struct vft_vfio_open *e)
{
	struct fd_key key = key_of(e->fd);
	struct dma *count = dma_counts.lookup(&key.tgid);
	u32 known = 1;

	if (count && e->how != VFT_VFIO_SEEN) {
		/* For the first device only: the guest's memory is mapped for it. */
		e->mapping_ns = count->first_ns;
		count->first_ns = 0;
		count->devices++;
	}
	device_fds.update(&key, &known);
	EMIT(vm, VFT_VFIO_OPEN, e);
}

static __always_inline void vfio_closed(struct vm *vm, s32 fd)
{
	struct fd_key key = key_of(fd);
	struct dma *count = dma_counts.lookup(&key.tgid);
	struct vft_vfio_close e = { .fd = fd };

	if (count && count->devices)
		count->devices--;
	follow_data(vm, fd, 0, -1, -1);
	device_fds.delete(&key);
	EMIT(vm, VFT_VFIO_CLOSE, &e);
}

static __always_inline void vfio_enter(s32 fd, u32 cmd, u64 arg, u64 file)
{
	u64 id = bpf_get_current_pid_tgid();
	struct call c = { .t = { .cmd = cmd, .arg = arg, .fd = fd }, .file = file };

	switch (cmd) {
	case VFIO_GROUP_GET_DEVICE_FD:
	case VFIO_DEVICE_RESET:
	case VFIO_MAP_DMA_OR_HOT_RESET:
	case VFIO_UNMAP_DMA:
	case VFIO_FEATURE_OR_DIRTY_PAGES:
	case VFIO_DEVICE_BIND_IOMMUFD:
	case VFIO_DEVICE_ATTACH_IOMMUFD_PT:
	case VFIO_MIG_GET_PRECOPY_INFO:
	case IOMMU_HWPT_ALLOC:
	case IOMMU_IOAS_COPY:
	case IOMMU_IOAS_MAP:
	case IOMMU_IOAS_UNMAP:
	case IOMMU_IOAS_MAP_FILE:
	case IOMMU_HWPT_SET_DIRTY_TRACKING:
	case IOMMU_HWPT_GET_DIRTY_BITMAP:
		if (current_vm()) {
			c.t.enter_ns = now_ns();
			calls.update(&id, &c);
		}
	}
}

static __always_inline void count_dma(struct call *c, bool unmap)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct dma *count = dma_counts.lookup(&tgid), fresh = {};
	u64 now = now_ns();

	if (!count) {
		dma_counts.update(&tgid, &fresh);
		count = dma_counts.lookup(&tgid);
		if (!count)
			return;
	}
	__sync_fetch_and_add(unmap ? &count->unmaps : &count->maps, 1);
	__sync_fetch_and_add(unmap ? &count->unsent.unmaps : &count->unsent.maps, 1);
	__sync_fetch_and_add(&count->unsent.took_ns, now - c->t.enter_ns);
	count->unsent.last_ns = now;
	if (!count->unsent.first_ns)
		count->unsent.first_ns = c->t.enter_ns;
	if (!unmap && !count->devices && !count->first_ns)
		count->first_ns = now;
}

/* Reports the mappings that were made since the last report. */
static __always_inline void report_mapped(struct vm *vm)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct dma *count = dma_counts.lookup(&tgid);
	struct vft_vfio_mapped e = {};

	if (!count || !count->unsent.first_ns)
		return;
	e = count->unsent;
	__builtin_memset(&count->unsent, 0, sizeof(count->unsent));
	EMIT(vm, VFT_VFIO_MAPPED, &e);
}

static __always_inline void dirty_done(struct vm *vm, struct call *c)
{
	struct vft_vfio_dirty e = {
		.enter_ns = c->t.enter_ns,
		.iova = c->iova,
		.length = c->length,
		.page_size = c->page_size,
		.bitmap_bytes = c->t.bitmap_bytes,
		.walked_bytes = c->t.walked_bytes,
		.fd = c->t.fd,
		.by = c->by,
		.unmap = c->how,
		.ret = c->t.ret,
		.pieces = c->t.pieces,
		.read_errors = c->t.read_errors,
		.kept = c->kept,
		.page_table = c->page_table,
	};

	EMIT(vm, VFT_VFIO_DIRTY, &e);
}

/* Reads the description of a bitmap at `at`: {iova, length, page size, [size,] bitmap}. */
static __always_inline enum act read_dirty(struct call *c, u64 at, bool sized, u32 by)
{
	u64 data[5] = {};

	read_user(data, sized ? 40 : 32, (void *)at);
	c->iova = data[0];
	c->length = data[1];
	c->page_size = data[2];
	c->bitmap = sized ? data[4] : data[3];
	c->by = by;
	return DIRTY;
}

static __always_inline enum act feature_act(struct call *c, u32 flags)
{
	c->by = VFT_VFIO_BY_DEVICE;
	if (flags & FEATURE_PROBE)
		return NOTHING;
	switch (flags & 0xffff) {
	case MIGRATION:
		return CAPABILITIES;
	case MIG_DEVICE_STATE:
		c->how = flags & FEATURE_SET ? VFT_VFIO_SET : VFT_VFIO_GET;
		return STATE;
	case DMA_LOGGING_START:
		c->how = 1;
		read_user(&c->page_size, sizeof(c->page_size), (void *)c->t.arg + 8);
		return TRACKING;
	case DMA_LOGGING_STOP:
		return TRACKING;
	case DMA_LOGGING_REPORT:
		return read_dirty(c, c->t.arg + 8, false, VFT_VFIO_BY_DEVICE);
	case MIG_DATA_SIZE:
		return DATA_SIZE;
	}
	return NOTHING;
}

static __always_inline enum act unmap_act(struct call *c, u32 argsz, u32 flags)
{
	if (argsz != 24 && argsz != 48)
		return NOTHING;
	count_dma(c, true);
	if (!(flags & 1) || argsz != 48)
		return NOTHING;
	c->how = 1;
	return read_dirty(c, c->t.arg + 8, true, VFT_VFIO_BY_CONTAINER);
}

static __always_inline enum act act_of(struct call *c)
{
	u32 head[2] = {}; /* argsz, flags; for iommufd: size, flags or hwpt */

	switch (c->t.cmd) {
	case VFIO_GROUP_GET_DEVICE_FD:
		c->how = VFT_VFIO_GROUP;
		return c->t.ret >= 0 ? OPENED : NOTHING;
	case VFIO_DEVICE_BIND_IOMMUFD:
		c->how = VFT_VFIO_BIND;
		return c->t.ret ? NOTHING : OPENED;
	case VFIO_DEVICE_RESET:
		c->how = VFT_VFIO_DEVICE_RESET;
		return RESET;
	case VFIO_MIG_GET_PRECOPY_INFO:
		return PRECOPY_INFO;
	case VFIO_DEVICE_ATTACH_IOMMUFD_PT:
	case IOMMU_HWPT_ALLOC:
		return PAGE_TABLE;
	case IOMMU_IOAS_COPY:
	case IOMMU_IOAS_MAP:
	case IOMMU_IOAS_UNMAP:
	case IOMMU_IOAS_MAP_FILE:
		/* iommufd refuses BARs that it cannot map (QEMU backends/iommufd.c): no map */
		if (!c->t.ret)
			count_dma(c, c->t.cmd == IOMMU_IOAS_UNMAP);
		return NOTHING;
	case IOMMU_HWPT_GET_DIRTY_BITMAP:
		/* {size, page table, flags, reserved, ...}; flag 1 is NO_CLEAR */
		read_user(head, sizeof(head), (void *)c->t.arg + 4);
		c->page_table = head[0];
		c->kept = head[1] & 1;
		return read_dirty(c, c->t.arg + 16, false, VFT_VFIO_BY_IOMMUFD);
	}
	read_user(head, sizeof(head), (void *)c->t.arg);
	switch (c->t.cmd) {
	case VFIO_FEATURE_OR_DIRTY_PAGES:
		if (head[1] & (FEATURE_GET | FEATURE_SET | FEATURE_PROBE))
			return feature_act(c, head[1]);
		if (head[1] == 4)
			return read_dirty(c, c->t.arg + 8, true, VFT_VFIO_BY_CONTAINER);
		c->by = VFT_VFIO_BY_CONTAINER;
		c->how = head[1] == 1;
		return TRACKING;
	case VFIO_MAP_DMA_OR_HOT_RESET:
		if (head[1]) {
			count_dma(c, false);
			return NOTHING;
		}
		c->how = VFT_VFIO_HOT_RESET;
		return RESET;
	case VFIO_UNMAP_DMA:
		return unmap_act(c, head[0], head[1]);
	case IOMMU_HWPT_SET_DIRTY_TRACKING:
		c->by = VFT_VFIO_BY_IOMMUFD;
		c->how = head[1] & 1;
		return TRACKING;
	}
	return NOTHING;
}

static __always_inline void state_done(struct vm *vm, struct call *c)
{
	struct vft_vfio_state e = {
		.enter_ns = c->t.enter_ns,
		.fd = c->t.fd,
		.ret = c->t.ret,
		.data_fd = -1,
		.op = c->how,
	};

	read_user(&e.state, sizeof(e.state), (void *)c->t.arg + 8);
	if (e.op == VFT_VFIO_SET) {
		if (!e.ret)
			read_user(&e.data_fd, sizeof(e.data_fd), (void *)c->t.arg + 12);
		follow_data(vm, e.fd, e.state, e.data_fd, e.ret);
	}
	EMIT(vm, VFT_VFIO_STATE, &e);
}

static __always_inline void tracking_done(struct vm *vm, struct call *c)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct dma *count = dma_counts.lookup(&tgid);
	struct vft_vfio_dirty_tracking e = {
		.enter_ns = c->t.enter_ns,
		.page_size = c->page_size,
		.fd = c->t.fd,
		.by = c->by,
		.on = c->how,
		.ret = c->t.ret,
	};

	if (count) {
		e.dma_maps = count->maps;
		e.dma_unmaps = count->unmaps;
	}
	EMIT(vm, VFT_VFIO_DIRTY_TRACKING, &e);
}

/* Returns true if there is a bitmap to walk. */
static __always_inline bool dirty_begin(u64 id, struct vm *vm, struct call *c)
{
	u64 page_size = c->page_size;

	if (!c->t.ret && page_size) {
		c->t.bitmap_bytes = (c->length / page_size + 63) / 64 * 8;
		if (walk_begin(id, &c->t, c->bitmap))
			return true;
	}
	dirty_done(vm, c);
	return false;
}

/* Returns true if there is a bitmap to walk: the caller continues in the walker, which ends the
 * request. */
static __always_inline bool vfio_exit(u64 id, struct vm *vm, struct call *c)
{
	struct thread *t = &c->t;
	void *arg = (void *)t->arg + 8;
	enum act act = act_of(c);

	if (act != NOTHING)
		report_mapped(vm);
	switch (act) {
	case OPENED: {
		struct vft_vfio_open e = { .fd = t->fd, .how = c->how };

		if (c->how == VFT_VFIO_GROUP) {
			e.fd = t->ret;
			read_user_text(e.name, sizeof(e.name), (void *)t->arg);
		}
#ifdef WAY_KPROBE
		if (c->file)
			device_met(c->file, &e);
#endif
		vfio_opened(vm, &e);
		break;
	}
	case STATE:
		state_done(vm, c);
		break;
	case CAPABILITIES: {
		struct vft_vfio_migration e = { .fd = t->fd, .ret = t->ret };

		read_user(&e.flags, sizeof(e.flags), arg);
		EMIT(vm, VFT_VFIO_MIGRATION, &e);
		break;
	}
	case DATA_SIZE: {
		struct vft_vfio_data_size e = { .fd = t->fd, .ret = t->ret };

		read_user(&e.stop_copy_length, sizeof(e.stop_copy_length), arg);
		EMIT(vm, VFT_VFIO_DATA_SIZE, &e);
		break;
	}
	case PRECOPY_INFO: {
		struct vft_vfio_precopy_info e = { .data_fd = t->fd, .ret = t->ret };

		read_user(&e.initial_bytes, 16, arg);
		EMIT(vm, VFT_VFIO_PRECOPY_INFO, &e);
		break;
	}
	case RESET: {
		struct vft_vfio_reset e = {
			.enter_ns = t->enter_ns,
			.fd = t->fd,
			.op = c->how,
			.ret = t->ret,
		};

		EMIT(vm, VFT_VFIO_RESET, &e);
		break;
	}
	case TRACKING:
		tracking_done(vm, c);
		break;
	case PAGE_TABLE: {
		bool attach = t->cmd == VFIO_DEVICE_ATTACH_IOMMUFD_PT;
		struct vft_vfio_page_table e = {
			.fd = t->fd,
			.op = attach ? VFT_VFIO_TABLE_ATTACH : VFT_VFIO_TABLE_ALLOC,
			.ret = t->ret,
		};
		u32 flags = 0;

		/* {argsz, flags, id}, and {size, flags, device, parent, id}; flag 2 is
		 * DIRTY_TRACKING */
		read_user(&e.id, sizeof(e.id), (void *)t->arg + (attach ? 8 : 16));
		read_user(&flags, sizeof(flags), (void *)t->arg + 4);
		e.tracks = !attach && flags & 2;
		EMIT(vm, VFT_VFIO_PAGE_TABLE, &e);
		break;
	}
	case DIRTY:
		return dirty_begin(id, vm, c);
	default:
		break;
	}
	return false;
}
