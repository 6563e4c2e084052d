/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Judges a packet for a question: the same parser, the same decision over the same maps, but nothing is counted, reported
 * or observed. What was found goes into test_runs. Loaded when the first question comes, run by BPF_PROG_TEST_RUN
 * alone and attached nowhere. XDP programs for both hooks: the hook is a number to parse() and decide().
 */

BPF_F_TABLE("array", __u32, struct test_run, test_runs, HOOK_COUNT, 0);

static __always_inline void keep_packet(struct test_run *run, const struct packet *packet)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		run->source[i] = packet->source[i];
		run->destination[i] = packet->destination[i];
	}
	run->source_port = packet->source_port;
	run->destination_port = packet->destination_port;
	run->family = packet->family;
	run->is_ip = packet->is_ip;
	run->protocol = packet->protocol;
	run->has = fields_of(packet->l4);
	run->tcp_flags = packet->tcp_flags;
	run->icmp_type = packet->icmp_type;
	run->icmp_code = packet->icmp_code;
	run->is_later_fragment = packet->is_later_fragment;
	run->is_fragment = packet->is_fragment;
	run->malformed = packet->malformed;
}

static __always_inline int judge(struct xdp_md *ctx, __u32 hook)
{
	struct cursor cursor = {.at = (void *)(long)ctx->data + TEST_PREFIX, .end = (void *)(long)ctx->data_end};
	struct decision decision = {};
	__u32 row = TEST_ROW(hook), place = hook;
	struct workspace *room = scratch.lookup(&row);
	struct test_run *run = test_runs.lookup(&place);
	struct packet *packet;

	if (!room || !run)
		return XDP_ABORTED;
	decision.room = room;
	decision.row = row;
	packet = &room->packet;
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->length = run->length;
	packet->ifindex = run->ifindex;
	cursor.left = run->length;
	if (run->is_bare)
		parse(&cursor, 1, packet);
	else
		parse(&cursor, 0, packet);
	if (!decide(&decision, packet, hook))
		return XDP_ABORTED;
	keep_packet(run, packet);
	run->verdict = decision.verdict;
	run->reason = decision.reason;
	run->rank = decision.rank;
	run->is_policy = decision.is_policy;
	run->handle = room->outcome.handle;
	run->scope = decision.best >> BEST_SCOPE_SHIFT & 0xff;
	run->prefix = decision.best >> BEST_LENGTH_SHIFT & 0xff;
	run->is_judged = 1;
	return XDP_PASS;
}

int fw_test_xdp_ingress(struct xdp_md *ctx)
{
	return judge(ctx, HOOK_INGRESS);
}

int fw_test_xdp_egress(struct xdp_md *ctx)
{
	return judge(ctx, HOOK_EGRESS);
}
