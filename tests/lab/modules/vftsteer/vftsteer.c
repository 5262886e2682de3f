// SPDX-License-Identifier: GPL-2.0-only
/*
 * vftsteer - a VFIO device that migrates as it is told
 *
 * Part of vftrace's lab. Devices are created as mediated devices of one of four types (what they
 * can do) and steered through debugfs while a VMM migrates them:
 *
 *   /sys/kernel/debug/vftsteer/<uuid>/control   one command a write
 *   /sys/kernel/debug/vftsteer/<uuid>/log       what happened, with the time it did
 *   /sys/kernel/debug/vftsteer/<uuid>/state     the name of the state
 *
 * Commands (states by their uAPI names, errors as positive numbers):
 *   delay FROM TO US                 that arc takes US microseconds
 *   fail FROM TO ERRNO TIMES [error] that arc fails so often, and leaves the device in ERROR
 *   bytes PRECOPY STOP               size of the state, readable before and only after the stop
 *   rate BYTES_PER_SECOND            speed of the data file, 0 for no limit
 *   fail-read AT ERRNO               reading the data file fails once at that byte
 *   fail-write AT ERRNO              so does writing
 *   touch IOVA PAGES                 the device writes to these pages now
 *
 * The log's times are CLOCK_BOOTTIME in ns. It is the truth that a tracer is held against.
 */

#include <linux/mdev.h>

#include "steer.h"

static struct steer_type {
	struct mdev_type type;
	u32 flags;
} steer_types[] = {
	{ { .sysfs_name = "stop-copy", .pretty_name = "stop and copy" },
	  VFIO_MIGRATION_STOP_COPY },
	{ { .sysfs_name = "p2p", .pretty_name = "peer to peer" },
	  VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P },
#if STEER_HAS_PRE_COPY
	{ { .sysfs_name = "precopy", .pretty_name = "precopy" },
	  VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_PRE_COPY },
	{ { .sysfs_name = "precopy-p2p", .pretty_name = "precopy and peer to peer" },
	  VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_PRE_COPY | VFIO_MIGRATION_P2P },
#endif
};

static struct mdev_type *steer_type_list[ARRAY_SIZE(steer_types)];
static struct mdev_parent steer_parent;
static struct platform_device *steer_platform;

struct steer_touch {
	struct work_struct work;
	struct steer_dev *dev;
	u64 iova;
	u64 pages;
	int ret;
};

static void touch_work(struct work_struct *work)
{
	struct steer_touch *touch = container_of(work, struct steer_touch, work);
	u64 page, stamp = ktime_get_boottime_ns();

	for (page = 0; page < touch->pages && !touch->ret; page++)
		touch->ret = vfio_dma_rw(&touch->dev->vdev, touch->iova + page * PAGE_SIZE, &stamp,
					 sizeof(stamp), true);
}

static int steer_write_pages(struct steer_dev *dev, u64 iova, u64 pages)
{
	struct steer_touch touch = { .dev = dev, .iova = iova, .pages = pages };

	/* type1 lets a kernel thread borrow the VMM's memory, but no other process */
	INIT_WORK_ONSTACK(&touch.work, touch_work);
	schedule_work(&touch.work);
	flush_work(&touch.work);
	destroy_work_on_stack(&touch.work);
	return touch.ret;
}

/* ---- coming and going ---- */

static int steer_init(struct vfio_device *vdev)
{
	struct mdev_device *mdev = to_mdev_device(vdev->dev);

	return steer_init_device(vdev, container_of(mdev->type, struct steer_type, type)->flags, true);
}

static const struct vfio_device_ops steer_ops = {
	STEER_OPS(emulated)
	.init = steer_init,
};

static int steer_probe(struct mdev_device *mdev)
{
	struct steer_dev *dev = vfio_alloc_device(steer_dev, vdev, &mdev->dev, &steer_ops);
	int ret;

	if (IS_ERR(dev))
		return PTR_ERR(dev);
	ret = vfio_register_emulated_iommu_dev(&dev->vdev);
	if (ret) {
		vfio_put_device(&dev->vdev);
		return ret;
	}
	steer_add_files(dev, dev_name(&mdev->dev));
	dev_set_drvdata(&mdev->dev, dev);
	return 0;
}

static void steer_remove(struct mdev_device *mdev)
{
	struct steer_dev *dev = dev_get_drvdata(&mdev->dev);

	debugfs_remove_recursive(dev->dir);
	vfio_unregister_group_dev(&dev->vdev);
	vfio_put_device(&dev->vdev);
}

static struct mdev_driver steer_driver = {
	.device_api = VFIO_DEVICE_API_PCI_STRING,
	.max_instances = STEER_MAX_DEVICES,
	.probe = steer_probe,
	.remove = steer_remove,
	.driver = {
		.name = "vftsteer",
		.owner = THIS_MODULE,
		.mod_name = KBUILD_MODNAME,
	},
};

/* The name of the parent's driver is the first half of the names of its types. */
static int steer_platform_probe(struct platform_device *unused)
{
	return 0;
}

static struct platform_driver steer_platform_driver = {
	.driver = { .name = "vftsteer" },
};

static int __init steer_start(void)
{
	size_t i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(steer_types); i++)
		steer_type_list[i] = &steer_types[i].type;
	steer_debugfs = debugfs_create_dir("vftsteer", NULL);
	steer_platform = platform_create_bundle(&steer_platform_driver, steer_platform_probe,
						NULL, 0, NULL, 0);
	if (IS_ERR(steer_platform)) {
		ret = PTR_ERR(steer_platform);
		goto no_platform;
	}
	ret = mdev_register_driver(&steer_driver);
	if (ret)
		goto no_driver;
	ret = mdev_register_parent(&steer_parent, &steer_platform->dev, &steer_driver,
				   steer_type_list, ARRAY_SIZE(steer_type_list));
	if (ret)
		goto no_parent;
	return 0;

no_parent:
	mdev_unregister_driver(&steer_driver);
no_driver:
	platform_device_unregister(steer_platform);
	platform_driver_unregister(&steer_platform_driver);
no_platform:
	debugfs_remove_recursive(steer_debugfs);
	return ret;
}

static void __exit steer_stop(void)
{
	mdev_unregister_parent(&steer_parent);
	mdev_unregister_driver(&steer_driver);
	platform_device_unregister(steer_platform);
	platform_driver_unregister(&steer_platform_driver);
	debugfs_remove_recursive(steer_debugfs);
}

module_init(steer_start);
module_exit(steer_stop);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("VFIO device for tests that migrates as it is told");
