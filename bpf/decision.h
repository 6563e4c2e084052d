/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * What is found out about a packet on its way from parse to account, and how a rule that was found enters it.
 */
#ifndef EBPF_FW_DECISION_H
#define EBPF_FW_DECISION_H

struct decision {
	__u64 best; /* rank << 16 | scope << 8 | prefix length of the best address rule, BEST_NONE without one */
	struct address_entry *last; /* IPv4 entry that a probe found, and its key as in the lower half of `best` */
	__u64 last_key;
	__u64 rank;
	struct workspace *room;
	__u32 slot; /* of policy_counters, when the winner is a policy rule */
	__u32 options;
	__u32 listening; /* LISTEN_* */
	__u8 verdict;
	__u8 reason;
	__u8 is_policy;
};

#define BEST_NONE ((__u64)RANK_NONE << 16)

/*
 * Keeps the smaller of the best so far and the entry that a probe found. By arithmetic: the verifier sees
 * one state after every probe and not one for every order of hits before it. That is also why the entry's
 * key is kept and not a pointer to it; with 129 lengths, a pointer or none would double too many states.
 */
static __always_inline void better(struct decision *best, const struct address_entry *entry, __u64 epoch, __u32 scope,
				   __u32 length)
{
	__u64 is_future, candidate;

	if (!entry)
		return;
	is_future = if_negative(epoch - entry->since);
	candidate = (entry->rank & ~is_future) | (entry->old_rank & is_future);
	candidate = candidate << 16 | scope << 8 | length;
	candidate -= best->best;
	best->best += candidate & if_negative(candidate);
}

#endif
