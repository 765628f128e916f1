/*
 * Queued signals: complete, and in the order in which they were sent.
 *     signals COUNT     prints `ready`; sends itself COUNT real-time signals from another process while a timer sends
 *                       others; prints `received N misordered N miscoded N leaked N`
 */
#define _GNU_SOURCE
#include "check.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

static volatile long next, misordered, miscoded;

static void queued(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    if (info->si_value.sival_int != next)
        misordered++;
    if (info->si_code != SI_QUEUE)
        miscoded++;
    next = info->si_value.sival_int + 1;
}

static void ticked(int number)
{
    (void)number;
}

int main(int count, char **arguments)
{
    long total = count == 2 ? atol(arguments[1]) : 0;
    struct sigaction action = {.sa_sigaction = queued, .sa_flags = SA_SIGINFO}, tick = {.sa_handler = ticked};
    struct itimerval often = {{0, 2000}, {0, 2000}};
    int ends[2];
    long leaked = 0;
    pid_t parent = getpid();

    sigaction(SIGRTMIN, &action, NULL);
    sigaction(SIGALRM, &tick, NULL);
    NEED(pipe(ends));
    say("ready");
    if (NEED(fork()) == 0) {
        for (long i = 0; i < total; i++) {
            union sigval value = {.sival_int = (int)i};
            struct timespec gap = {0, 50000};
            while (sigqueue(parent, SIGRTMIN, value))
                usleep(100); /* as many are waiting as may */
            nanosleep(&gap, NULL);
        }
        _exit(0);
    }
    setitimer(ITIMER_REAL, &often, NULL);
    while (next < total) {
        char byte;
        /* The kernel's own codes, 512 and up, are never a program's to see. */
        if (syscall(SYS_read, ends[0], &byte, 1) >= 0 || errno != EINTR)
            leaked++;
    }
    printf("received %ld misordered %ld miscoded %ld leaked %ld\n", next, misordered, miscoded, leaked);
    return 0;
}
