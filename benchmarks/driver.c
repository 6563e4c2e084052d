/* SPDX-License-Identifier: Dual MIT/GPL */
/*
 * Makes every run of a benchmark a packet of its own: the next frame of an array is written over the packet,
 * all of it, then the program under test runs (drive_tail) or the packet goes to an interface (drive_redirect).
 */

#define FRAME_WORDS 10

struct frame {
	__u64 word[FRAME_WORDS];
};

struct course {
	__u64 at;
	__u64 mask; /* number of frames, a power of two, less 1 */
	__u64 ifindex;
};

BPF_F_TABLE("array", __u32, struct frame, frames, FRAME_COUNT, BPF_F_MMAPABLE);
BPF_F_TABLE("array", __u32, struct course, courses, 1, BPF_F_MMAPABLE);
BPF_TABLE("prog", __u32, __u32, target, 1);
BPF_TABLE("prog", __u32, __u32, target_attach, 1);
BPF_TABLE("prog", __u32, __u32, target_frags, 1);

static __always_inline struct course *write_next(struct xdp_md *ctx)
{
	__u64 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 zero = 0, index;
	struct course *course = courses.lookup(&zero);
	struct frame *frame;

	if (!course || data + FRAME_WORDS > end)
		return 0;
	index = course->at++ & course->mask;
	frame = frames.lookup(&index);
	if (!frame)
		return 0;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		data[i] = frame->word[i];
	return course;
}

/*
 * The same program three times: the kernel lets a map of programs hold only those that were loaded like the
 * program that uses it (flags and attach type), and driver.py loads each of these in another way. bcc wants
 * map access outside macros.
 */
int drive_tail(struct xdp_md *ctx)
{
	if (write_next(ctx))
		target.call(ctx, 0);
	return XDP_ABORTED;
}

int drive_tail_attach(struct xdp_md *ctx)
{
	if (write_next(ctx))
		target_attach.call(ctx, 0);
	return XDP_ABORTED;
}

int drive_tail_frags(struct xdp_md *ctx)
{
	if (write_next(ctx))
		target_frags.call(ctx, 0);
	return XDP_ABORTED;
}

int drive_redirect(struct xdp_md *ctx)
{
	struct course *course = write_next(ctx);

	return course ? bpf_redirect(course->ifindex, 0) : XDP_ABORTED;
}

int bare_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

int bare_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}
