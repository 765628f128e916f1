/*
 * A thread that counts the signals SIGRTMIN that it is sent.
 *     storm spin|wait     prints `ready`; at the end of its input `received N`. The leader spins, or blocks in a read.
 */
#define _GNU_SOURCE
#include "check.h"

#include <pthread.h>
#include <signal.h>

static volatile int finished;
static volatile long received;

static void take(int number)
{
    (void)number;
    received++;
}

static void *until_end_of_input(void *unused)
{
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    finished = 1;
    return unused;
}

static void *reading(void *unused)
{
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGSYS);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    return until_end_of_input(unused);
}

int main(int count, char **arguments)
{
    /* Never blocked, not even amid the handler. */
    struct sigaction action = {.sa_handler = take, .sa_flags = SA_RESTART | SA_NODEFER};
    pthread_t thread;
    sigaction(SIGRTMIN, &action, NULL);
    if (count == 2 && !strcmp(arguments[1], "spin")) {
        pthread_create(&thread, NULL, reading, NULL);
        say("ready");
        while (!finished)
            ;
        pthread_join(thread, NULL);
    } else {
        say("ready");
        until_end_of_input(NULL);
    }
    printf("received %ld\n", received);
    return 0;
}
