/*
 * A thread that has taken one signal, and before it could be stopped and called has the next one waiting.
 *     storm     prints `ready`; at the end of its input ends the storm, and prints `alive`
 */
#define _GNU_SOURCE
#include "check.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/* Nanoseconds: more than taking a signal costs, and less than to stop a thread and to make it go on elsewhere. */
#define INTERVAL 40000

static timer_t timer;
static sigjmp_buf again;
static volatile int finished;

/* Out of here by a jump: the signal is never blocked. */
static void take(int number)
{
    (void)number;
    if (finished)
        timer_settime(timer, 0, &(struct itimerspec){{0, 0}, {0, 0}}, NULL);
    siglongjmp(again, 1);
}

static void *until_end_of_input(void *unused)
{
    sigset_t all;
    char byte;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    while (read(0, &byte, 1) > 0)
        ;
    finished = 1;
    return unused;
}

int main(void)
{
    struct sigaction action = {.sa_handler = take, .sa_flags = SA_NODEFER};
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN};
    pthread_t thread;
    event.sigev_notify_thread_id = (int)syscall(SYS_gettid);
    sigaction(SIGRTMIN, &action, NULL);
    NEED(timer_create(CLOCK_MONOTONIC, &event, &timer));
    pthread_create(&thread, NULL, until_end_of_input, NULL);
    say("ready");
    if (!sigsetjmp(again, 0))
        NEED(timer_settime(timer, 0, &(struct itimerspec){{0, INTERVAL}, {0, INTERVAL}}, NULL));
    while (!finished)
        ;
    /* It was disarmed by the last signal, or is by this. */
    signal(SIGRTMIN, SIG_IGN);
    pthread_join(thread, NULL);
    say("alive");
    return 0;
}
