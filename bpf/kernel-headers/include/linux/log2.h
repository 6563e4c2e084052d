/* SPDX-License-Identifier: Dual MIT/GPL */
/* Included by bcc, nothing of it is used. */
