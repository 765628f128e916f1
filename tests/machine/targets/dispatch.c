/*
 * Syscall user dispatch, as Wine uses it: syscalls come back as SIGSYS while the selector says so.
 *     dispatch     prints `ready`; at SIGTERM prints `dispatched N`, which is 0 where nobody called anything here
 */
#define _GNU_SOURCE
#include "check.h"

#include <signal.h>
#include <sys/prctl.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static volatile char selector; /* 0 allows, 1 blocks */
static volatile long dispatched;
static volatile sig_atomic_t stopped;

/* rt_sigreturn is a syscall as well: both handlers return with the selector at "allow". */
static void handle(int number)
{
    selector = 0;
    if (number == SIGSYS)
        dispatched++;
    else
        stopped = 1;
}

int main(void)
{
    struct sigaction action = {.sa_handler = handle};
    sigaction(SIGSYS, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    NEED(prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &selector));
    say("ready");
    while (!stopped)
        selector = 1; /* and no syscall in here */
    selector = 0;
    printf("dispatched %ld\n", dispatched);
    return 0;
}
