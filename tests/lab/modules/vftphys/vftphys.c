// SPDX-License-Identifier: GPL-2.0-only
/*
 * vftphys - vftsteer's devices behind an IOMMU that tracks what they write
 *
 * Part of vftrace's lab. A mediated device has no IOMMU, so iommufd has no page table for it, and
 * QEMU's emulated IOMMUs mark no pages. This module registers an IOMMU of its own, whose page tables
 * mark the pages that a device wrote, as AMD's (HDSUP) and Intel's (SLADS) do, and platform devices
 * behind it: vft.0, vft.1, ... in /sys/bus/platform/devices. Commands and log are vftsteer's, in
 *
 *   /sys/kernel/debug/vftphys/vft.N/{control,log,state}
 *
 * `touch` writes through the page table. What the IOMMU reports is in the log of the first device
 * that is attached to the page table: `reported`, or `peeked` where the marks stay (NO_CLEAR), with
 * the address that was asked and the number of marked pages.
 *
 * For kernels with iommufd. The module cannot be unloaded: its own devices hold it, as those of every
 * IOMMU driver do. iommufd wants allow_unsafe_interrupts, since the devices' MSIs are not isolated:
 * they have none.
 */

#include <linux/highmem.h>
#include <linux/iommu.h>
#include <linux/iommufd.h>
#include <linux/property.h>
#include <uapi/linux/iommufd.h>

#include "../vftsteer/steer.h"

#define PAGE_DIRTY	1UL	/* an entry of `pages` is (pfn << 1) | dirty */

static unsigned int flags =
	VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P | VFIO_MIGRATION_PRE_COPY;
module_param(flags, uint, 0444);
MODULE_PARM_DESC(flags, "VFIO_MIGRATION_* of the devices");
static unsigned int devices = 2;
module_param(devices, uint, 0444);
static bool own_log;
module_param(own_log, bool, 0444);
MODULE_PARM_DESC(own_log, "the devices can log their DMA themselves too");

/* ---- the IOMMU ---- */

struct phys_domain {
	struct iommu_domain domain;
	struct xarray pages;
	bool tracking;
};

struct phys_dev {
	struct platform_device *pdev;
	struct phys_domain *attached;
	struct steer_dev *steer;
};

static struct iommu_device phys_iommu;
static struct fwnode_handle *phys_node;
static struct phys_dev phys_devs[STEER_MAX_DEVICES];
static const struct iommu_ops phys_ops;
/* guards what a device is attached to, and entries of page tables from the devices' writes */
static DEFINE_MUTEX(phys_lock);

static struct phys_dev *to_phys(struct device *dev)
{
	return &phys_devs[to_platform_device(dev)->id];
}

static struct phys_domain *to_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct phys_domain, domain);
}

static int phys_map(struct iommu_domain *domain, unsigned long iova, phys_addr_t paddr,
		    size_t pgsize, size_t pgcount, int prot, gfp_t gfp, size_t *mapped)
{
	size_t i;
	int ret;

	for (i = 0; i < pgcount * pgsize; i += PAGE_SIZE) {
		ret = xa_err(xa_store(&to_domain(domain)->pages, (iova + i) >> PAGE_SHIFT,
				      xa_mk_value(PHYS_PFN(paddr + i) << 1), gfp));
		if (ret)
			return ret;
		*mapped += PAGE_SIZE;
	}
	return 0;
}

static size_t phys_unmap(struct iommu_domain *domain, unsigned long iova, size_t pgsize,
			 size_t pgcount, struct iommu_iotlb_gather *gather)
{
	size_t i;

	mutex_lock(&phys_lock);
	for (i = 0; i < pgcount * pgsize; i += PAGE_SIZE)
		xa_erase(&to_domain(domain)->pages, (iova + i) >> PAGE_SHIFT);
	mutex_unlock(&phys_lock);
	return i;
}

static phys_addr_t phys_iova_to_phys(struct iommu_domain *domain, dma_addr_t iova)
{
	void *entry = xa_load(&to_domain(domain)->pages, iova >> PAGE_SHIFT);

	return entry ? PFN_PHYS(xa_to_value(entry) >> 1) + offset_in_page(iova) : 0;
}

static void phys_set_attached(struct device *dev, struct phys_domain *domain)
{
	mutex_lock(&phys_lock);
	to_phys(dev)->attached = domain;
	mutex_unlock(&phys_lock);
}

/* From 6.19 on the core says what a device was attached to. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
#define AND_OLD_DOMAIN , struct iommu_domain *old
#else
#define AND_OLD_DOMAIN
#endif

static int phys_attach(struct iommu_domain *domain, struct device *dev AND_OLD_DOMAIN)
{
	phys_set_attached(dev, to_domain(domain));
	return 0;
}

static int phys_block(struct iommu_domain *domain, struct device *dev AND_OLD_DOMAIN)
{
	phys_set_attached(dev, NULL);
	return 0;
}

static const struct iommu_domain_ops phys_blocking_ops = { .attach_dev = phys_block };
static struct iommu_domain phys_blocking = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &phys_blocking_ops,
};

static void phys_domain_free(struct iommu_domain *domain)
{
	xa_destroy(&to_domain(domain)->pages);
	kfree(to_domain(domain));
}

static int phys_set_dirty_tracking(struct iommu_domain *domain, bool enabled)
{
	to_domain(domain)->tracking = enabled;
	return 0;
}

static void phys_note_report(struct phys_domain *domain, bool cleared, u64 iova, u64 pages)
{
	unsigned int i;

	for (i = 0; i < STEER_MAX_DEVICES; i++)
		if (phys_devs[i].steer && phys_devs[i].attached == domain) {
			note(phys_devs[i].steer, cleared ? "reported" : "peeked", -1, -1, 0, iova,
			     pages);
			return;
		}
}

static int phys_read_and_clear_dirty(struct iommu_domain *domain, unsigned long iova, size_t size,
				     unsigned long how, struct iommu_dirty_bitmap *dirty)
{
	struct phys_domain *mine = to_domain(domain);
	bool clear = !(how & IOMMU_DIRTY_NO_CLEAR);
	unsigned long index, pages = 0;
	void *entry;

	/* Without a bitmap the core only has the marks cleared, before tracking begins. */
	if (!mine->tracking && dirty->bitmap)
		return -EINVAL;
	mutex_lock(&phys_lock);
	xa_for_each_range(&mine->pages, index, entry, iova >> PAGE_SHIFT,
			  (iova + size - 1) >> PAGE_SHIFT) {
		if (!(xa_to_value(entry) & PAGE_DIRTY))
			continue;
		iommu_dirty_bitmap_record(dirty, index << PAGE_SHIFT, PAGE_SIZE);
		pages++;
		/* replaces a value, which takes no memory */
		if (clear)
			xa_store(&mine->pages, index, xa_mk_value(xa_to_value(entry) & ~PAGE_DIRTY),
				 GFP_KERNEL);
	}
	if (pages && dirty->bitmap)
		phys_note_report(mine, clear, iova, pages);
	mutex_unlock(&phys_lock);
	return 0;
}

static const struct iommu_dirty_ops phys_dirty_ops = {
	.set_dirty_tracking = phys_set_dirty_tracking,
	.read_and_clear_dirty = phys_read_and_clear_dirty,
};

static struct iommu_domain *phys_alloc(struct device *dev)
{
	struct phys_domain *mine = kzalloc(sizeof(*mine), GFP_KERNEL);

	if (!mine)
		return NULL;
	mine->domain.type = IOMMU_DOMAIN_UNMANAGED;
	mine->domain.ops = phys_ops.default_domain_ops;
	mine->domain.pgsize_bitmap = PAGE_SIZE;
	mine->domain.geometry.aperture_end = ULONG_MAX;
	mine->domain.geometry.force_aperture = true;
	xa_init(&mine->pages);
	return &mine->domain;
}

static struct iommu_domain *phys_alloc_flags(struct device *dev, u32 how,
					     const struct iommu_user_data *data)
{
	struct iommu_domain *domain;

	if (data || how & ~IOMMU_HWPT_ALLOC_DIRTY_TRACKING)
		return ERR_PTR(-EOPNOTSUPP);
	domain = phys_alloc(dev);
	if (!domain)
		return ERR_PTR(-ENOMEM);
	if (how & IOMMU_HWPT_ALLOC_DIRTY_TRACKING)
		domain->dirty_ops = &phys_dirty_ops;
	return domain;
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
static struct iommu_domain *phys_alloc_user(struct device *dev, u32 how,
					    struct iommu_domain *parent,
					    const struct iommu_user_data *data)
{
	return parent ? ERR_PTR(-EOPNOTSUPP) : phys_alloc_flags(dev, how, data);
}
#endif

static bool phys_capable(struct device *dev, enum iommu_cap cap)
{
	return cap == IOMMU_CAP_CACHE_COHERENCY || cap == IOMMU_CAP_DIRTY_TRACKING;
}

static struct iommu_device *phys_probe(struct device *dev)
{
	struct iommu_fwspec *spec = dev_iommu_fwspec_get(dev);

	return spec && spec->iommu_fwnode == phys_node ? &phys_iommu : ERR_PTR(-ENODEV);
}

static const struct iommu_ops phys_ops = {
	.owner = THIS_MODULE,
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
	.pgsize_bitmap = PAGE_SIZE,
	.domain_alloc_user = phys_alloc_user,
#else
	.domain_alloc_paging_flags = phys_alloc_flags,
#endif
	.default_domain = &phys_blocking,
	.blocked_domain = &phys_blocking,
	.domain_alloc_paging = phys_alloc,
	.capable = phys_capable,
	.device_group = generic_device_group,
	.probe_device = phys_probe,
	.default_domain_ops = &(const struct iommu_domain_ops){
		.attach_dev = phys_attach,
		.map_pages = phys_map,
		.unmap_pages = phys_unmap,
		.iova_to_phys = phys_iova_to_phys,
		.free = phys_domain_free,
	},
};

/* A write through the page table, which marks the page. The caller holds phys_lock. */
static int phys_write(struct phys_domain *domain, u64 iova, u64 word)
{
	void *entry = domain ? xa_load(&domain->pages, iova >> PAGE_SHIFT) : NULL;
	void *at;

	if (!entry)
		return -EFAULT;
	at = kmap_local_pfn(xa_to_value(entry) >> 1);
	memcpy(at, &word, sizeof(word));
	kunmap_local(at);
	if (!domain->tracking)
		return 0;
	return xa_err(xa_store(&domain->pages, iova >> PAGE_SHIFT,
			       xa_mk_value(xa_to_value(entry) | PAGE_DIRTY), GFP_KERNEL));
}

static int steer_write_pages(struct steer_dev *dev, u64 iova, u64 pages)
{
	struct phys_dev *phys = to_phys(dev->vdev.dev);
	u64 page, stamp = ktime_get_boottime_ns();
	int ret = 0;

	mutex_lock(&phys_lock);
	for (page = 0; page < pages && !ret; page++)
		ret = phys_write(phys->attached, iova + page * PAGE_SIZE, stamp);
	mutex_unlock(&phys_lock);
	return ret;
}

/* ---- coming ---- */

static int phys_init(struct vfio_device *vdev)
{
	return steer_init_device(vdev, flags, own_log);
}

static const struct vfio_device_ops phys_vfio_ops = {
	STEER_OPS(physical)
	.init = phys_init,
};

/* VFIO takes a reference on the module of a device's driver, so there is one, which does nothing. */
static int phys_driver_probe(struct platform_device *unused)
{
	return 0;
}

static struct platform_driver phys_driver = {
	.probe = phys_driver_probe,
	.driver = { .name = "vft" },
	.driver_managed_dma = true,	/* else the driver owns the group, and no VMM can */
};

static int make_device(unsigned int number)
{
	struct phys_dev *phys = &phys_devs[number];
	struct steer_dev *dev;
	int ret;

	phys->pdev = platform_device_alloc("vft", number);
	if (!phys->pdev)
		return -ENOMEM;
	/* Without this the kernel takes the first IOMMU it has for ours. */
	ret = iommu_fwspec_init(&phys->pdev->dev, phys_node);
	if (!ret)
		ret = platform_device_add(phys->pdev);
	if (ret) {
		platform_device_put(phys->pdev);
		return ret;
	}
	dev = vfio_alloc_device(steer_dev, vdev, &phys->pdev->dev, &phys_vfio_ops);
	ret = PTR_ERR_OR_ZERO(dev);
	if (!ret) {
		ret = vfio_register_group_dev(&dev->vdev);
		if (ret)
			vfio_put_device(&dev->vdev);
	}
	if (ret) {
		platform_device_unregister(phys->pdev);
		return ret;
	}
	steer_add_files(dev, dev_name(&phys->pdev->dev));
	phys->steer = dev;
	return 0;
}

static void phys_stop(void)
{
	unsigned int i;

	for (i = 0; i < STEER_MAX_DEVICES; i++) {
		struct phys_dev *phys = &phys_devs[i];

		if (!phys->steer)
			continue;
		debugfs_remove_recursive(phys->steer->dir);
		vfio_unregister_group_dev(&phys->steer->vdev);
		vfio_put_device(&phys->steer->vdev);
		platform_device_unregister(phys->pdev);
	}
	debugfs_remove_recursive(steer_debugfs);
}

static int __init phys_start(void)
{
	unsigned int i;
	int ret;

	phys_node = fwnode_create_software_node(NULL, NULL);
	if (IS_ERR(phys_node))
		return PTR_ERR(phys_node);
	phys_iommu.fwnode = phys_node;
	ret = iommu_device_sysfs_add(&phys_iommu, NULL, NULL, "vftphys");
	if (ret)
		goto no_sysfs;
	ret = iommu_device_register(&phys_iommu, &phys_ops, NULL);
	if (ret)
		goto no_iommu;
	ret = platform_driver_register(&phys_driver);
	if (ret)
		goto no_driver;
	steer_debugfs = debugfs_create_dir("vftphys", NULL);
	for (i = 0; !ret && i < min_t(unsigned int, devices, STEER_MAX_DEVICES); i++)
		ret = make_device(i);
	if (!ret)
		return 0;
	phys_stop();
	platform_driver_unregister(&phys_driver);
no_driver:
	iommu_device_unregister(&phys_iommu);
no_iommu:
	iommu_device_sysfs_remove(&phys_iommu);
no_sysfs:
	fwnode_remove_software_node(phys_node);
	return ret;
}

module_init(phys_start);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("VFIO devices for tests, behind an IOMMU that tracks what they write");
