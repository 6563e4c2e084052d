/* SPDX-License-Identifier: Dual MIT/GPL */
#define PAGE_SIZE 4096
