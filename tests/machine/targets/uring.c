/*
 * A process with a worker thread of the kernel's own.
 *     uring     prints `ready`; at the end of its input prints `alive`
 */
#define _GNU_SOURCE
#include "check.h"

#include <linux/io_uring.h>
#include <sys/syscall.h>

int main(void)
{
    struct io_uring_params parameters = {.flags = IORING_SETUP_SQPOLL, .sq_thread_idle = 1000};
    char byte;
    NEED(syscall(SYS_io_uring_setup, 8, &parameters));
    say("ready");
    while (read(0, &byte, 1) > 0)
        ;
    say("alive");
    return 0;
}
