/* Dies of SIGSEGV while a tracer waits for its first thread to stop, which takes it a while each time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

#define SIZE (256UL << 20)
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

static void *watch(void *unused)
{
    char name[64], text[2048];

    (void)unused;
    snprintf(name, sizeof(name), "/proc/self/task/%d/status", getpid());
    for (;; usleep(1000)) {
        int fd = open(name, O_RDONLY);
        ssize_t size = read(fd, text, sizeof(text) - 1);

        close(fd);
        text[size > 0 ? size : 0] = 0;
        char *found = strstr(text, "TracerPid:\t");
        if (found && found[11] != '0')
            *(volatile int *)0 = 0;
    }
    return NULL;
}

int main(void)
{
    pthread_t thread;
    char *memory = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    /* The zero page throughout: it takes time, and no memory but page tables. */
    madvise(memory, SIZE, MADV_NOHUGEPAGE);
    if (memory == MAP_FAILED || pthread_create(&thread, NULL, watch, NULL))
        return 1;
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        madvise(memory, SIZE, MADV_POPULATE_READ);
        madvise(memory, SIZE, MADV_DONTNEED);
    }
}
