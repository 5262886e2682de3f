/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The least that BCC's own helpers.h asks of a kernel tree, so that no headers are needed. */
#define CONFIG_BPF_SYSCALL 1
