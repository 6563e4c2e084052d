/* SPDX-License-Identifier: Dual MIT/GPL */
/* bcc includes this before everything else. It stands in for the kernel's configuration and internal types. */
#define CONFIG_BPF_SYSCALL 1
#define __LINUX_BPF_H__ /* bcc's helpers include the kernel-internal <linux/bpf.h> for what the UAPI one has too */
#define __always_inline inline __attribute__((always_inline))
typedef unsigned long uintptr_t;
