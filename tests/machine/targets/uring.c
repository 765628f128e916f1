/*
 * A process with a worker thread of the kernel's own.
 *     uring poller     one that polls the submission queue
 *     uring worker     one that a blocking read was handed to
 * Prints `ready`; at the end of its input prints `alive`, where the read by then has what was sent: `lost` otherwise.
 */
#define _GNU_SOURCE
#include "check.h"

#include <linux/io_uring.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static char received[4];

/* Of what it asks for, 4 bytes into `received` without ever trying it in this thread, only the offsets are needed. */
static void hand_over_a_read(int ring, struct io_uring_params *parameters, int from)
{
    struct io_sqring_offsets *at = &parameters->sq_off;
    size_t size = at->array + parameters->sq_entries * sizeof(uint32_t);
    size_t entries_size = parameters->sq_entries * sizeof(struct io_uring_sqe);
    char *queue = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entry =
        mmap(NULL, entries_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    NEED((long)queue);
    NEED((long)entry);
    *entry = (struct io_uring_sqe){
        .opcode = IORING_OP_READ, .flags = IOSQE_ASYNC, .fd = from, .addr = (uintptr_t)received, .len = sizeof received};
    ((uint32_t *)(queue + at->array))[0] = 0;
    __atomic_store_n((uint32_t *)(queue + at->tail), 1, __ATOMIC_RELEASE);
    NEED(syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0));
}

int main(int count, char **arguments)
{
    int is_worker = count == 2 && !strcmp(arguments[1], "worker"), ends[2];
    struct io_uring_params parameters = {.flags = is_worker ? 0 : IORING_SETUP_SQPOLL, .sq_thread_idle = 1000};
    int ring = NEED(syscall(SYS_io_uring_setup, 8, &parameters));
    char byte;
    NEED(pipe(ends));
    if (is_worker)
        hand_over_a_read(ring, &parameters, ends[0]);
    say("ready");
    while (read(0, &byte, 1) > 0)
        ;
    if (is_worker) {
        NEED(write(ends[1], "sent", 4));
        NEED(syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0));
    }
    say(!is_worker || !memcmp(received, "sent", 4) ? "alive" : "lost");
    return 0;
}
