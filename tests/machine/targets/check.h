/*
 * What the targets of the act share: a clock, stopping with a message where the test itself cannot work, and a page in
 * which they tell how they fare while they run.
 */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <linux/futex.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline struct timespec seconds(double s)
{
    struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    return t;
}

/* The setup of a target must not fail: what it would measure then means nothing. */
#define NEED(what)                                                                                                    \
    ({                                                                                                                \
        __typeof__(what) need_result = (what);                                                                        \
        if ((long)need_result == -1) {                                                                                \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what, strerror(errno));                           \
            exit(99);                                                                                                 \
        }                                                                                                             \
        need_result;                                                                                                  \
    })

static inline void say(const char *line)
{
    puts(line);
    fflush(stdout);
}

/* How one thread fares. Each of these on a cache line of its own. */
struct fare {
    volatile uint64_t checks; /* how often it has looked at itself */
    volatile uint64_t bad;
    volatile uint64_t what; /* that was bad last: the target's own number for it */
    volatile uint64_t interrupted; /* waits that ended with EINTR, of the kind that any stop may end so (signal(7)) */
    uint64_t unused[4];
};

/* A page that whoever started the program may share with it: descriptor $HETMEMD_REPORT. */
struct report {
    volatile uint64_t arena, arena_length; /* memory of the program to call mbind(2) for */
    volatile uint64_t busy; /* from outside, with FUTEX_WAKE: whether to work. All day long it would disturb others. */
    volatile uint64_t count;
    uint64_t unused[4];
    struct fare fares[63];
};

static struct report *report;

/* Before there are threads. */
static inline void open_report(void)
{
    const char *descriptor = getenv("HETMEMD_REPORT");
    report = mmap(NULL, sizeof *report, PROT_READ | PROT_WRITE, MAP_SHARED | (descriptor ? 0 : MAP_ANONYMOUS),
                  descriptor ? atoi(descriptor) : -1, 0);
    if (report == MAP_FAILED) {
        perror("report");
        exit(99);
    }
    if (!descriptor)
        report->busy = 1;
    const size_t length = 1 << 18;
    void *arena = NEED(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(arena, 1, length);
    report->arena_length = length;
    report->arena = (uintptr_t)arena;
}

static inline struct fare *new_fare(void)
{
    return &report->fares[__atomic_fetch_add(&report->count, 1, __ATOMIC_SEQ_CST)];
}

static inline void found(struct fare *fare, uint64_t what)
{
    if (what) {
        fare->what = what;
        fare->bad++;
    }
    fare->checks++;
}

/* Where there is nothing to do: until there is, or for a while. */
static inline void rest(void)
{
    struct timespec a_while = {0, 100000000};
    if (!report->busy)
        syscall(SYS_futex, &report->busy, FUTEX_WAIT, 0, &a_while, NULL, 0);
}

#endif
