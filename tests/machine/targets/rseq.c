/*
 * Restartable sequences: two threads on one CPU increment a counter without atomic instructions.
 *     rseq     prints `ready`; at the end of its input prints `committed N lost N aborted N`
 * Registered by hand, so that it works with a C library of any age (GLIBC_TUNABLES=glibc.pthread.rseq=0).
 */
#define _GNU_SOURCE
#include "check.h"

#include <linux/rseq.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>

#define SIGNATURE 0x53053053

static volatile long counter;
static volatile int finished;
static __thread struct rseq area __attribute__((aligned(32)));

static struct tally {
    volatile long committed, aborted;
} tallies[2];

/* Whether the second thread keeps away from the counter. */
static volatile int away;

/* The first thread waits for the other to keep away, and counts; that one keeps away for as long as it is asked to. */
static volatile int counting;

static void compare(long self, struct fare *fare)
{
    if (self == 0) {
        counting = 1;
        __sync_synchronize();
        while (!away && !finished)
            sched_yield();
        if (!finished)
            found(fare, tallies[0].committed + tallies[1].committed != counter);
        rest();
        counting = 0;
        return;
    }
    do {
        away = 1;
        while (counting && !finished) {
            sched_yield();
            rest();
        }
        away = 0;
        __sync_synchronize();
    } while (counting && !finished);
    found(fare, 0);
}

/* 1 where the increment was committed, 0 where it has to be begun again. */
static inline int increment(void)
{
    __asm__ goto(".pushsection .data.rseq_cs, \"aw\"\n"
                 ".balign 32\n"
                 "3: .long 0, 0\n"
                 ".quad 1f, 2f - 1f, 4f\n"
                 ".popsection\n"
                 "lea 3b(%%rip), %%rax\n"
                 "mov %%rax, %0\n"
                 "1: mov %1, %%rax\n"
                 "mov $300, %%ecx\n"
                 "5: dec %%ecx\n"
                 "jnz 5b\n"
                 "inc %%rax\n"
                 "mov %%rax, %1\n"
                 "2:\n"
                 ".pushsection .text.rseq_abort, \"ax\"\n"
                 ".byte 0x0f, 0xb9, 0x3d\n"
                 ".long 0x53053053\n"
                 "4: jmp %l[abort]\n"
                 ".popsection\n"
                 :
                 : "m"(area.rseq_cs), "m"(counter)
                 : "rax", "rcx", "memory", "cc"
                 : abort);
    return 1;
abort:
    return 0;
}

static void *work(void *argument)
{
    struct tally *tally = argument;
    struct fare *fare = new_fare();
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    NEED(sched_setaffinity(0, sizeof first, &first));
    NEED(syscall(SYS_rseq, &area, sizeof area, 0, SIGNATURE));
    for (long turn = 0; !finished; turn++) {
        if (increment())
            tally->committed++;
        else
            tally->aborted++;
        *(volatile uint64_t *)&area.rseq_cs = 0;
        if (turn % 1000 == 0)
            compare(tally - tallies, fare);
    }
    NEED(syscall(SYS_rseq, &area, sizeof area, RSEQ_FLAG_UNREGISTER, SIGNATURE));
    return NULL;
}

int main(void)
{
    pthread_t threads[2];
    char byte;
    open_report();
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, work, &tallies[i]);
    say("ready");
    while (read(0, &byte, 1) > 0)
        ;
    finished = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    long committed = tallies[0].committed + tallies[1].committed;
    printf("committed %ld lost %ld aborted %ld\n", committed, committed - counter,
           tallies[0].aborted + tallies[1].aborted);
    return 0;
}
