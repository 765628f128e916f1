/*
 * Threads that check themselves: data through a pipe, waits that last as long as asked, signals in order.
 *     steady     prints `ready`; at the end of its input prints
 *                `blocks N mismatched N waits N broken N received N misordered N`
 */
#define _GNU_SOURCE
#include "check.h"

#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/select.h>
#include <sys/syscall.h>

#define BLOCK 64 /* words: a block is written whole or not at all (PIPE_BUF) */

static volatile int finished;
static volatile long blocks, mismatched, waits, broken, received, misordered;
static int pipe_ends[2];
static pthread_t receiver_thread;
static struct fare *signals_fare;

static uint64_t scrambled(uint64_t value)
{
    value ^= value << 13;
    value ^= value >> 7;
    return value ^ value << 17;
}

static void *writer(void *unused)
{
    uint64_t block[BLOCK], value = 88172645463325252u;
    struct fare *fare = new_fare();
    while (!finished) {
        rest();
        for (int i = 0; i < BLOCK; i++)
            block[i] = value = scrambled(value);
        int is_short = write(pipe_ends[1], block, sizeof block) != sizeof block;
        mismatched += is_short;
        found(fare, is_short);
    }
    close(pipe_ends[1]);
    return unused;
}

static void *reader(void *unused)
{
    uint64_t block[BLOCK], value = 88172645463325252u;
    struct fare *fare = new_fare();
    ssize_t got;
    while ((got = read(pipe_ends[0], block, sizeof block)) != 0) {
        if (got != sizeof block) {
            mismatched++;
            found(fare, 1000);
            break;
        }
        uint64_t wrong = 0;
        for (int i = 0; i < BLOCK; i++)
            wrong += block[i] != (value = scrambled(value));
        mismatched += wrong;
        found(fare, wrong);
        if (++blocks % 16 == 0)
            usleep(1000); /* so that the writer has to wait, and leaves the processor to others */
    }
    return unused;
}

static void *waiter(void *unused)
{
    static const double length = 0.003;
    struct fare *fare = new_fare();
    uint32_t word = 0;
    for (int kind = 0; !finished; kind = (kind + 1) % 5) {
        struct timespec t = seconds(length);
        struct timeval v = {0, (long)(length * 1e6)};
        int good;
        rest();
        double begin = now();
        switch (kind) {
        case 0:
            good = nanosleep(&t, NULL) == 0;
            break;
        case 1:
            good = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL) == 0;
            break;
        case 2:
            good = poll(NULL, 0, (int)(length * 1000)) == 0;
            break;
        case 3:
            good = select(0, NULL, NULL, NULL, &v) == 0;
            break;
        default:
            good = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, NULL, 0) == -1 && errno == ETIMEDOUT;
        }
        good = good && now() - begin >= length - 0.0001;
        broken += !good;
        waits++;
        found(fare, good ? 0 : 1 + kind);
    }
    return unused;
}

static void handle(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    int is_next = info->si_value.sival_int == received;
    misordered += !is_next;
    found(signals_fare, !is_next);
    received = info->si_value.sival_int + 1;
}

static void *receiver(void *unused)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    while (!finished) {
        rest();
        usleep(500);
    }
    return unused;
}

static void *sender(void *unused)
{
    for (int number = 0; !finished; number++) {
        rest();
        union sigval value = {.sival_int = number};
        while (pthread_sigqueue(receiver_thread, SIGRTMIN, value))
            usleep(100); /* as many are waiting as may */
        usleep(300);
    }
    return unused;
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
    void *(*const run[])(void *) = {writer, reader, waiter, sender};
    pthread_t threads[4];
    sigset_t set;
    char byte;

    open_report();
    signals_fare = new_fare();
    sigaction(SIGRTMIN, &action, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    NEED(pipe(pipe_ends));
    pthread_create(&receiver_thread, NULL, receiver, NULL);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, run[i], NULL);
    say("ready");
    while (read(0, &byte, 1) > 0)
        ;
    finished = 1;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    pthread_join(receiver_thread, NULL);
    printf("blocks %ld mismatched %ld waits %ld broken %ld received %ld misordered %ld\n", blocks, mismatched, waits,
           broken, received, misordered);
    return 0;
}
