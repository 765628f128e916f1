/*
 * Large calls, one after the other, which a child on the other end keeps going: as often amid the copying as asleep.
 *     stream write|send|receive|sendfile
 * Prints `ready`, goes on until its input ends, and prints `calls N short N bad N spoilt N`: calls that did less than they
 * were asked for, bytes that were not the next ones, and calls after which registers or flags were others.
 */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define SIZE (1 << 20)
#define PIECE 10000

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

static void fill(unsigned char *into, uint64_t from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        into[i] = byte_at(from + i);
}

static long wrong(const unsigned char *what, uint64_t from, size_t size)
{
    long bad = 0;
    for (size_t i = 0; i < size; i++)
        bad += what[i] != byte_at(from + i);
    return bad;
}

static int read_all(int from)
{
    uint64_t at = 0;
    long bad = 0;
    for (ssize_t some; (some = NEED(read(from, there, SIZE))) > 0; at += some)
        bad += wrong(there, at, some);
    return bad != 0;
}

static void write_all(int to)
{
    uint64_t at = 0;
    for (;; at += PIECE) {
        fill(here, at, PIECE);
        if (send(to, here, PIECE, MSG_NOSIGNAL) != PIECE)
            _exit(0);
    }
}

static long spoilt;

/* The call, with every register that could be disturbed compared afterwards, and the carry flag. */
static ssize_t call(long number, long first, const void *second, long third, long fourth, long fifth)
{
    const void *rsi = second;
    long rdx = third, result;
    unsigned char carry;
    register long r10 asm("r10") = fourth;
    register long r8 asm("r8") = fifth;
    register long r9 asm("r9") = 0;
    register long r12 asm("r12") = 0x1234567890;
    register long rdi asm("rdi") = first;
    asm volatile("stc\n\tsyscall\n\tsetc %[carry]"
                 : "=a"(result), [carry] "=&q"(carry), "+S"(rsi), "+d"(rdx), "+r"(r10), "+r"(r8), "+r"(r9), "+r"(r12),
                   "+r"(rdi)
                 : "0"(number)
                 : "rcx", "r11", "memory");
    spoilt += rdi != first || rsi != second || rdx != third || r10 != fourth || r8 != fifth || r9 != 0;
    spoilt += r12 != 0x1234567890 || !carry;
    if (result < 0) {
        errno = -result;
        return -1;
    }
    return result;
}

int main(int count, char **arguments)
{
    const char *kind = count == 2 ? arguments[1] : "";
    int receives = !strcmp(kind, "receive"), ends[2], status;
    long calls = 0, shorts = 0, bad = 0;
    uint64_t at = 0;
    pthread_t waiting;
    if (!strcmp(kind, "write"))
        NEED(pipe(ends)); /* read from the first, written to the second */
    else
        NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    int file = NEED(memfd_create("stream", 0));
    pid_t child = NEED(fork());
    if (!child) {
        close(ends[1]);
        if (receives)
            write_all(ends[0]);
        _exit(read_all(ends[0]));
    }
    close(ends[0]);
    NEED(-pthread_create(&waiting, NULL, until_end_of_input, NULL));
    say("ready");
    while (!over) {
        ssize_t done;
        /* Not over the last ones: pages on their way are the file's own. */
        off_t from = calls % 8 * SIZE;
        if (!receives)
            fill(here, at, SIZE);
        if (!strcmp(kind, "sendfile"))
            NEED(pwrite(file, here, SIZE, from));
        if (receives)
            done = NEED(call(SYS_recvfrom, ends[1], here, SIZE, MSG_WAITALL, 0));
        else if (!strcmp(kind, "send"))
            done = NEED(call(SYS_sendto, ends[1], here, SIZE, 0, 0));
        else if (!strcmp(kind, "sendfile"))
            done = NEED(call(SYS_sendfile, ends[1], (void *)(long)file, (long)&from, SIZE, 0));
        else
            done = NEED(call(SYS_write, ends[1], here, SIZE, 0, 0));
        if (receives)
            bad += wrong(here, at, done);
        calls++;
        shorts += done < SIZE;
        at += done;
    }
    close(ends[1]);
    NEED(waitpid(child, &status, 0));
    printf("calls %ld short %ld bad %ld spoilt %ld\n", calls, shorts, bad + (status != 0), spoilt);
    fflush(stdout);
    return 0;
}
