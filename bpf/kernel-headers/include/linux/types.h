/* SPDX-License-Identifier: Dual MIT/GPL */
/* What bcc's own headers expect of the kernel-internal file of this name. */
#include <uapi/linux/types.h>
#include <linux/stddef.h>
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
