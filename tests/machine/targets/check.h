/* What the targets of the act share: a clock, and stopping with a message where the test itself cannot work. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline struct timespec seconds(double s)
{
    struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    return t;
}

/* The setup of a target must not fail: what it would measure then means nothing. */
#define NEED(what)                                                                                                    \
    ({                                                                                                                \
        __typeof__(what) need_result = (what);                                                                        \
        if ((long)need_result == -1) {                                                                                \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what, strerror(errno));                           \
            exit(99);                                                                                                 \
        }                                                                                                             \
        need_result;                                                                                                  \
    })

static inline void say(const char *line)
{
    puts(line);
    fflush(stdout);
}

#endif
