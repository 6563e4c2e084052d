/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Which entries of sets a packet is counted for: of each set that its rule names, on each side that it names it, the
 * widest that the address lies in. Decides nothing. Runs as a program of its own (a tail call), so that packets of other
 * rules pay nothing for it.
 *
 * Where it stands is kept in the workspace: a run makes some steps and calls itself for the others.
 */
#ifndef EBPF_FW_SET_ENTRIES_H
#define EBPF_FW_SET_ENTRIES_H

#define ENTRY_STEPS 8 /* of a run: a rule, or one of the sets that a rule names */
#define NO_ENTRY 0xffffffff

/* -- the filter's side, beside the outcome (report.h) */

static __always_inline void hand_over_to_entries(const struct decision *decision)
{
	decision->room->counted[0] = decision->slot;
	decision->room->counted_count = decision->beyond / RULE_NAMES_SETS & 1;
	decision->room->counted_at = 0;
	decision->room->named.count = 0;
}

/* One more rule whose entries are counted, if it names sets: without a branch, which the verifier would follow. */
static __always_inline void note_counted(volatile struct workspace *room, __u32 slot)
{
	__u32 count = room->counted_count;

	asm volatile("" : "+r"(count));
	room->counted[count & (COUNTED_RULES - 1)] = slot & ~RULE_NAMES_SETS;
	room->counted_count = count + (slot >> 31);
}

/* -- the side of the program that counts */

static __always_inline void count_entry_of_set(struct workspace *room, __u32 number)
{
	struct entry_counter *counter = entry_counters.lookup(&number);

	/* One that both addresses lie in is one reason. */
	if (!counter || room->last_entry == number)
		return;
	room->last_entry = number;
	__sync_fetch_and_add(&counter->packets, 1);
	__sync_fetch_and_add(&counter->bytes, room->packet.length);
	counter->last_hit = tick();
}

/*
 * Of elements that start at or before an address the last, NULL where a lookup failed or there are none; where all start
 * beyond it, the first. The search is that of address_lines4().
 */
static __always_inline struct set_prefix4 *last_start4(__u32 at, __u32 count, __u64 address)
{
	struct set_prefix4 *prefix;
	__u32 half, probe;

#pragma clang loop unroll(disable)
	for (int i = 0; i < SEARCH_STEPS; i++) {
		half = count >> 1;
		probe = at + half;
		prefix = policy_set4.lookup(&probe);
		if (!prefix)
			return NULL;
		at += half & ~if_negative(address - prefix->start);
		count -= half;
		asm volatile("" : "+r"(at), "+r"(count));
		if (count <= 1)
			break;
	}
	return policy_set4.lookup(&at);
}

/* `steps`: halvings until one is left. */
static __always_inline struct set_prefix6 *last_start6(__u32 at, __u32 count, __u64 high, __u64 low, int steps)
{
	struct set_prefix6 *prefix;
	__u32 half, probe;

#pragma clang loop unroll(disable)
	for (int i = 0; i < steps; i++) {
		half = count >> 1;
		probe = at + half;
		prefix = policy_set6.lookup(&probe);
		if (!prefix)
			return NULL;
		at += half & ~if_before(high, low, prefix->start);
		count -= half;
		asm volatile("" : "+r"(at), "+r"(count));
		if (count <= 1)
			break;
	}
	return policy_set6.lookup(&at);
}

/* How many of SET_STEP neighbours there are from one on. */
static __always_inline __u32 neighbours(const struct span *all, __u32 first)
{
	__u32 left = all->first + all->count - first;

	return left < SET_STEP ? left : SET_STEP;
}

static __always_inline void count_entry4(struct workspace *room, const struct named_set *set)
{
	const __u32 *words = set->side ? room->packet.destination : room->packet.source;
	__u64 address = bpf_ntohl(words[0]);
	__u32 place = set->index4 + (address >> (32 - (set->bits & 31))), length;
	struct set_prefix4 *prefix, *reach = policy_set4.lookup(&place);

	if (!set->prefixes4.count || !reach)
		return;
	prefix = last_start4(reach->start, reach->counter, address);
	if (!prefix)
		return;
	length = prefix->counter & ((1 << SET_LENGTH_BITS4) - 1);
	if (!((address ^ prefix->start) & leading_mask(32 + length)))
		count_entry_of_set(room, prefix->counter >> SET_LENGTH_BITS4);
}

static __always_inline void count_entry6(struct workspace *room, const struct named_set *set)
{
	const __u32 *words = set->side ? room->packet.destination : room->packet.source;
	__u64 high = host_order(words), low = host_order(words + 2), beyond, is_short;
	struct set_prefix6 *prefix;
	__u32 first;

	if (!set->steps6.count)
		return;
	prefix = last_start6(set->steps6.first, set->steps6.count, high, low, SEARCH_STEPS);
	if (!prefix)
		return;
	first = prefix->counter;
	prefix = last_start6(first, neighbours(&set->prefixes6, first), high, low, SET_STEP);
	if (!prefix)
		return;
	beyond = (prefix->counter & ((1 << SET_LENGTH_BITS6) - 1)) - 64; /* as in key6() */
	is_short = if_negative(beyond);
	high = (high ^ prefix->start[0]) & leading_mask(64 + (beyond & is_short));
	low = (low ^ prefix->start[1]) & leading_mask(beyond & ~is_short);
	if (!(high | low))
		count_entry_of_set(room, prefix->counter >> SET_LENGTH_BITS6);
}

/* Answers 0 where all is done. */
static __always_inline int entry_step(struct workspace *room)
{
	__u32 at = room->counted_at, number = room->named.first;
	struct named_set *set;
	struct span *span;

	if (!room->named.count) {
		if (at >= room->counted_count || at >= COUNTED_RULES)
			return 0;
		asm volatile("" : "+r"(at));
		number = room->scope / HOOK_COUNT * (GENERATION_COUNT * MAX_RULES) +
			 room->counted[at & (COUNTED_RULES - 1)];
		room->counted_at = at + 1;
		room->last_entry = NO_ENTRY;
		span = policy_sets_of.lookup(&number);
		if (span)
			room->named = *span;
		return 1;
	}
	room->named.first = number + 1;
	room->named.count--;
	set = policy_named.lookup(&number);
	if (!set)
		return 1;
	if (room->packet.family == FAMILY_IPV4)
		count_entry4(room, set);
	else
		count_entry6(room, set);
	return 1;
}

/* Answers whether there is more to do. */
static __always_inline int count_entries(struct workspace *room)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < ENTRY_STEPS; i++) {
		if (!entry_step(room))
			return 0;
	}
	return 1;
}

#endif
