/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Ingress skin: XDP context to cursor, verdict to XDP_PASS or XDP_DROP. One entry point a link type, chosen
 * when the interface is attached.
 */

static __always_inline int filter_xdp(struct xdp_md *ctx, int bare)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct cursor cursor = {.at = data, .end = end, .left = end - data};
	struct decision decision = {};
	__u32 hook = HOOK_INGRESS;
	struct workspace *room = scratch.lookup(&hook);
	struct packet *packet;

	if (!room)
		return XDP_PASS;
	decision.room = room;
	decision.row = HOOK_INGRESS;
	packet = &room->packet;
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->length = cursor.left;
	packet->ifindex = ctx->ingress_ifindex;
	parse(&cursor, bare, packet);
	if (!decide(&decision, packet, HOOK_INGRESS))
		return XDP_PASS;
	account(&decision, packet, HOOK_INGRESS);
	if (decision.beyond) {
		if (decision.beyond & OPTION_OBSERVE) {
			hand_over(&decision, bare);
			hand_over_to_observers(&decision);
			hand_over_to_entries(&decision);
			observe_xdp.call(ctx, 0);
		}
		if (decision.beyond & RULE_NAMES_SETS) {
			hand_over(&decision, bare);
			hand_over_to_entries(&decision);
			entries_xdp.call(ctx, 0);
		}
		if (is_listened_to(&decision)) {
			hand_over(&decision, bare);
			report_xdp.call(ctx, 0);
		}
	}
	return xdp_action(decision.verdict);
}

int fw_xdp_ethernet(struct xdp_md *ctx)
{
	return filter_xdp(ctx, 0);
}

int fw_xdp_ip(struct xdp_md *ctx)
{
	return filter_xdp(ctx, 1);
}
