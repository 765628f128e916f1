/*
 * A process with many regions to be.
 *     regions PAGES end|spin|alarms     prints `ready ADDRESS TID`; at the end of input `intact N` of PAGES pages
 * The leader blocks in a read; the thread TID sleeps until the first page has a policy of its own, and then ends (`end`),
 * spins, or spins under a signal every 200 us.
 */
#define _GNU_SOURCE
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { PAGE = 4096 };

static volatile int tid, finished;
static const char *kind;
static uint64_t *area;

static void nothing(int number)
{
    (void)number;
}

static void *other(void *unused)
{
    tid = (int)syscall(SYS_gettid);
    if (!strcmp(kind, "end")) {
        int mode = 0;
        while (!mode) {
            usleep(200);
            NEED(syscall(SYS_get_mempolicy, &mode, NULL, 0, area, 2 /* MPOL_F_ADDR */));
        }
        return unused;
    }
    if (!strcmp(kind, "alarms")) {
        struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1, ._sigev_un._tid = tid};
        struct itimerspec often = {{0, 200000}, {0, 200000}};
        timer_t timer;
        signal(SIGUSR1, nothing);
        NEED(timer_create(CLOCK_MONOTONIC, &event, &timer));
        NEED(timer_settime(timer, 0, &often, NULL));
    }
    while (!finished)
        ;
    return unused;
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    long pages = atol(arguments[1]), intact = 0;
    kind = arguments[2];
    area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return 99;
    for (long i = 0; i < pages; i++)
        area[i * PAGE / 8] = (uint64_t)i ^ 0x5a5a;
    pthread_t thread;
    pthread_create(&thread, NULL, other, NULL);
    while (!tid)
        usleep(100);
    printf("ready %lu %d\n", (unsigned long)area, tid);
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    finished = 1;
    pthread_join(thread, NULL);
    for (long i = 0; i < pages; i++)
        intact += area[i * PAGE / 8] == ((uint64_t)i ^ 0x5a5a);
    printf("intact %ld\n", intact);
    return 0;
}
