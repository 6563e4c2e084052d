/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * What is found out about a packet on its way from parse to account, and how a rule that was found enters it.
 */
#ifndef EBPF_FW_DECISION_H
#define EBPF_FW_DECISION_H

struct decision {
	__u64 best;		    /* address rule, BEST_NONE without one */
	struct address_entry *last; /* IPv4 entry found in the hash map; its place is in the workspace */
	__u64 rank;
	struct workspace *room;
	__u32 slot; /* of policy_counters, when the winner is a policy rule */
	__u32 options;
	__u32 row; /* of policy_search */
	__u64 beyond; /* LISTEN_*; OPTION_OBSERVE where rules were asked and some only observe; RULE_NAMES_SETS of the rule that won:
		       * 0 where nobody wants more */
	__u8 verdict;
	__u8 reason;
	__u8 is_policy;
};

/*
 * The best address rule so far:
 *
 *   bit   59 ... 28   27 ... 20   19 ... 12       11 ... 0
 *         rank        scope       prefix length   row of the front | FRONT_ROWS, 0: it is in the hash map
 *
 * The bits below the rank say where the entry is: its place.
 */
#define BEST_RANK_SHIFT 28
#define BEST_SCOPE_SHIFT 20
#define BEST_LENGTH_SHIFT 12
#define BEST_PLACE ((1 << BEST_RANK_SHIFT) - 1)
#define BEST_NONE ((__u64)RANK_NONE << BEST_RANK_SHIFT)

/* `row`: | FRONT_ROWS, or 0. */
static __always_inline __u64 place_of(__u64 scope, __u64 length, __u64 row)
{
	return scope << BEST_SCOPE_SHIFT | length << BEST_LENGTH_SHIFT | row;
}

/* RANK_NONE where panic leaves the rank no say, else 0. By arithmetic, as below. */
static __always_inline __u64 panic_mask(__u64 options, __u64 rank)
{
	__u64 other = rank ^ RANK_NEVER_DROP, is_panic = options / OPTION_PANIC & (other | -other) >> 63;

	asm volatile("" : "+r"(is_panic));
	return (is_panic << 32) - is_panic;
}

/*
 * Keeps the smaller of the best so far and the entry that a probe found. By arithmetic: the verifier sees
 * one state after every probe and not one for every order of hits before it. That is also why the entry's
 * key is kept and not a pointer to it; with 129 lengths, a pointer or none would double too many states.
 */
static __always_inline void better(struct decision *best, const struct address_entry *entry, __u64 epoch, __u64 place)
{
	__u64 is_future, candidate;

	if (!entry)
		return;
	is_future = if_negative(epoch - entry->since);
	candidate = (entry->rank & ~is_future) | (entry->old_rank & is_future);
	candidate = candidate << BEST_RANK_SHIFT | place;
	candidate -= best->best;
	best->best += candidate & if_negative(candidate);
}

#endif
