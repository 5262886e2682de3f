/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What vftsteer and vftphys share: a VFIO device whose migration a script controls
 *
 * vftsteer.c has the commands and the log. A module includes this once, and has of its own how a
 * device comes to be and how it writes to the VMM's memory (steer_write_pages).
 */

#include <linux/anon_inodes.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/device.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/math64.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/vfio.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>
#include <linux/iova_bitmap.h>

#define STEER_MAX_DEVICES	16
#define STEER_STATES		8
#define STEER_LOG_ENTRIES	4096
#define STEER_CONFIG_SIZE	PCI_CFG_SPACE_SIZE
#define STEER_INDEX_SHIFT	40
#define STEER_MAGIC		0x7265657473746676ULL
#define STEER_DELAY_MAX_US	(30 * USEC_PER_SEC)
#define STEER_TOUCH_MAX		65536

/* Before 6.2 neither precopy nor the size of the state were in the uAPI. */
#ifdef VFIO_MIGRATION_PRE_COPY
#define STEER_HAS_PRE_COPY	1
#else
#define STEER_HAS_PRE_COPY	0
#define VFIO_MIGRATION_PRE_COPY	4
#endif
#define STEER_PRE_COPY		6
#define STEER_PRE_COPY_P2P	7
#define STEER_FEATURE_DATA_SIZE	9

/*
 * From 6.7 on iova_bitmap belongs to iommufd and is a stub without it: a report would then fail in
 * the core, so a device that offers DMA logging there could not be migrated.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 7, 0) || IS_ENABLED(CONFIG_IOMMUFD_DRIVER)
#define STEER_HAS_DMA_LOGGING	1
#else
#define STEER_HAS_DMA_LOGGING	0
#endif

static const char *const state_names[STEER_STATES] = {
	"ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P",
};

struct steer_header {
	__le64 magic;
	__le64 precopy_bytes;
	__le64 stop_bytes;
};

struct steer_arc {
	u32 delay_us;
	u32 fail_times;
	int error;
	bool breaks;
};

struct steer_event {
	u64 at_ns;
	const char *what;
	s8 from;
	s8 to;
	s32 ret;
	u64 a;
	u64 b;
};

struct steer_file;

struct steer_dev {
	struct vfio_device vdev;
	struct dentry *dir;
	u8 config[STEER_CONFIG_SIZE] __aligned(8);

	/* guards all below but the event log */
	struct mutex lock;
	unsigned int state;
	struct steer_file *file;
	struct steer_arc arcs[STEER_STATES][STEER_STATES];
	u64 precopy_bytes;
	u64 stop_bytes;
	u64 rate;
	u64 fail_read_at;
	int fail_read;
	u64 fail_write_at;
	int fail_write;
	bool logging;
	struct xarray logged;

	spinlock_t log_lock;
	unsigned int events;
	struct steer_event *log;
};

/* The data file, in one direction. It outlives the device's interest in it, hence `gone`. */
struct steer_file {
	struct file *filp;
	struct steer_dev *dev;
	struct mutex lock;
	struct steer_header header;
	u64 moved;
	u64 ready;
	u64 total;
	u64 rate;
	bool final;
	bool gone;
};

static struct dentry *steer_debugfs;

/* The device writes a word to each of the pages, by whatever way its module has to the VMM's memory. */
static int steer_write_pages(struct steer_dev *dev, u64 iova, u64 pages);

static struct steer_dev *to_steer(struct vfio_device *vdev)
{
	return container_of(vdev, struct steer_dev, vdev);
}

static void note(struct steer_dev *dev, const char *what, int from, int to, int ret, u64 a, u64 b)
{
	struct steer_event event = {
		.at_ns = ktime_get_boottime_ns(),
		.what = what, .from = from, .to = to, .ret = ret, .a = a, .b = b,
	};

	spin_lock(&dev->log_lock);
	if (dev->events < STEER_LOG_ENTRIES)
		dev->log[dev->events++] = event;
	spin_unlock(&dev->log_lock);
}

/* Never less: msleep() counts jiffies, which jump where ticks are late. */
static void take_us(unsigned int us)
{
	usleep_range(us, us + 1);
}

static bool saves(unsigned int state)
{
	return state == VFIO_DEVICE_STATE_STOP_COPY || state == STEER_PRE_COPY ||
	       state == STEER_PRE_COPY_P2P;
}

static bool does_dma(unsigned int state)
{
	return state == VFIO_DEVICE_STATE_RUNNING || state == VFIO_DEVICE_STATE_RUNNING_P2P ||
	       state == STEER_PRE_COPY || state == STEER_PRE_COPY_P2P;
}

static u64 state_size(struct steer_dev *dev)
{
	u64 size = sizeof(struct steer_header) + dev->stop_bytes;

	if (dev->vdev.migration_flags & VFIO_MIGRATION_PRE_COPY)
		size += dev->precopy_bytes;
	return size;
}

/* ---- the data file ---- */

static void file_take_time(u64 rate, size_t bytes)
{
	if (rate)
		take_us(min_t(u64, div64_u64((u64)bytes * USEC_PER_SEC, rate), STEER_DELAY_MAX_US));
}

static ssize_t file_read(struct file *filp, char __user *buf, size_t len, loff_t *unused)
{
	struct steer_file *file = filp->private_data;
	struct steer_dev *dev;
	size_t done = 0, part;
	ssize_t ret;

	mutex_lock(&file->lock);
	if (file->gone) {
		ret = -ENODEV;
		goto out;
	}
	dev = file->dev;
	if (dev->fail_read && file->moved >= dev->fail_read_at) {
		ret = -dev->fail_read;
		dev->fail_read = 0;
		note(dev, "read-failed", -1, -1, ret, file->moved, 0);
		goto out;
	}
	len = min_t(u64, len, file->ready - file->moved);
	if (dev->fail_read && file->moved + len > dev->fail_read_at)
		len = dev->fail_read_at - file->moved;
	if (!len) {
		/* all there is for now, or all there is */
		ret = file->final ? 0 : -ENOMSG;
		goto out;
	}
	if (file->moved < sizeof(file->header)) {
		part = min_t(size_t, len, sizeof(file->header) - file->moved);
		if (copy_to_user(buf, (u8 *)&file->header + file->moved, part)) {
			ret = -EFAULT;
			goto out;
		}
		done = part;
	}
	if (clear_user(buf + done, len - done)) {
		ret = -EFAULT;
		goto out;
	}
	file_take_time(file->rate, len);
	file->moved += len;
	ret = len;
out:
	mutex_unlock(&file->lock);
	return ret;
}

static ssize_t file_write(struct file *filp, const char __user *buf, size_t len, loff_t *unused)
{
	struct steer_file *file = filp->private_data;
	struct steer_dev *dev;
	size_t part;
	ssize_t ret;

	mutex_lock(&file->lock);
	if (file->gone) {
		ret = -ENODEV;
		goto out;
	}
	dev = file->dev;
	if (dev->fail_write && file->moved + len > dev->fail_write_at) {
		ret = -dev->fail_write;
		dev->fail_write = 0;
		note(dev, "write-failed", -1, -1, ret, file->moved, 0);
		goto out;
	}
	if (file->moved < sizeof(file->header)) {
		part = min_t(size_t, len, sizeof(file->header) - file->moved);
		if (copy_from_user((u8 *)&file->header + file->moved, buf, part)) {
			ret = -EFAULT;
			goto out;
		}
	}
	file_take_time(file->rate, len);
	file->moved += len;
	ret = len;
out:
	mutex_unlock(&file->lock);
	return ret;
}

#if STEER_HAS_PRE_COPY
/* Named as all variant drivers of the kernel name it: vftrace finds it by that. */
static long steer_precopy_ioctl(struct file *filp, unsigned int cmd, unsigned long arg)
{
	const unsigned long size = offsetofend(struct vfio_precopy_info, dirty_bytes);
	struct steer_file *file = filp->private_data;
	struct vfio_precopy_info info;
	long ret = 0;

	if (cmd != VFIO_MIG_GET_PRECOPY_INFO)
		return -ENOTTY;
	if (copy_from_user(&info, (void __user *)arg, size))
		return -EFAULT;
	if (info.argsz < size)
		return -EINVAL;
	mutex_lock(&file->lock);
	if (file->gone) {
		ret = -ENODEV;
	} else if (file->final) {
		ret = -EINVAL;
	} else {
		info.initial_bytes = file->ready - file->moved;
		info.dirty_bytes = 0;
	}
	mutex_unlock(&file->lock);
	if (!ret && copy_to_user((void __user *)arg, &info, size))
		ret = -EFAULT;
	return ret;
}
#endif

static int file_release(struct inode *inode, struct file *filp)
{
	struct steer_file *file = filp->private_data;

	mutex_destroy(&file->lock);
	kfree(file);
	return 0;
}

static const struct file_operations save_fops = {
	.owner = THIS_MODULE,
	.read = file_read,
#if STEER_HAS_PRE_COPY
	.unlocked_ioctl = steer_precopy_ioctl,
#endif
	.release = file_release,
};

static const struct file_operations load_fops = {
	.owner = THIS_MODULE,
	.write = file_write,
	.release = file_release,
};

static struct file *open_file(struct steer_dev *dev, bool load)
{
	struct steer_file *file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);

	if (!file)
		return ERR_PTR(-ENOMEM);
	file->filp = anon_inode_getfile(load ? "vftsteer-load" : "vftsteer-save",
					load ? &load_fops : &save_fops, file,
					load ? O_WRONLY : O_RDONLY);
	if (IS_ERR(file->filp)) {
		struct file *error = file->filp;

		kfree(file);
		return error;
	}
	stream_open(file->filp->f_inode, file->filp);
	mutex_init(&file->lock);
	file->dev = dev;
	file->rate = dev->rate;
	file->total = state_size(dev);
	file->ready = file->total - dev->stop_bytes;
	file->header.magic = load ? 0 : cpu_to_le64(STEER_MAGIC);
	file->header.stop_bytes = cpu_to_le64(dev->stop_bytes);
	file->header.precopy_bytes =
		cpu_to_le64(file->ready - sizeof(struct steer_header));
	dev->file = file;
	/* one reference is ours, one goes to the VMM */
	get_file(file->filp);
	return file->filp;
}

static void close_file(struct steer_dev *dev, const char *what)
{
	struct steer_file *file = dev->file;

	if (!file)
		return;
	mutex_lock(&file->lock);
	note(dev, what, -1, -1, 0, file->moved, 0);
	file->gone = true;
	mutex_unlock(&file->lock);
	dev->file = NULL;
	fput(file->filp);
}

static void finish_file(struct steer_file *file)
{
	mutex_lock(&file->lock);
	file->ready = file->total;
	file->final = true;
	mutex_unlock(&file->lock);
}

static bool loaded_whole(struct steer_file *file)
{
	const struct steer_header *header = &file->header;
	bool whole;

	mutex_lock(&file->lock);
	whole = le64_to_cpu(header->magic) == STEER_MAGIC &&
		file->moved == sizeof(*header) + le64_to_cpu(header->precopy_bytes) +
			       le64_to_cpu(header->stop_bytes);
	mutex_unlock(&file->lock);
	return whole;
}

/* ---- the state machine ---- */

/* What an arc does beside taking its time: open, complete or close the data file. */
static struct file *walk_arc(struct steer_dev *dev, unsigned int from, unsigned int to)
{
	struct file *filp = NULL;

	if (to == VFIO_DEVICE_STATE_RESUMING)
		return open_file(dev, true);
	if (from == VFIO_DEVICE_STATE_RESUMING) {
		if (!loaded_whole(dev->file))
			return ERR_PTR(-EINVAL);
		close_file(dev, "loaded");
		return NULL;
	}
	if (saves(to) && !saves(from)) {
		filp = open_file(dev, false);
		if (IS_ERR(filp))
			return filp;
	}
	if (to == VFIO_DEVICE_STATE_STOP_COPY)
		finish_file(dev->file);
	if (saves(from) && !saves(to))
		close_file(dev, "saved");
	return filp;
}

static struct file *step(struct steer_dev *dev, unsigned int to)
{
	struct steer_arc *arc = &dev->arcs[dev->state][to];
	unsigned int from = dev->state;
	struct file *filp;

	note(dev, "arc", from, to, 0, 0, 0);
	if (arc->delay_us)
		take_us(arc->delay_us);
	if (arc->fail_times) {
		arc->fail_times--;
		if (arc->breaks) {
			close_file(dev, "lost");
			dev->state = VFIO_DEVICE_STATE_ERROR;
			note(dev, "state", from, dev->state, -arc->error, 0, 0);
		}
		return ERR_PTR(-arc->error);
	}
	filp = walk_arc(dev, from, to);
	if (!IS_ERR(filp)) {
		dev->state = to;
		note(dev, "state", from, to, 0, 0, 0);
	}
	return filp;
}

static struct file *steer_set_state(struct vfio_device *vdev, enum vfio_device_mig_state asked)
{
	struct steer_dev *dev = to_steer(vdev);
	enum vfio_device_mig_state next;
	struct file *filp = NULL;
	unsigned int from;
	int ret;

	mutex_lock(&dev->lock);
	from = dev->state;
	note(dev, "ask", from, asked, 0, 0, 0);
	while (dev->state != asked) {
		ret = vfio_mig_get_next_state(vdev, dev->state, asked, &next);
		filp = ret ? ERR_PTR(ret) : step(dev, next);
		if (IS_ERR(filp))
			break;
	}
	note(dev, "answer", from, asked, PTR_ERR_OR_ZERO(filp), 0, 0);
	mutex_unlock(&dev->lock);
	return filp;
}

static int steer_get_state(struct vfio_device *vdev, enum vfio_device_mig_state *state)
{
	struct steer_dev *dev = to_steer(vdev);

	mutex_lock(&dev->lock);
	*state = dev->state;
	mutex_unlock(&dev->lock);
	return 0;
}

static u64 size_left(struct steer_dev *dev)
{
	u64 left;

	mutex_lock(&dev->lock);
	left = state_size(dev);
	if (dev->file && saves(dev->state))
		left -= dev->file->moved;
	mutex_unlock(&dev->lock);
	return left;
}

#if STEER_HAS_PRE_COPY
static int steer_get_data_size(struct vfio_device *vdev, unsigned long *stop_copy_length)
{
	*stop_copy_length = size_left(to_steer(vdev));
	return 0;
}
#else
/*
 * The core does not know this feature yet, so it asks the driver. Without an answer QEMU assumes
 * 100 GiB and never switches over (hw/vfio/migration.c, VFIO_MIG_STOP_COPY_SIZE).
 */
static int steer_feature(struct vfio_device *vdev, u32 flags, void __user *arg, size_t argsz)
{
	u64 length = size_left(to_steer(vdev));
	int ret;

	if ((flags & VFIO_DEVICE_FEATURE_MASK) != STEER_FEATURE_DATA_SIZE)
		return -ENOTTY;
	ret = vfio_check_feature(flags, argsz, VFIO_DEVICE_FEATURE_GET, sizeof(length));
	if (ret != 1)
		return ret;
	return copy_to_user(arg, &length, sizeof(length)) ? -EFAULT : 0;
}
#endif

static const struct vfio_migration_ops steer_migration_ops = {
	.migration_set_state = steer_set_state,
	.migration_get_state = steer_get_state,
#if STEER_HAS_PRE_COPY
	.migration_get_data_size = steer_get_data_size,
#endif
};

/* ---- DMA, and the log of it ---- */

#if STEER_HAS_DMA_LOGGING
static int steer_log_start(struct vfio_device *vdev, struct rb_root_cached *ranges, u32 nnodes,
			   u64 *page_size)
{
	struct steer_dev *dev = to_steer(vdev);

	*page_size = PAGE_SIZE;
	mutex_lock(&dev->lock);
	dev->logging = true;
	note(dev, "log-start", -1, -1, 0, *page_size, nnodes);
	mutex_unlock(&dev->lock);
	return 0;
}

static int steer_log_stop(struct vfio_device *vdev)
{
	struct steer_dev *dev = to_steer(vdev);

	mutex_lock(&dev->lock);
	dev->logging = false;
	xa_destroy(&dev->logged);
	note(dev, "log-stop", -1, -1, 0, 0, 0);
	mutex_unlock(&dev->lock);
	return 0;
}

static int steer_log_read_and_clear(struct vfio_device *vdev, unsigned long iova,
				    unsigned long length, struct iova_bitmap *dirty)
{
	struct steer_dev *dev = to_steer(vdev);
	unsigned long index, pages = 0;
	void *entry;

	mutex_lock(&dev->lock);
	xa_for_each_range(&dev->logged, index, entry, iova >> PAGE_SHIFT,
			  (iova + length - 1) >> PAGE_SHIFT) {
		iova_bitmap_set(dirty, (u64)index << PAGE_SHIFT, PAGE_SIZE);
		xa_erase(&dev->logged, index);
		pages++;
	}
	if (pages)
		note(dev, "reported", -1, -1, 0, iova, pages);
	mutex_unlock(&dev->lock);
	return 0;
}

static const struct vfio_log_ops steer_log_ops = {
	.log_start = steer_log_start,
	.log_stop = steer_log_stop,
	.log_read_and_clear = steer_log_read_and_clear,
};
#endif

static int touch_pages(struct steer_dev *dev, u64 iova, u64 pages)
{
	u64 page;
	int ret;

	if (pages > STEER_TOUCH_MAX || iova & ~PAGE_MASK)
		return -EINVAL;
	if (!does_dma(dev->state))
		return -EBUSY;
	ret = steer_write_pages(dev, iova, pages);
	for (page = 0; !ret && dev->logging && page < pages; page++)
		ret = xa_err(xa_store(&dev->logged, (iova >> PAGE_SHIFT) + page, xa_mk_value(1),
				      GFP_KERNEL));
	note(dev, "touched", -1, -1, ret, iova, pages);
	return ret;
}

/* ---- the rest of a PCI device, as little as a VMM accepts ---- */

static bool in_config(loff_t pos, size_t count, u64 *offset)
{
	*offset = pos & (BIT_ULL(STEER_INDEX_SHIFT) - 1);
	return pos >> STEER_INDEX_SHIFT == VFIO_PCI_CONFIG_REGION_INDEX &&
	       *offset <= STEER_CONFIG_SIZE && count <= STEER_CONFIG_SIZE - *offset;
}

static ssize_t steer_read(struct vfio_device *vdev, char __user *buf, size_t count, loff_t *pos)
{
	u64 offset;

	if (!in_config(*pos, count, &offset))
		return -EINVAL;
	if (copy_to_user(buf, to_steer(vdev)->config + offset, count))
		return -EFAULT;
	*pos += count;
	return count;
}

static ssize_t steer_write(struct vfio_device *vdev, const char __user *buf, size_t count,
			   loff_t *pos)
{
	struct steer_dev *dev = to_steer(vdev);
	u64 offset, at;
	u8 byte;

	if (!in_config(*pos, count, &offset))
		return -EINVAL;
	/* Only the command register can be written: there are no BARs and no interrupts. */
	for (at = offset; at < offset + count; at++) {
		if (copy_from_user(&byte, buf + (at - offset), 1))
			return -EFAULT;
		if (at == PCI_COMMAND || at == PCI_COMMAND + 1)
			dev->config[at] = byte;
	}
	*pos += count;
	return count;
}

static int fill_region(struct vfio_region_info *info)
{
	if (info->index >= VFIO_PCI_NUM_REGIONS)
		return -EINVAL;
	info->offset = (u64)info->index << STEER_INDEX_SHIFT;
	info->size = 0;
	info->flags = 0;
	if (info->index == VFIO_PCI_CONFIG_REGION_INDEX) {
		info->size = STEER_CONFIG_SIZE;
		info->flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
	}
	return 0;
}

/* From 6.19 on the core copies the region's description; before, the driver does. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
static int steer_region(struct vfio_device *vdev, struct vfio_region_info *info,
			struct vfio_info_cap *caps)
{
	return fill_region(info);
}
#endif

static void steer_reset(struct steer_dev *dev)
{
	mutex_lock(&dev->lock);
	note(dev, "reset", dev->state, VFIO_DEVICE_STATE_RUNNING, 0, 0, 0);
	close_file(dev, "lost");
	dev->state = VFIO_DEVICE_STATE_RUNNING;
	mutex_unlock(&dev->lock);
}

static long steer_ioctl(struct vfio_device *vdev, unsigned int cmd, unsigned long arg)
{
	void __user *user = (void __user *)arg;

	switch (cmd) {
	case VFIO_DEVICE_GET_INFO: {
		const size_t size = offsetofend(struct vfio_device_info, num_irqs);
		struct vfio_device_info info;

		if (copy_from_user(&info, user, size))
			return -EFAULT;
		if (info.argsz < size)
			return -EINVAL;
		info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
		info.num_regions = VFIO_PCI_NUM_REGIONS;
		info.num_irqs = VFIO_PCI_NUM_IRQS;
		return copy_to_user(user, &info, size) ? -EFAULT : 0;
	}
	case VFIO_DEVICE_GET_REGION_INFO: {
		const size_t size = offsetofend(struct vfio_region_info, offset);
		struct vfio_region_info info;
		int ret;

		if (copy_from_user(&info, user, size))
			return -EFAULT;
		if (info.argsz < size)
			return -EINVAL;
		ret = fill_region(&info);
		if (ret)
			return ret;
		return copy_to_user(user, &info, size) ? -EFAULT : 0;
	}
	case VFIO_DEVICE_GET_IRQ_INFO: {
		const size_t size = offsetofend(struct vfio_irq_info, count);
		struct vfio_irq_info info;

		if (copy_from_user(&info, user, size))
			return -EFAULT;
		if (info.argsz < size || info.index > VFIO_PCI_MSIX_IRQ_INDEX)
			return -EINVAL;
		info.flags = VFIO_IRQ_INFO_EVENTFD;
		info.count = 0;
		return copy_to_user(user, &info, size) ? -EFAULT : 0;
	}
	case VFIO_DEVICE_RESET:
		steer_reset(to_steer(vdev));
		return 0;
	}
	return -ENOTTY;
}

static int steer_open(struct vfio_device *vdev)
{
	note(to_steer(vdev), "open", -1, -1, 0, 0, 0);
	return 0;
}

static void steer_close(struct vfio_device *vdev)
{
	struct steer_dev *dev = to_steer(vdev);

	mutex_lock(&dev->lock);
	close_file(dev, "lost");
	dev->state = VFIO_DEVICE_STATE_RUNNING;
	dev->logging = false;
	xa_destroy(&dev->logged);
	note(dev, "close", -1, -1, 0, 0, 0);
	mutex_unlock(&dev->lock);
}

/* ---- steering ---- */

static int state_by_name(const char *name)
{
	return match_string(state_names, STEER_STATES, name);
}

static int steer_command(struct steer_dev *dev, int argc, char **argv)
{
	u64 number[2] = {};
	int from, to, i;

	if (argc >= 4 && (!strcmp(argv[0], "delay") || !strcmp(argv[0], "fail"))) {
		struct steer_arc *arc;

		from = state_by_name(argv[1]);
		to = state_by_name(argv[2]);
		if (from < 0 || to < 0)
			return -EINVAL;
		arc = &dev->arcs[from][to];
		if (!strcmp(argv[0], "delay")) {
			u32 us;

			if (argc != 4 || kstrtou32(argv[3], 10, &us) || us > STEER_DELAY_MAX_US)
				return -EINVAL;
			arc->delay_us = us;
			return 0;
		}
		if (argc < 5 || argc > 6 || (argc == 6 && strcmp(argv[5], "error")) ||
		    kstrtoint(argv[3], 10, &i) || i <= 0 || i > MAX_ERRNO ||
		    kstrtou32(argv[4], 10, &arc->fail_times))
			return -EINVAL;
		arc->error = i;
		arc->breaks = argc == 6;
		return 0;
	}
	if (argc < 2 || argc > 3)
		return -EINVAL;
	for (i = 1; i < argc; i++)
		if (kstrtou64(argv[i], 0, &number[i - 1]))
			return -EINVAL;
	if (!strcmp(argv[0], "rate") && argc == 2) {
		dev->rate = number[0];
		return 0;
	}
	if (argc != 3)
		return -EINVAL;
	if (!strcmp(argv[0], "bytes")) {
		dev->precopy_bytes = number[0];
		dev->stop_bytes = number[1];
		return 0;
	}
	if (!strcmp(argv[0], "touch"))
		return touch_pages(dev, number[0], number[1]);
	if (number[1] > MAX_ERRNO)
		return -EINVAL;
	if (!strcmp(argv[0], "fail-read")) {
		dev->fail_read_at = number[0];
		dev->fail_read = number[1];
		return 0;
	}
	if (!strcmp(argv[0], "fail-write")) {
		dev->fail_write_at = number[0];
		dev->fail_write = number[1];
		return 0;
	}
	return -EINVAL;
}

static ssize_t control_write(struct file *filp, const char __user *buf, size_t count, loff_t *pos)
{
	struct steer_dev *dev = filp->private_data;
	char line[128], *rest = line, *word, *argv[6];
	int argc = 0, ret;

	if (count >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, buf, count))
		return -EFAULT;
	line[count] = 0;
	while ((word = strsep(&rest, " \n"))) {
		if (!*word)
			continue;
		if (argc == ARRAY_SIZE(argv))
			return -EINVAL;
		argv[argc++] = word;
	}
	if (!argc)
		return -EINVAL;
	mutex_lock(&dev->lock);
	ret = steer_command(dev, argc, argv);
	mutex_unlock(&dev->lock);
	return ret ?: count;
}

static const struct file_operations control_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = control_write,
};

static const char *name_of(int state)
{
	return state >= 0 && state < STEER_STATES ? state_names[state] : "-";
}

static int log_show(struct seq_file *seq, void *unused)
{
	struct steer_dev *dev = seq->private;
	unsigned int i, events;

	spin_lock(&dev->log_lock);
	events = dev->events;
	spin_unlock(&dev->log_lock);
	/* entries are never changed once written */
	for (i = 0; i < events; i++) {
		const struct steer_event *event = &dev->log[i];

		seq_printf(seq, "%llu %s %s %s %d %llu %llu\n", event->at_ns, event->what,
			   name_of(event->from), name_of(event->to), event->ret, event->a, event->b);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(log);

static int state_show(struct seq_file *seq, void *unused)
{
	struct steer_dev *dev = seq->private;

	seq_printf(seq, "%s\n", name_of(READ_ONCE(dev->state)));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

/* ---- coming and going ---- */

static int steer_init_device(struct vfio_device *vdev, u32 migration_flags, bool logs)
{
	struct steer_dev *dev = to_steer(vdev);

	dev->log = kvcalloc(STEER_LOG_ENTRIES, sizeof(*dev->log), GFP_KERNEL);
	if (!dev->log)
		return -ENOMEM;
	mutex_init(&dev->lock);
	spin_lock_init(&dev->log_lock);
	xa_init(&dev->logged);
	dev->state = VFIO_DEVICE_STATE_RUNNING;
	dev->stop_bytes = PAGE_SIZE;
	/* no vendor's, no class's */
	*(__le16 *)&dev->config[PCI_VENDOR_ID] = cpu_to_le16(0x1234);
	*(__le16 *)&dev->config[PCI_DEVICE_ID] = cpu_to_le16(0x7674);
	dev->config[PCI_CLASS_DEVICE + 1] = PCI_CLASS_OTHERS;
	vdev->migration_flags = migration_flags;
	vdev->mig_ops = &steer_migration_ops;
#if STEER_HAS_DMA_LOGGING
	if (logs)
		vdev->log_ops = &steer_log_ops;
#endif
	return 0;
}

static void steer_release(struct vfio_device *vdev)
{
	struct steer_dev *dev = to_steer(vdev);

	xa_destroy(&dev->logged);
	mutex_destroy(&dev->lock);
	kvfree(dev->log);
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
	vfio_free_device(vdev);
#endif
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
#define STEER_REGION_OPS .get_region_info_caps = steer_region,
#else
#define STEER_REGION_OPS
#endif
#if STEER_HAS_PRE_COPY
#define STEER_IOMMUFD_OPS(kind)					\
	.bind_iommufd = vfio_iommufd_##kind##_bind,		\
	.unbind_iommufd = vfio_iommufd_##kind##_unbind,		\
	.attach_ioas = vfio_iommufd_##kind##_attach_ioas,	\
	.detach_ioas = vfio_iommufd_##kind##_detach_ioas,
#else
#define STEER_IOMMUFD_OPS(kind) .device_feature = steer_feature,
#endif

/* `kind`: whether the device has an IOMMU (physical) or pins by itself (emulated). */
#define STEER_OPS(kind)						\
	.name = KBUILD_MODNAME,					\
	.release = steer_release,				\
	.open_device = steer_open,				\
	.close_device = steer_close,				\
	.read = steer_read,					\
	.write = steer_write,					\
	.ioctl = steer_ioctl,					\
	STEER_REGION_OPS					\
	STEER_IOMMUFD_OPS(kind)

static void steer_add_files(struct steer_dev *dev, const char *name)
{
	dev->dir = debugfs_create_dir(name, steer_debugfs);
	debugfs_create_file("control", 0200, dev->dir, dev, &control_fops);
	debugfs_create_file("log", 0400, dev->dir, dev, &log_fops);
	debugfs_create_file("state", 0400, dev->dir, dev, &state_fops);
}

/* iova_bitmap belongs to iommufd where there is one. */
#if IS_ENABLED(CONFIG_IOMMUFD_DRIVER)
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
MODULE_IMPORT_NS(IOMMUFD);
#else
MODULE_IMPORT_NS("IOMMUFD");
#endif
#endif
