/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * The programs that make reports, one a type of program. They return the verdict that the filter left in the workspace.
 *
 * Fail-open: without the workspace, which cannot be missing, the packet passes.
 */

/*
 * The first `size` bytes of a frame that has so many, by words and then by bytes: bpf_xdp_load_bytes came with Linux
 * 5.18. Of the bytes the verifier knows neither where they start nor, since the pointers are read anew, how far the
 * words had come: so it looks at them once and not once a word.
 */
static __always_inline void copy_words(__u8 *to, struct xdp_md *ctx, __u64 size)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 whole = size & ~7ULL;

#pragma clang loop unroll(disable)
	for (__u64 word = 0; word < SNAP_LENGTH_MAX; word += 8) {
		if (word >= whole || data + word + 8 > end)
			break;
		*(__u64 *)(to + word) = *(__u64 *)(data + word);
	}
}

static __always_inline void copy_rest(__u8 *to, struct xdp_md *ctx, __u64 size)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 at = size & ~7ULL;

#pragma clang loop unroll(disable)
	for (int i = 0; i < 7; i++, at++) {
		asm volatile("" : "+r"(at));
		if (at >= size || at >= SNAP_LENGTH_MAX || data + at + 1 > end)
			break;
		to[at] = *(__u8 *)(data + at);
	}
}

static __always_inline void report_frame(struct xdp_md *ctx, struct workspace *room)
{
	struct control *control;
	struct report_room *made;
	__u32 zero = 0, streams;
	__u64 size;

	control = control_map.lookup(&zero);
	made = report_rooms.lookup(&zero);
	if (!control || !made)
		return;
	streams = admitted(control, &room->outcome);
	if (!streams)
		return;
	fill_report(&made->report, room, HOOK_INGRESS, streams, winner(room));
	size = snapped(control, &made->report, ctx->data_end - ctx->data);
	copy_words(made->bytes, ctx, size);
	asm volatile("" : "+r"(ctx), "+r"(size)); /* or what was read and computed of them is kept */
	copy_rest(made->bytes, ctx, size);
	send_report(made, size);
}

/*
 * Answers how many bytes there are: all of `size`, or none. The arithmetic leaves a size of 1 to SNAP_LENGTH_MAX as it is:
 * from comparisons Linux 5.10 does not see that it is not 0.
 */
static __always_inline __u64 copy_skb(__u8 *to, struct __sk_buff *skb, __u64 size)
{
	asm volatile("" : "+r"(size));
	if (!size)
		return 0;
	size = ((size - 1) & (SNAP_LENGTH_MAX - 1)) + 1;
	return bpf_skb_load_bytes(skb, 0, to, size) ? 0 : size;
}

static __always_inline void report_skb(struct __sk_buff *skb, struct workspace *room)
{
	struct control *control;
	struct report_room *made;
	__u32 zero = 0, streams;
	__u64 size;

	control = control_map.lookup(&zero);
	made = report_rooms.lookup(&zero);
	if (!control || !made)
		return;
	streams = admitted(control, &room->outcome);
	if (!streams)
		return;
	fill_report(&made->report, room, HOOK_EGRESS, streams, winner(room));
	size = snapped(control, &made->report, skb->len);
	send_report(made, copy_skb(made->bytes, skb, size));
}

int fw_report_xdp(struct xdp_md *ctx)
{
	__u32 hook = HOOK_INGRESS;
	struct workspace *room = scratch.lookup(&hook);

	if (!room)
		return XDP_PASS;
	report_frame(ctx, room);
	return xdp_action(room->outcome.verdict);
}

int fw_report_tc(struct __sk_buff *skb)
{
	__u32 hook = HOOK_EGRESS;
	struct workspace *room = scratch.lookup(&hook);

	if (!room)
		return TC_ACT_UNSPEC;
	report_skb(skb, room);
	return tc_action(room->outcome.verdict);
}
