/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Constants of the classic instruction set: bpf.h needs none of them here. */
