/*
 * Large writes into a pipe, one after the other, which a child empties: as often amid the copying as asleep.
 *     stream quick|slow      how the child reads
 * Prints `ready`, goes on until its input ends, and prints `calls N short N bad N spoilt N`: writes that did less than they
 * were asked for, bytes that were not the next ones, and calls after which registers or flags were others.
 */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/wait.h>

#define SIZE (1 << 20)

static unsigned char here[SIZE], there[SIZE];
static volatile int over;

static void *until_end_of_input(void *none)
{
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    over = 1;
    return none;
}

/* Byte `at` of the stream. */
static unsigned char byte_at(uint64_t at)
{
    return at ^ at >> 8 ^ at >> 16;
}

static int read_all(int from, int is_slow)
{
    uint64_t at = 0;
    long bad = 0;
    for (ssize_t some; (some = NEED(read(from, there, SIZE))) > 0; at += some) {
        for (ssize_t i = 0; i < some; i++)
            bad += there[i] != byte_at(at + i);
        if (is_slow)
            usleep(20000);
    }
    return bad != 0;
}

static long spoilt;

/* write(2), with every register that could be disturbed compared afterwards, and the carry flag. */
static ssize_t checked_write(int to, const void *what, long size)
{
    const void *rsi = what;
    long rdx = size, result, rdi = to;
    unsigned char carry;
    register long r10 asm("r10") = 10;
    register long r8 asm("r8") = 8;
    register long r9 asm("r9") = 9;
    register long r12 asm("r12") = 12;
    asm volatile("stc\n\tsyscall\n\tsetc %[carry]"
                 : "=a"(result), [carry] "=&q"(carry), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+r"(r10), "+r"(r8), "+r"(r9),
                   "+r"(r12)
                 : "0"((long)SYS_write)
                 : "rcx", "r11", "memory");
    spoilt += rdi != to || rsi != what || rdx != size || r10 != 10 || r8 != 8 || r9 != 9 || r12 != 12 || !carry;
    if (result < 0) {
        errno = -result;
        return -1;
    }
    return result;
}

int main(int count, char **arguments)
{
    int ends[2], status;
    long calls = 0, shorts = 0;
    uint64_t at = 0;
    pthread_t waiting;
    NEED(pipe(ends)); /* read from the first, written to the second */
    pid_t child = NEED(fork());
    if (!child) {
        close(ends[1]);
        _exit(read_all(ends[0], count == 2 && !strcmp(arguments[1], "slow")));
    }
    close(ends[0]);
    NEED(-pthread_create(&waiting, NULL, until_end_of_input, NULL));
    say("ready");
    while (!over) {
        for (size_t i = 0; i < SIZE; i++)
            here[i] = byte_at(at + i);
        ssize_t done = NEED(checked_write(ends[1], here, SIZE));
        calls++;
        shorts += done < SIZE;
        at += done;
    }
    close(ends[1]);
    NEED(waitpid(child, &status, 0));
    printf("calls %ld short %ld bad %d spoilt %ld\n", calls, shorts, status != 0, spoilt);
    fflush(stdout);
    return 0;
}
