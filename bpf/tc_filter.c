/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Egress skin: clsact context to cursor, verdict to TC_ACT_UNSPEC (other filters still run) or TC_ACT_SHOT.
 * One entry point a link type, chosen when the interface is attached.
 */

static __always_inline void parse_skb(struct __sk_buff *skb, int bare, struct packet *packet)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct cursor cursor = {.at = data, .end = end, .left = skb->len};

	__builtin_memset(packet, 0, sizeof(*packet));
	packet->length = skb->len;
	packet->ifindex = skb->ifindex;
	parse(&cursor, bare, packet);
}

/*
 * Only the linear part of an skb is readable. It holds the headers of nearly every packet; where it ends inside
 * them the rest is pulled in and the packet is parsed once more.
 */
static __always_inline int filter_tc(struct __sk_buff *skb, int bare)
{
	struct decision decision = {};
	__u32 hook = HOOK_EGRESS;
	struct workspace *room = scratch.lookup(&hook);
	struct packet *packet;

	if (!room)
		return TC_ACT_UNSPEC;
	decision.room = room;
	decision.row = HOOK_EGRESS;
	packet = &room->packet;
#pragma clang loop unroll(disable)
	for (int attempt = 0; attempt < 2; attempt++) {
		parse_skb(skb, bare, packet);
		if (!packet->malformed || skb->data_end - skb->data >= skb->len)
			break;
		if (bpf_skb_pull_data(skb, skb->len))
			break;
	}
	if (!decide(&decision, packet, HOOK_EGRESS))
		return TC_ACT_UNSPEC;
	account(&decision, packet, HOOK_EGRESS);
	if (decision.beyond) {
		if (decision.beyond & OPTION_OBSERVE) {
			hand_over(&decision, bare);
			hand_over_to_observers(&decision);
			hand_over_to_entries(&decision);
			observe_tc.call(skb, 0);
		}
		if (decision.beyond & RULE_NAMES_SETS) {
			hand_over(&decision, bare);
			hand_over_to_entries(&decision);
			entries_tc.call(skb, 0);
		}
		if (is_listened_to(&decision)) {
			hand_over(&decision, bare);
			report_tc.call(skb, 0);
		}
	}
	return tc_action(decision.verdict);
}

int fw_tc_ethernet(struct __sk_buff *skb)
{
	return filter_tc(skb, 0);
}

int fw_tc_ip(struct __sk_buff *skb)
{
	return filter_tc(skb, 1);
}
