/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The programs that count entries of sets, one a type of program. They end in the reporter where somebody listens, and else
 * return the verdict that the filter left in the workspace.
 *
 * Fail-open: without the workspace, which cannot be missing, the packet passes.
 */

int fw_xdp_entries(struct xdp_md *ctx)
{
	__u32 hook = HOOK_INGRESS;
	struct workspace *room = scratch.lookup(&hook);

	if (!room)
		return XDP_PASS;
	if (count_entries(room))
		entries_xdp.call(ctx, 0);
	else if (is_reported(room))
		report_xdp.call(ctx, 0);
	return xdp_action(room->outcome.verdict);
}

int fw_tc_entries(struct __sk_buff *skb)
{
	__u32 hook = HOOK_EGRESS;
	struct workspace *room = scratch.lookup(&hook);

	if (!room)
		return TC_ACT_UNSPEC;
	if (count_entries(room))
		entries_tc.call(skb, 0);
	else if (is_reported(room))
		report_tc.call(skb, 0);
	return tc_action(room->outcome.verdict);
}
