/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The programs for rules that observe, one a type of program. They end in the one that counts entries of sets where such
 * a rule names some, or the one that won does; in the reporter where somebody listens; and else return the verdict that
 * the filter left in the workspace.
 *
 * Fail-open: without the workspace, which cannot be missing, the packet passes.
 */

int fw_xdp_observe(struct xdp_md *ctx)
{
	__u32 hook = HOOK_INGRESS;
	struct workspace *room = scratch.lookup(&hook);

	if (!room)
		return XDP_PASS;
	observe(room, HOOK_INGRESS);
	if (room->counted_count)
		entries_xdp.call(ctx, 0);
	if (is_reported(room))
		report_xdp.call(ctx, 0);
	return xdp_action(room->outcome.verdict);
}

int fw_tc_observe(struct __sk_buff *skb)
{
	__u32 hook = HOOK_EGRESS;
	struct workspace *room = scratch.lookup(&hook);

	if (!room)
		return TC_ACT_UNSPEC;
	observe(room, HOOK_EGRESS);
	if (room->counted_count)
		entries_tc.call(skb, 0);
	if (is_reported(room))
		report_tc.call(skb, 0);
	return tc_action(room->outcome.verdict);
}
