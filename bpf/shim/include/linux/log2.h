/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* BCC includes this; nothing of it is used. */
