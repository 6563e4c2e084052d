/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Ingress skin for hardware: the same parser, the address rules alone, tables of the device's own.
 *
 * What a device lacks is left out (per-CPU maps too, so its packet stays on the stack): policy vectors, pages to map, per-CPU maps, an epoch. The service refuses a
 * rule that this program could not judge, so what it does judge it judges as the others do. One map element
 * holds all that is not a rule, because devices count elements. PIN_ROOT and OFFLOAD_ENTRIES come from the
 * loader (-D).
 */

BPF_TABLE_PINNED("array", __u32, struct offload_state, offload_state, 1, PIN_ROOT "/maps/offload_state");
BPF_TABLE_PINNED("hash", struct prefix4, struct address_entry, offload4, OFFLOAD_ENTRIES, PIN_ROOT "/maps/offload4");
BPF_TABLE_PINNED("hash", struct prefix6, struct address_entry, offload6, OFFLOAD_ENTRIES, PIN_ROOT "/maps/offload6");

/*
 * Keeps the compiler from splitting the packet into registers: it has far too few and would spill every field
 * on every path (measured: 18 ns of 55 a packet). Called before and after parse().
 */
static __always_inline void keep_in_memory(struct packet *packet)
{
	asm volatile("" : : "r"(packet) : "memory");
}

/*
 * The verifier follows every path of the parser with the constants that it left (which header, which
 * reason) and would verify all that follows once for each. `zero` is 0, which the verifier cannot know:
 * after the xor all those paths are one.
 */
static __always_inline void forget(struct packet *packet, __u32 zero)
{
	packet->protocol ^= zero;
	packet->l4 ^= zero;
	packet->tcp_flags ^= zero;
	packet->icmp_type ^= zero;
	packet->icmp_code ^= zero;
	packet->source_port ^= zero;
	packet->destination_port ^= zero;
	packet->is_fragment ^= zero;
	packet->malformed ^= zero;
}

static __always_inline void best_offload4(struct decision *best, __u64 lengths, __u32 scope, __u32 address)
{
	struct prefix4 key;
	__u32 length;

#pragma clang loop unroll(disable)
	for (int i = 0; i < 33; i++) {
		if (!lengths)
			return;
		length = lowest_bit(lengths);
		lengths &= lengths - 1;
		key4(&key, scope, address, length);
		better(best, offload4.lookup(&key), 0, place_of(scope, length, 0));
	}
}

static __always_inline void best_offload6(struct decision *best, const struct offload_state *state, __u32 scope,
					  const __u32 *address)
{
	struct prefix6 key;
	__u64 lengths;
	__u32 length;

#pragma clang loop unroll(disable)
	for (int run = 0; run < 3; run++) {
		lengths = run == 0 ? state->short_lengths6[scope] : state->lengths6[scope * 2 + run - 1];
#pragma clang loop unroll(disable)
		for (int i = 0; i < run_lengths(run); i++) {
			if (!lengths)
				break;
			length = run_base(run) + lowest_bit(lengths);
			lengths &= lengths - 1;
			key6(&key, scope, address, length);
			better(best, offload6.lookup(&key), 0, place_of(scope, length, 0));
		}
	}
}

static __always_inline void decide_offload(struct decision *decision, const struct offload_state *state,
					   const struct packet *packet)
{
	__u32 options = state->options;

	decision->options = options;
	decision->reason = REASON_NOT_IP;
	decision->verdict = packet->is_arp && options & OPTION_DROP_ARP;
	if (!packet->malformed && !packet->is_ip)
		return;
	decision->reason = packet->malformed ? packet->malformed : REASON_DEFAULT;
	decision->verdict = packet->malformed && !(options & OPTION_MALFORMED_PASS);
	if (!packet->is_ip || (packet->malformed && decision->verdict))
		return;
	if (packet->is_fragment && options & OPTION_FRAGMENTS_DROP) {
		decision->reason = REASON_FRAGMENT;
		decision->verdict = VERDICT_DROP;
		return;
	}
	decision->best = BEST_NONE ^ state->always_zero;
	if (packet->family == FAMILY_IPV4) {
		best_offload4(decision, state->lengths4[SIDE_SOURCE], SIDE_SOURCE, packet->source[0]);
		best_offload4(decision, state->lengths4[SIDE_DESTINATION], SIDE_DESTINATION, packet->destination[0]);
	} else {
		best_offload6(decision, state, SIDE_SOURCE, packet->source);
		best_offload6(decision, state, SIDE_DESTINATION, packet->destination);
	}
	decision->rank = decision->best >> BEST_RANK_SHIFT;
	decision->rank |= panic_mask(options, decision->rank);
	if (decision->rank == RANK_NONE)
		without_rule(decision, packet, HOOK_INGRESS);
	else
		by_rule(decision);
}

static __always_inline void count_offload(struct offload_state *state, const struct decision *decision,
					  const struct packet *packet)
{
	__u32 index = (decision->verdict * REASON_CAPACITY + decision->reason) & (OFFLOAD_COUNTERS - 1);
	__u32 scope = decision->best >> BEST_SCOPE_SHIFT & 0xff, length = decision->best >> BEST_LENGTH_SHIFT & 0xff;
	struct address_entry *entry = NULL;
	struct prefix4 small;
	struct prefix6 large;

	__sync_fetch_and_add(&state->by[index].packets, 1);
	__sync_fetch_and_add(&state->by[index].bytes, packet->length);
	if (decision->reason != REASON_RULE)
		return;
	if (packet->family == FAMILY_IPV4) {
		key4(&small, scope, scope == SIDE_SOURCE ? packet->source[0] : packet->destination[0], length);
		entry = offload4.lookup(&small);
	} else {
		key6(&large, scope, scope == SIDE_SOURCE ? packet->source : packet->destination, length);
		entry = offload6.lookup(&large);
	}
	if (!entry)
		return;
	__sync_fetch_and_add(&entry->packets, 1);
	__sync_fetch_and_add(&entry->bytes, packet->length);
}

int fw_xdp_offload(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct cursor cursor = {.at = data, .end = end, .left = end - data};
	struct packet packet = {.length = end - data};
	struct decision decision = {};
	struct offload_state *state;
	__u32 zero = 0;

	state = offload_state.lookup(&zero);
	if (!state)
		return XDP_PASS;
	keep_in_memory(&packet);
	parse(&cursor, 0, &packet);
	keep_in_memory(&packet);
	forget(&packet, state->always_zero);
	decide_offload(&decision, state, &packet);
	count_offload(state, &decision, &packet);
	return xdp_action(decision.verdict);
}
