/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Decision to counters: the rule that won, and the interface by hook, verdict and reason. Decides nothing.
 */
#ifndef EBPF_FW_ACCOUNT_H
#define EBPF_FW_ACCOUNT_H

/* bpf_jiffies64 (Linux 5.5) is a load; bpf_ktime_get_ns reads the clock source, 15 ns and more. */
static __always_inline __u64 tick(void)
{
	return bpf_jiffies64() >> TICK_SHIFT;
}

static __always_inline void count_entry(struct address_entry *entry, __u32 length)
{
	if (!entry)
		return;
	__sync_fetch_and_add(&entry->packets, 1);
	__sync_fetch_and_add(&entry->bytes, length);
	entry->last_hit = tick();
}

/* An entry of the front by its row. Of others the IPv4 one found last is nearly always the winner; any more is looked up
 * once more. */
static __always_inline void count_address_rule(const struct decision *decision, const struct packet *packet)
{
	__u32 scope = decision->best >> BEST_SCOPE_SHIFT & 0xff, length = decision->best >> BEST_LENGTH_SHIFT & 0xff;
	__u32 row = decision->best & (FRONT_ROWS - 1);
	const __u32 *address = scope & SIDE_DESTINATION ? packet->destination : packet->source;
	struct prefix4 small;
	struct prefix6 large;
	struct front_row *front;
	__u32 zero = 0;
	void *entries;

	if (decision->best & IN_FRONT) {
		front = address_front.lookup(&row);
		if (front)
			count_entry(&front->entry, packet->length);
	} else if (decision->last && decision->room->last_place == (decision->best & BEST_PLACE)) {
		count_entry(decision->last, packet->length);
	} else if (packet->family == FAMILY_IPV4) {
		key4(&small, scope, address[0], length);
		count_entry(entry_again(decision->room, &small), packet->length);
	} else {
		key6(&large, scope, address, length);
		entries = address6_maps.lookup(&zero);
		if (entries)
			count_entry(bpf_map_lookup_elem(entries, &large), packet->length);
	}
}

static __always_inline void count_policy_rule(__u32 slot, __u32 length)
{
	struct rule_counter *counter = policy_counters.lookup(&slot);

	if (!counter)
		return;
	counter->packets++;
	counter->bytes += length;
	counter->last_hit = tick();
}

/* 0 where the interface has none: its packets are judged but not counted. */
static __always_inline __u32 interface_slot(__u32 ifindex)
{
	struct interface_slot *found;
	__u32 row;

#pragma unroll
	for (__u32 i = 0; i < SLOT_PROBES; i++) {
		row = ifindex % SLOT_ROWS + i;
		found = interface_slots.lookup(&row);
		if (found && found->ifindex == ifindex)
			return found->slot;
	}
	return 0;
}

static __always_inline void count_interface(const struct decision *decision, const struct packet *packet, __u32 hook)
{
	__u32 slot = interface_slot(packet->ifindex), index;
	struct counter *count;

	if (!slot)
		return;
	index = (hook * VERDICT_COUNT + decision->verdict) * REASON_CAPACITY + decision->reason;
	index += slot * COUNTERS_PER_INTERFACE;
	count = counters.lookup(&index);
	if (!count)
		return;
	count->packets++;
	count->bytes += packet->length;
}

static __always_inline void account(const struct decision *decision, const struct packet *packet, __u32 hook)
{
	if (decision->reason == REASON_RULE && decision->is_policy)
		count_policy_rule(decision->slot, packet->length);
	else if (decision->reason == REASON_RULE)
		count_address_rule(decision, packet);
	count_interface(decision, packet, hook);
}

#endif
