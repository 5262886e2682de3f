/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * The requests of iommufd, and of a VFIO device's own file, that tinyvmm makes (include/uapi/linux/iommufd.h and
 * vfio.h). tinyvmm is also compiled where the kernel's headers are older than iommufd (Linux 6.2) or than
 * IOMMU_IOAS_MAP_FILE (6.13).
 */
#include <linux/types.h>
#include <sys/ioctl.h>

#define IOMMUFD_REQUEST(number) _IO(';', number)
#define IOMMU_IOAS_ALLOC IOMMUFD_REQUEST(0x81)
#define IOMMU_IOAS_COPY IOMMUFD_REQUEST(0x83)
#define IOMMU_IOAS_MAP IOMMUFD_REQUEST(0x85)
#define IOMMU_IOAS_UNMAP IOMMUFD_REQUEST(0x86)
#define IOMMU_HWPT_ALLOC IOMMUFD_REQUEST(0x89)
#define IOMMU_GET_HW_INFO IOMMUFD_REQUEST(0x8a)
#define IOMMU_HWPT_SET_DIRTY_TRACKING IOMMUFD_REQUEST(0x8b)
#define IOMMU_HWPT_GET_DIRTY_BITMAP IOMMUFD_REQUEST(0x8c)
#define IOMMU_IOAS_MAP_FILE IOMMUFD_REQUEST(0x8f)

#define IOMMU_MAP_FLAGS 7 /* FIXED_IOVA, WRITEABLE, READABLE */
#define IOMMU_HWPT_ALLOC_DIRTY_TRACKING 2
#define IOMMU_HW_CAP_DIRTY_TRACKING 1
#define IOMMU_HWPT_DIRTY_TRACKING_ENABLE 1
#define IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR 1

struct iommu_ioas_alloc {
	__u32 size;
	__u32 flags;
	__u32 out_ioas_id;
};

struct iommu_ioas_map {
	__u32 size;
	__u32 flags;
	__u32 ioas_id;
	__u32 reserved;
	__aligned_u64 user_va;
	__aligned_u64 length;
	__aligned_u64 iova;
};

struct iommu_ioas_map_file {
	__u32 size;
	__u32 flags;
	__u32 ioas_id;
	__s32 fd;
	__aligned_u64 start;
	__aligned_u64 length;
	__aligned_u64 iova;
};

struct iommu_ioas_copy {
	__u32 size;
	__u32 flags;
	__u32 dst_ioas_id;
	__u32 src_ioas_id;
	__aligned_u64 length;
	__aligned_u64 dst_iova;
	__aligned_u64 src_iova;
};

struct iommu_ioas_unmap {
	__u32 size;
	__u32 ioas_id;
	__aligned_u64 iova;
	__aligned_u64 length;
};

struct iommu_hw_info {
	__u32 size;
	__u32 flags;
	__u32 dev_id;
	__u32 data_len;
	__aligned_u64 data_uptr;
	__u32 out_data_type;
	__u32 reserved;
	__aligned_u64 out_capabilities;
};

struct iommu_hwpt_alloc {
	__u32 size;
	__u32 flags;
	__u32 dev_id;
	__u32 pt_id;
	__u32 out_hwpt_id;
	__u32 reserved;
	__u32 data_type;
	__u32 data_len;
	__aligned_u64 data_uptr;
};

struct iommu_hwpt_set_dirty_tracking {
	__u32 size;
	__u32 flags;
	__u32 hwpt_id;
	__u32 reserved;
};

struct iommu_hwpt_get_dirty_bitmap {
	__u32 size;
	__u32 hwpt_id;
	__u32 flags;
	__u32 reserved;
	__aligned_u64 iova;
	__aligned_u64 length;
	__aligned_u64 page_size;
	__aligned_u64 data;
};

#ifndef VFIO_DEVICE_BIND_IOMMUFD
#define VFIO_DEVICE_BIND_IOMMUFD IOMMUFD_REQUEST(118)
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT IOMMUFD_REQUEST(119)

struct vfio_device_bind_iommufd {
	__u32 argsz;
	__u32 flags;
	__s32 iommufd;
	__u32 out_devid;
};

struct vfio_device_attach_iommufd_pt {
	__u32 argsz;
	__u32 flags;
	__u32 pt_id;
};
#endif
