/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The address tables: the best of all rules that are one address or CIDR.
 *
 * A lookup reads which prefix lengths occur near the address and probes just those; every hit counts, so
 * nested prefixes need no order. A lookup in an array cannot fail; where the verifier wants that case handled
 * the list is taken for empty.
 */
#ifndef EBPF_FW_ADDRESS_H
#define EBPF_FW_ADDRESS_H

/* Best address rule of one IPv4 list: probes every prefix length that occurs below the address's bucket. */
static __always_inline void best_address4(struct decision *best, __u64 epoch, __u32 scope, __u32 address)
{
	__u32 bucket = scope * BUCKET_COUNT + bucket4(address);
	struct lengths4 *present = lengths4.lookup(&bucket);
	struct address_entry *entry;
	struct prefix4 key;
	__u64 lengths;
	__u32 length, zero = 0;
	void *entries = address4_maps.lookup(&zero);

	if (!present || !entries)
		return;
	lengths = present->lengths;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 33; i++) {
		if (!lengths)
			return;
		length = lowest_bit(lengths);
		lengths &= lengths - 1;
		key4(&key, scope, address, length);
		entry = bpf_map_lookup_elem(entries, &key);
		if (!entry)
			continue;
		better(best, entry, epoch, scope, length);
		best->last = entry;
		best->last_key = scope << 8 | length;
	}
}

static __always_inline void best_address6(struct decision *best, __u64 epoch, __u32 scope, const __u32 *address,
					  __u32 short_lengths)
{
	__u32 bucket = scope * BUCKET_COUNT + bucket6(address, 16);
	struct lengths6 *present = lengths6.lookup(&bucket);
	struct prefix6 key;
	__u64 lengths;
	__u32 length, zero = 0;
	void *entries = address6_maps.lookup(&zero);

	if (!present || !entries)
		return;
#pragma clang loop unroll(disable)
	for (int run = 0; run < 3; run++) {
		lengths = run == 0 ? short_lengths : run == 1 ? present->word[0] : present->word[1];
#pragma clang loop unroll(disable)
		for (int i = 0; i < run_lengths(run); i++) {
			if (!lengths)
				break;
			length = run_base(run) + lowest_bit(lengths);
			lengths &= lengths - 1;
			key6(&key, scope, address, length);
			better(best, bpf_map_lookup_elem(entries, &key), epoch, scope, length);
		}
	}
}

static __always_inline void best_address(struct decision *best, struct control *control, __u64 epoch,
					 const struct packet *packet, __u32 hook)
{
	__u32 source = hook << SCOPE_HOOK_BIT | SIDE_SOURCE, destination = hook << SCOPE_HOOK_BIT | SIDE_DESTINATION;
	__u32 occupied = control->occupied >> packet->family * ADDRESS_SCOPE_COUNT;

	if (!(occupied >> source & 3))
		return;
	if (packet->family == FAMILY_IPV4) {
		if (occupied >> source & 1)
			best_address4(best, epoch, source, packet->source[0]);
		if (occupied >> destination & 1)
			best_address4(best, epoch, destination, packet->destination[0]);
	} else {
		if (occupied >> source & 1)
			best_address6(best, epoch, source, packet->source, control->short_lengths6[source]);
		if (occupied >> destination & 1)
			best_address6(best, epoch, destination, packet->destination,
				      control->short_lengths6[destination]);
	}
}

#endif
