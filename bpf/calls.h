/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * System calls of the threads of migrating VMMs, and the times that these threads were off their
 * CPU.
 *
 * A record is sent only while the guest is stopped: while no thread of the process is inside
 * KVM_RUN, or `always` for a destination, which has not run yet. A call of 100 us or more is a
 * record; shorter ones are summed up by thread and kind of call for 10 ms. A process sends at most
 * MAX_RECORDS in 100 ms, and has at most MAX_SUMS sums: `missed` counts the calls beyond that.
 */
#define LONG_NS 100000
#define SUM_NS 10000000
#define WAKE_NS 10000000 /* the reader has to look up its fd at once */
#define BUDGET_NS 100000000
#define MAX_RECORDS 2000
#define MAX_SUMS 2048
#define MAX_FD_ARGUMENT 1048576
#define KVM_RUN 0xae80

/* The collector makes and deletes the entry of a process that migrates. */
struct traced {
	u64 seq;
	u64 budget_ns;
	u64 missed;
	u64 sums; /* entries made in `sums` so far */
	u64 still_ns; /* when the last thread left KVM_RUN */
	u32 in_budget;
	u32 running; /* threads inside KVM_RUN */
	u32 always;
	u32 pad;
};

struct caller {
	u64 start_ns; /* of the call that the thread is in; 0: in none */
	u64 off_ns; /* since when it is off its CPU; 0: it runs */
	u64 wake_ns;
	u64 sleep_ns;
	u64 queue_ns;
	u32 tgid;
	u32 nr;
	u32 cmd;
	s32 fd;
	u32 state;
	u8 in_run;
	u8 stopped; /* the call began while the guest was stopped */
	u8 seen; /* it has entered or left a call since the tracing began */
	u8 pad;
};

struct sum_key {
	u32 tgid;
	u32 thread;
	u32 nr;
	u32 cmd;
	s32 fd;
	u32 pad;
};

struct sum {
	u64 start_ns;
	u64 end_ns;
	u64 ns;
	u64 longest_ns;
	u64 sleep_ns;
	u64 queue_ns;
	s64 ret;
	u64 count;
};

struct raw_syscall {
	u64 regs;
	u64 value;
};

#define TASK_STATES 0xff /* prev_state without TASK_REPORT_MAX: preempted */
#define TASK_STOPPED_OR_TRACED 0xc

AS_BYTES(sum);
AS_BYTES(sum_key);
BPF_TABLE("hash", u32, struct traced, traced, 1024);
BPF_TABLE("hash", u32, struct caller, callers, 65536);
BPF_TABLE("hash", struct sum_key_bytes, struct sum_bytes, sums, 16384);
/* By process: entries of `sums` that the collector has deleted. Only the collector writes it. */
BPF_TABLE("hash", u32, u64, deleted_sums, 1024);

union call_record {
	struct vft_header h;
	struct vft_call call;
	struct vft_off_cpu off;
};

/* Returns whether the process may send one more record now; if not, `count` calls are missed. */
static __always_inline bool within_budget(struct traced *p, u64 now, u64 count)
{
	if (now - p->budget_ns > BUDGET_NS) {
		p->budget_ns = now;
		p->in_budget = 0;
	}
	if (p->in_budget >= MAX_RECORDS) {
		__sync_fetch_and_add(&p->missed, count);
		return false;
	}
	__sync_fetch_and_add(&p->in_budget, 1);
	return true;
}

static __always_inline void head(struct vft_header *h, struct traced *p, u32 tgid, u32 tid, u64 now,
				 u16 kind, u32 size)
{
	h->at_ns = now;
	h->size = size;
	h->kind = kind;
	h->reserved = 0;
	h->tgid = tgid;
	h->tid = tid;
	h->seq = fetch_add(&p->seq, 1);
}

static __always_inline bool stands_still(struct traced *p)
{
	return p->always || !p->running;
}

static __always_inline void send_sum(struct traced *p, struct sum_key *key, struct sum *s, u64 now)
{
	struct vft_call r = {};

	if (!within_budget(p, now, s->count))
		return;
	head(&r.h, p, key->tgid, key->thread, now, VFT_CALL, sizeof(r));
	r.start_ns = s->start_ns;
	r.end_ns = s->end_ns;
	r.ns = s->ns;
	r.longest_ns = s->longest_ns;
	r.sleep_ns = s->sleep_ns;
	r.queue_ns = s->queue_ns;
	r.ret = s->ret;
	r.pid = key->tgid;
	r.thread = key->thread;
	r.nr = key->nr;
	r.cmd = key->cmd;
	r.fd = key->fd;
	r.count = s->count;
	send(NULL, &r, sizeof(r), NO_WAKE);
}

/* Returns whether nothing is added to a sum any more: it is 10 ms old, or it began before the guest
 * stopped, at least 100 us ago. So a blackout's calls are counted apart from those before it. */
static __always_inline bool is_over(struct traced *p, struct sum *s, u64 now)
{
	u64 still = p->still_ns;

	return now - s->start_ns > SUM_NS || (s->start_ns < still && now - still > LONG_NS);
}

/* Adds a call to its sum. A sum that is over is sent and begun anew. Only the thread itself
 * changes its sums; the collector takes those that are left. */
static __always_inline void add_to_sum(struct traced *p, struct sum_key *key, struct sum *one)
{
	struct sum *s = (struct sum *)sums.lookup((struct sum_key_bytes *)key);
	u64 *deleted;

	if (!s) {
		deleted = deleted_sums.lookup(&key->tgid);
		if (p->sums - (deleted ? *deleted : 0) >= MAX_SUMS ||
		    sums.insert((struct sum_key_bytes *)key, (struct sum_bytes *)one))
			__sync_fetch_and_add(&p->missed, 1);
		else
			__sync_fetch_and_add(&p->sums, 1);
		return;
	}
	if (is_over(p, s, one->end_ns)) {
		send_sum(p, key, s, one->end_ns);
		*s = *one;
		return;
	}
	s->end_ns = one->end_ns;
	s->ns += one->ns;
	if (one->ns > s->longest_ns)
		s->longest_ns = one->ns;
	s->sleep_ns += one->sleep_ns;
	s->queue_ns += one->queue_ns;
	s->ret = one->ret;
	s->count++;
}

/* The thread's entry, made if need be; NULL if the table is full. */
static __always_inline struct caller *caller_of(u32 tid, u32 tgid)
{
	struct caller *c = callers.lookup(&tid);
	struct caller fresh = { .tgid = tgid };

	if (c)
		return c;
	callers.update(&tid, &fresh);
	return callers.lookup(&tid);
}

static __always_inline int call_enter(void *regs, u32 nr)
{
	u64 id = bpf_get_current_pid_tgid(), first;
	u32 tgid = id >> 32, tid = (u32)id;
	struct traced *p = traced.lookup(&tgid);
	struct caller *c;

	if (!p)
		return 0;
	c = caller_of(tid, tgid);
	if (!c) {
		__sync_fetch_and_add(&p->missed, 1);
		return 0;
	}
	c->tgid = tgid;
	c->seen = 1;
	c->start_ns = now_ns();
	c->sleep_ns = c->queue_ns = 0;
	first = register_at(regs, FIRST_ARGUMENT_OFFSET);
	c->nr = nr;
	c->cmd = nr == SYS_IOCTL ? register_at(regs, SECOND_ARGUMENT_OFFSET) : 0;
	c->fd = first < MAX_FD_ARGUMENT ? first : -1;
	c->stopped = stands_still(p);
	if (c->nr == SYS_IOCTL && c->cmd == KVM_RUN && !c->in_run) {
		c->in_run = 1;
		__sync_fetch_and_add(&p->running, 1);
	}
	return 0;
}

static __always_inline int call_exit(void *regs, s64 ret)
{
	u64 id = bpf_get_current_pid_tgid(), now, start;
	u32 tgid = id >> 32, tid = (u32)id;
	struct traced *p = traced.lookup(&tgid);
	struct caller *c;
	bool send_it;

	if (!p)
		return 0;
	c = caller_of(tid, tgid);
	if (!c) {
		__sync_fetch_and_add(&p->missed, 1);
		return 0;
	}
	now = now_ns();
	start = c->start_ns;
	c->start_ns = 0;
	c->seen = 1;
	if (c->in_run) {
		c->in_run = 0;
		__sync_fetch_and_add(&p->running, -1);
		if (!p->running)
			p->still_ns = now;
		return 0;
	}
	/* The thread was in KVM_RUN, on a CPU, when the tracing began: /proc shows the call of a
	 * sleeping thread only. */
	if (!start && !p->running && (u32)register_at(regs, NUMBER_OFFSET) == SYS_IOCTL &&
	    register_at(regs, SECOND_ARGUMENT_OFFSET) == KVM_RUN) {
		p->still_ns = now;
		return 0;
	}
	send_it = c->stopped || stands_still(p);
	c->stopped = 0;
	if (!send_it)
		return 0;
	if (start && now - start < LONG_NS) {
		struct sum_key key = { .tgid = tgid, .thread = tid };
		struct sum one = { .start_ns = start, .end_ns = now, .count = 1, .ret = ret };

		key.nr = c->nr;
		key.cmd = c->cmd;
		key.fd = c->fd;
		one.ns = one.longest_ns = now - start;
		one.sleep_ns = c->sleep_ns;
		one.queue_ns = c->queue_ns;
		add_to_sum(p, &key, &one);
		return 0;
	}
	if (within_budget(p, now, 1)) {
		struct vft_call r = { .start_ns = start, .end_ns = now, .ret = ret, .count = 1 };

		head(&r.h, p, tgid, tid, now, VFT_CALL, sizeof(r));
		r.pid = tgid;
		r.thread = tid;
		r.nr = start ? c->nr : (u32)register_at(regs, NUMBER_OFFSET);
		r.cmd = start ? c->cmd : 0;
		r.fd = start ? c->fd : -1;
		if (start)
			r.ns = r.longest_ns = now - start;
		r.sleep_ns = c->sleep_ns;
		r.queue_ns = c->queue_ns;
		send(NULL, &r, sizeof(r), r.ns >= WAKE_NS ? WAKE : NO_WAKE);
	}
	return 0;
}

/* sched_switch runs in the thread that leaves its CPU. */
static __always_inline void switch_out(u32 tid, u64 state)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct caller *c;

	if (!traced.lookup(&tgid))
		return;
	c = caller_of(tid, tgid);
	if (!c)
		return;
	c->off_ns = now_ns();
	c->wake_ns = 0;
	c->state = state & TASK_STATES;
}

static __always_inline void send_off_cpu(struct caller *c, u32 tid, u64 start, u64 end, u32 reason)
{
	struct traced *p = traced.lookup(&c->tgid);
	struct vft_off_cpu r = { .start_ns = start, .end_ns = end, .reason = reason };

	if (!p || !(c->stopped || stands_still(p)) || !within_budget(p, end, 1))
		return;
	head(&r.h, p, c->tgid, tid, end, VFT_OFF_CPU, sizeof(r));
	r.pid = c->tgid;
	r.thread = tid;
	r.state = c->state;
	send(NULL, &r, sizeof(r), NO_WAKE);
}

static __always_inline void switch_in(u32 tid)
{
	struct caller *c = callers.lookup(&tid);
	u64 now, off, wake;

	if (!c || !c->off_ns)
		return;
	now = now_ns();
	off = c->off_ns;
	wake = !c->state ? off : c->wake_ns > off ? c->wake_ns : now;
	c->off_ns = 0;
	c->sleep_ns += wake - off;
	c->queue_ns += now - wake;
	if (now - wake >= LONG_NS)
		send_off_cpu(c, tid, wake, now, VFT_QUEUED);
	if (wake - off < LONG_NS)
		return;
	if (c->state & TASK_STOPPED_OR_TRACED)
		send_off_cpu(c, tid, off, wake, VFT_STOPPED);
	else if (!c->start_ns && c->seen)
		send_off_cpu(c, tid, off, wake, VFT_SLEPT);
}

static __always_inline int woken(u32 tid)
{
	struct caller *c = callers.lookup(&tid);

	if (c && c->off_ns && !c->wake_ns)
		c->wake_ns = now_ns();
	return 0;
}
