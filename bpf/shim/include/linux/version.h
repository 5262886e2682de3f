/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
#ifndef LINUX_VERSION_CODE
#define LINUX_VERSION_CODE 0x060100
#endif
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
