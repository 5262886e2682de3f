/* SPDX-License-Identifier: GPL-2.0-only OR MIT
 *
 * System calls of the threads of migrating VMMs, and the times that these threads were off their
 * CPU.
 *
 * A record is sent only while the guest is stopped: while no thread of the process is inside
 * KVM_RUN, or `always` for a destination, which has not run yet. A call of 100 us or more is a
 * record; shorter ones are summed up by thread and kind of call for 10 ms. A process sends at most
 * MAX_RECORDS in 100 ms, and has at most MAX_SUMS sums: `missed` counts the calls beyond that.
 *
 * These programs run in every system call of the host, so they look up nothing by hash, and read
 * no clock that they can do without. Reading the clock twice is most of what a traced call costs.
 * If a thread has made BURST calls of a kind in a row that took less than SHORT_NS, all of its
 * calls of that kind are counted, but only one in MIN_UNTIMED + 1 to MAX_UNTIMED + 1 is timed, and
 * the mean stands for the others. A call that leaves the CPU or lasts until the next jiffy is timed
 * in any case, and a longer one interrupts the burst. The short calls of a thread are added to
 * their sum when it sleeps.
 */
#define LONG_NS 100000
#define SUM_NS 10000000
#define WAKE_NS 10000000 /* the reader has to look up its fd at once */
#define BUDGET_NS 100000000
#define MAX_RECORDS 2000
#define MAX_SUMS 2048
#define MAX_FD_ARGUMENT 1048576
#define KVM_RUN 0xae80
#define SHORT_NS 16000
#define BURST 16
#define MIN_UNTIMED 1
#define MAX_UNTIMED 5
#define LONGEST_JIFFY_NS 10000000 /* HZ=100 */

/* Powers of two, so that a mask bounds an index for the verifier. */
#define KINDS 8
#define MAX_CALLERS 16384
#define TRACED_BUCKETS 4096

#define MAX_TRACED 1024
#define MAX_CHAIN 8

/* The collector makes and ends the entry of a process that migrates. */
struct traced {
	u64 seq;
	u64 budget_ns;
	u64 missed;
	u64 sums; /* entries made in `sums` so far */
	u64 still_ns; /* when the last thread left KVM_RUN */
	u32 in_budget;
	u32 running; /* threads inside KVM_RUN */
	u32 always;
	u32 tgid;
	u32 number; /* never used again; 0: no process */
	u32 index; /* of this entry */
};

/* The short calls of one kind that a thread makes. `count` and what follows are those that are in
 * no sum yet. */
struct kind {
	u64 call;
	u64 timed_ns; /* end of the latest one that was timed */
	u64 begun_ns;
	u64 ns;
	u32 count;
	u32 longest_ns;
	u32 sleep_ns;
	u32 queue_ns;
	u32 cmd;
	u32 mean_ns;
	s32 ret; /* of the latest one that was timed */
	u8 untimed; /* since timed_ns */
	u8 in_row; /* short ones in a row, up to BURST */
	u8 left; /* how many of the next ones are not timed */
	u8 pad;
};

struct caller {
	u64 start_ns; /* of the call that the thread is in; 0: not known */
	u64 off_ns; /* since when it is off its CPU; 0: it runs */
	u64 wake_ns;
	u64 sleep_ns;
	u64 queue_ns;
	u64 read_ns; /* when the clock was read for it */
	u64 call; /* nr, and the fd above it */
	u64 jiffies; /* when the call began that is not timed */
	u32 cmd;
	u32 tid;
	u32 traced; /* index and number of its process's entry */
	u32 number;
	u32 state;
	u8 in_call;
	u8 in_run;
	u8 stopped; /* the call began while the guest was stopped */
	u8 seen; /* it has entered or left a call since the tracing began */
	u8 counted; /* 1 + index of its kind if the call is not timed */
	u8 unbooked; /* some kind has calls that are in no sum */
	u8 next_kind; /* the one that gives way to a new one */
	u8 pad;
	struct kind kinds[KINDS];
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

#define TASK_STATES 0xff /* prev_state without TASK_REPORT_MAX: preempted */
#define TASK_STOPPED_OR_TRACED 0xc

AS_BYTES(sum);
AS_BYTES(sum_key);
AS_BYTES(caller);
/* Entry 0 is not used. */
BPF_TABLE("array", u32, struct traced, traced, MAX_TRACED);
/* By the last bits of a tgid: the first process's entry in `traced`; by entry: the next one's. Only
 * the collector writes them. */
BPF_TABLE("array", u32, u32, traced_first, TRACED_BUCKETS);
BPF_TABLE("array", u32, u32, traced_next, MAX_TRACED);
/* A thread has one of two places (place_of). An entry whose process is no longer traced is free. */
BPF_TABLE("array", u32, struct caller_bytes, callers, MAX_CALLERS);
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
static __always_inline void add_to_sum(struct traced *p, struct sum_key *key, struct sum *one,
				       u64 now)
{
	struct sum *s = (struct sum *)sums.lookup((struct sum_key_bytes *)key);
	u64 *deleted;

	if (!s) {
		deleted = deleted_sums.lookup(&key->tgid);
		if (p->sums - (deleted ? *deleted : 0) >= MAX_SUMS ||
		    sums.insert((struct sum_key_bytes *)key, (struct sum_bytes *)one))
			__sync_fetch_and_add(&p->missed, one->count);
		else
			__sync_fetch_and_add(&p->sums, 1);
		return;
	}
	if (is_over(p, s, one->end_ns)) {
		send_sum(p, key, s, now);
		*s = *one;
		return;
	}
	s->end_ns = one->end_ns;
	s->ns += one->ns;
	if (one->longest_ns > s->longest_ns)
		s->longest_ns = one->longest_ns;
	s->sleep_ns += one->sleep_ns;
	s->queue_ns += one->queue_ns;
	s->ret = one->ret;
	s->count += one->count;
}

static __always_inline struct traced *traced_of(u32 tgid)
{
	u32 bucket = tgid & (TRACED_BUCKETS - 1), *at = traced_first.lookup(&bucket), index;
	struct traced *p;

#pragma unroll
	for (int i = 0; i < MAX_CHAIN; i++) {
		if (!at || !*at)
			return NULL;
		index = *at;
		p = traced.lookup(&index);
		if (p && p->tgid == tgid)
			return p;
		at = traced_next.lookup(&index);
	}
	return NULL;
}

/* As in vftrace/probes/calls.py. Threads of one process have consecutive numbers, and so have their
 * first places. */
static __always_inline struct caller *place_of(u32 tid, bool second)
{
	u32 place = (second ? tid * 0x9e3779b1 >> 16 : tid) & (MAX_CALLERS - 1);

	return (struct caller *)callers.lookup(&place);
}

/* Returns the process of a thread's entry; NULL if it is no longer traced. */
static __always_inline struct traced *process_of(struct caller *c)
{
	u32 index = c->traced;
	struct traced *p = traced.lookup(&index);

	return p && c->number && p->number == c->number ? p : NULL;
}

static __always_inline struct caller *known_caller(u32 tid)
{
	struct caller *c = place_of(tid, false);

	if (c && c->tid == tid)
		return c;
	c = place_of(tid, true);
	return c && c->tid == tid ? c : NULL;
}

/* The thread's entry, made if need be; NULL if both of its places are taken. */
static __always_inline struct caller *caller_of(struct traced *p, u32 tid)
{
	struct caller *c = known_caller(tid);

	if (c && c->number == p->number)
		return c;
	c = place_of(tid, false);
	if (!c || process_of(c)) {
		c = place_of(tid, true);
		if (!c || process_of(c)) {
			__sync_fetch_and_add(&p->missed, 1);
			return NULL;
		}
	}
	__builtin_memset(c, 0, sizeof(*c));
	c->traced = p->index;
	c->number = p->number;
	c->tid = tid;
	return c;
}

static __always_inline void key_of(struct sum_key *key, struct traced *p, struct caller *c,
				   u64 call, u32 cmd)
{
	key->tgid = p->tgid;
	key->thread = c->tid;
	key->nr = (u32)call;
	key->cmd = cmd;
	key->fd = call >> 32;
}

/* Adds the calls of a kind to its sum. */
static __always_inline void book(struct traced *p, struct caller *c, struct kind *k, u64 now)
{
	struct sum_key key = {};
	struct sum one = { .start_ns = k->begun_ns, .ret = k->ret };
	u64 each;

	if (!k->count && !k->untimed)
		return;
	if (!k->count)
		one.start_ns = k->timed_ns;
	/* The untimed ones came as fast as those before them. */
	each = k->count ? (k->timed_ns - k->begun_ns) / k->count : k->mean_ns;
	one.end_ns = k->timed_ns + k->untimed * each;
	if (one.end_ns > now)
		one.end_ns = now;
	one.count = k->count + k->untimed;
	one.ns = k->ns + (u64)k->untimed * k->mean_ns;
	one.longest_ns = k->count ? k->longest_ns : k->mean_ns;
	one.sleep_ns = k->sleep_ns;
	one.queue_ns = k->queue_ns;
	k->ns = 0;
	k->count = k->untimed = k->longest_ns = k->sleep_ns = k->queue_ns = 0;
	key_of(&key, p, c, k->call, k->cmd);
	add_to_sum(p, &key, &one, now);
}

static __always_inline struct kind *kind_of(struct caller *c, u64 call, u32 cmd, u32 *index)
{
	u32 found = KINDS;

#pragma unroll
	for (u32 i = 0; i < KINDS; i++)
		if (c->kinds[i].call == call && c->kinds[i].cmd == cmd)
			found = i;
	*index = found;
	return found < KINDS ? &c->kinds[found & (KINDS - 1)] : NULL;
}

/* Returns whether a kind's calls have to be booked before one more is added: they are old, or they
 * began before the guest stopped (is_over). */
static __always_inline bool is_full(struct traced *p, struct kind *k, u64 now)
{
	return k->count && (now - k->begun_ns > SUM_NS || k->begun_ns < p->still_ns);
}

/* Counts a short call that was timed, and the untimed ones before it. The mean is an average in
 * which earlier ones fade. */
static __always_inline void add_short(struct traced *p, struct caller *c, u64 start, u64 now,
				      s64 ret)
{
	u32 ns = now - start, index;
	struct kind *k = kind_of(c, c->call, c->cmd, &index);
	bool fresh = !k;

	if (fresh)
		k = &c->kinds[c->next_kind++ & (KINDS - 1)];
	if (fresh || is_full(p, k, now))
		book(p, c, k, now);
	if (fresh) {
		k->call = c->call;
		k->cmd = c->cmd;
		k->mean_ns = ns;
		k->in_row = k->left = 0;
	}
	k->mean_ns = (3 * k->mean_ns + ns) / 4;
	if (ns < SHORT_NS) {
		if (k->in_row < BURST)
			k->in_row++;
		else
			k->left = MIN_UNTIMED + (now >> 4) % (MAX_UNTIMED - MIN_UNTIMED + 1);
	} else {
		k->in_row /= 2;
		k->left = 0;
	}
	if (!k->count)
		k->begun_ns = k->untimed ? k->timed_ns : start;
	k->count += 1 + k->untimed;
	k->ns += ns + (u64)k->untimed * k->mean_ns;
	k->untimed = 0;
	if (ns > k->longest_ns)
		k->longest_ns = ns;
	k->sleep_ns += c->sleep_ns;
	k->queue_ns += c->queue_ns;
	k->timed_ns = now;
	k->ret = ret;
	c->unbooked = 1;
}

/* Returns when an untimed call began that still lasts: now, if no jiffy has passed. Else it began
 * less than a jiffy before the first one that passed, and after the thread's latest reading. */
static __always_inline u64 untimed_start(struct caller *c, u64 now)
{
	u64 passed = jiffies() - c->jiffies, start = now - (passed + 1) * LONGEST_JIFFY_NS;

	if (!passed)
		return now;
	return start < c->read_ns ? c->read_ns : start;
}

static __always_inline int call_enter(void *regs, u32 nr)
{
	u64 id = bpf_get_current_pid_tgid(), first;
	struct traced *p = traced_of(id >> 32);
	struct caller *c;
	struct kind *k;
	u32 index;

	if (!p)
		return 0;
	c = caller_of(p, (u32)id);
	if (!c)
		return 0;
	c->in_call = c->seen = 1;
	c->counted = 0;
	c->start_ns = c->sleep_ns = c->queue_ns = 0;
	first = typed_u64(regs, FIRST_ARGUMENT_OFFSET);
	c->cmd = nr == SYS_IOCTL ? typed_u64(regs, SECOND_ARGUMENT_OFFSET) : 0;
	c->call = nr | (first < MAX_FD_ARGUMENT ? first : (u32)-1) << 32;
	c->stopped = stands_still(p);
	if (nr == SYS_IOCTL && c->cmd == KVM_RUN && !c->in_run) {
		c->in_run = 1;
		__sync_fetch_and_add(&p->running, 1);
		return 0;
	}
	if (c->stopped) {
		k = kind_of(c, c->call, c->cmd, &index);
		if (k && k->left) {
			k->left--;
			c->counted = index + 1;
			c->jiffies = jiffies();
			return 0;
		}
	}
	c->start_ns = c->read_ns = now_ns();
	return 0;
}

static __always_inline int call_exit(void *regs, s64 ret)
{
	u64 id = bpf_get_current_pid_tgid(), now, start;
	struct traced *p = traced_of(id >> 32);
	struct caller *c;
	bool in_call, stopped;

	if (!p)
		return 0;
	c = caller_of(p, (u32)id);
	if (!c)
		return 0;
	start = c->start_ns;
	in_call = c->in_call;
	stopped = c->stopped;
	c->start_ns = c->in_call = c->stopped = 0;
	c->seen = 1;
	if (c->in_run) {
		c->in_run = 0;
		__sync_fetch_and_add(&p->running, -1);
		if (!p->running)
			p->still_ns = now_ns();
		return 0;
	}
	/* The thread was in KVM_RUN, on a CPU, when the tracing began: /proc shows the call of a
	 * sleeping thread only. */
	if (!in_call && !p->running && (u32)typed_u64(regs, NUMBER_OFFSET) == SYS_IOCTL &&
	    typed_u64(regs, SECOND_ARGUMENT_OFFSET) == KVM_RUN) {
		p->still_ns = now_ns();
		return 0;
	}
	if (c->counted && !start) {
		struct kind *k = &c->kinds[(c->counted - 1) & (KINDS - 1)];

		if (jiffies() == c->jiffies) {
			k->untimed++;
			c->unbooked = 1;
			return 0;
		}
		now = now_ns();
		start = untimed_start(c, now);
	} else {
		if (!stopped && !stands_still(p))
			return 0;
		now = now_ns();
	}
	c->read_ns = now;
	if (start && now - start < LONG_NS) {
		add_short(p, c, start, now, ret);
		return 0;
	}
	if (within_budget(p, now, 1)) {
		struct vft_call r = { .start_ns = start, .end_ns = now, .ret = ret, .count = 1 };

		head(&r.h, p, p->tgid, c->tid, now, VFT_CALL, sizeof(r));
		r.pid = p->tgid;
		r.thread = c->tid;
		r.nr = in_call ? (u32)c->call : (u32)typed_u64(regs, NUMBER_OFFSET);
		r.cmd = in_call ? c->cmd : 0;
		r.fd = in_call ? (s32)(c->call >> 32) : -1;
		if (start)
			r.ns = r.longest_ns = now - start;
		r.sleep_ns = c->sleep_ns;
		r.queue_ns = c->queue_ns;
		send(NULL, &r, sizeof(r), r.ns >= WAKE_NS ? WAKE : NO_WAKE);
	}
	return 0;
}

/* sched_switch runs in the thread that leaves its CPU. A thread that sleeps may never call again,
 * so its calls are booked. */
static __always_inline void switch_out(u32 tid, u64 state)
{
	struct traced *p = traced_of(bpf_get_current_pid_tgid() >> 32);
	struct caller *c;

	if (!p)
		return;
	c = caller_of(p, tid);
	if (!c)
		return;
	c->off_ns = now_ns();
	if (c->counted && c->in_call && !c->start_ns)
		c->start_ns = untimed_start(c, c->off_ns);
	c->wake_ns = 0;
	c->state = state & TASK_STATES;
	if (!c->state || !c->unbooked)
		return;
	c->unbooked = 0;
#pragma unroll
	for (u32 i = 0; i < KINDS; i++)
		book(p, c, &c->kinds[i], c->off_ns);
}

static __always_inline void send_off_cpu(struct traced *p, struct caller *c, u64 start, u64 end,
					 u32 reason)
{
	struct vft_off_cpu r = { .start_ns = start, .end_ns = end, .reason = reason };

	if (!(c->stopped || stands_still(p)) || !within_budget(p, end, 1))
		return;
	head(&r.h, p, p->tgid, c->tid, end, VFT_OFF_CPU, sizeof(r));
	r.pid = p->tgid;
	r.thread = c->tid;
	r.state = c->state;
	send(NULL, &r, sizeof(r), NO_WAKE);
}

static __always_inline void switch_in(u32 tid)
{
	struct caller *c = known_caller(tid);
	struct traced *p;
	u64 now, off, wake;

	if (!c || !c->off_ns)
		return;
	p = process_of(c);
	if (!p)
		return;
	now = now_ns();
	off = c->off_ns;
	wake = !c->state ? off : c->wake_ns > off ? c->wake_ns : now;
	c->off_ns = 0;
	c->read_ns = now;
	c->sleep_ns += wake - off;
	c->queue_ns += now - wake;
	if (now - wake >= LONG_NS)
		send_off_cpu(p, c, wake, now, VFT_QUEUED);
	if (wake - off < LONG_NS)
		return;
	if (c->state & TASK_STOPPED_OR_TRACED)
		send_off_cpu(p, c, off, wake, VFT_STOPPED);
	else if (!c->in_call && c->seen)
		send_off_cpu(p, c, off, wake, VFT_SLEPT);
}

static __always_inline int woken(u32 tid)
{
	struct caller *c = known_caller(tid);

	if (c && c->off_ns && !c->wake_ns && process_of(c))
		c->wake_ns = now_ns();
	return 0;
}
