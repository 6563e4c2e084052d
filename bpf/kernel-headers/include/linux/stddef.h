/* SPDX-License-Identifier: Dual MIT/GPL */
#ifndef EBPF_FW_STDDEF_H
#define EBPF_FW_STDDEF_H
#include <uapi/linux/stddef.h>
#ifndef NULL
#define NULL ((void *)0)
#endif
typedef unsigned long size_t;
typedef _Bool bool;
#endif
