/*
 * The act in C, step for step as hetmemd does it, to compare with.
 *     pause PID MODE [NS]   set_mempolicy(MODE, static, node 0; 0: default) in every thread of PID; prints for each
 *                           thread its pause in ns, then `total NS`. With NS it lets so much time pass from one act to
 *                           the next, busy: a thread that has slept for longer is slower to be woken, by anybody.
 * For a 64-bit target without leftovers, filters or signals: what it measures is the undisturbed case.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* include/uapi/linux/ptrace.h, which cannot stand beside the C library's. */
#define GET_RSEQ_CONFIGURATION 0x420f
#define GET_SYSCALL_USER_DISPATCH_CONFIG 0x4211

#define NEED(what)                                                                                                    \
    ({                                                                                                                \
        long need_result = (long)(what);                                                                              \
        if (need_result == -1) {                                                                                      \
            perror(#what);                                                                                            \
            exit(1);                                                                                                  \
        }                                                                                                             \
        need_result;                                                                                                  \
    })

enum { STUB = 16, VALUES = 72, DATA = 80, MASK = STUB + VALUES + DATA, SLOT = MASK + 16 };

static int directory, memory;
static uint64_t padding;

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static int thread_file(int tid, const char *file, char *into, int size)
{
    char name[64];
    snprintf(name, sizeof name, "task/%d/%s", tid, file);
    int fd = NEED(openat(directory, name, O_RDONLY | O_CLOEXEC));
    int got = read(fd, into, size);
    close(fd);
    return got;
}

static void wait_stop(void)
{
    siginfo_t info;
    NEED(waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WNOWAIT | __WALL));
}

static void write_stub(unsigned char *slot, const struct user_regs_struct *r)
{
    static const unsigned char loads[9][3] = {{0x48, 0x8b, 0x05}, {0x48, 0x8b, 0x3d}, {0x48, 0x8b, 0x35},
                                              {0x48, 0x8b, 0x15}, {0x4c, 0x8b, 0x15}, {0x4c, 0x8b, 0x05},
                                              {0x4c, 0x8b, 0x0d}, {0x48, 0x8b, 0x0d}, {0x4c, 0x8b, 0x1d}};
    uint64_t rax = r->rax, rip = r->rip;
    long code = (long)rax;
    if ((long)r->orig_rax >= 0 && (code == -512 || code == -513 || code == -514 || code == -516)) {
        rip -= 2;
        rax = code == -516 ? 219 : r->orig_rax;
    }
    uint64_t values[10] = {rax, r->rdi, r->rsi, r->rdx, r->r10, r->r8, r->r9, r->rcx, r->r11, rip};
    unsigned char *at = slot + STUB;
    memset(slot, 0, SLOT);
    memcpy(slot, "hetmemd\1", 8);
    *at++ = 0x0f;
    *at++ = 0x05;
    for (int i = 0; i < 9; i++) {
        int32_t offset = VALUES + 8 * i - (int)(at - slot - STUB + 7);
        memcpy(at, loads[i], 3);
        memcpy(at + 3, &offset, 4);
        at += 7;
    }
    int32_t offset = VALUES + 72 - (int)(at - slot - STUB + 6);
    *at++ = 0xff;
    *at++ = 0x25;
    memcpy(at, &offset, 4);
    memcpy(slot + STUB + VALUES, values, sizeof values);
    slot[MASK] = 1;
}

static long act(int tid, int mode)
{
    struct user_regs_struct original, calling, entered;
    struct iovec vector = {&original, sizeof original};
    struct ptrace_sud_config {
        uint64_t mode, selector, offset, length;
    } dispatch;
    struct stat unused;
    unsigned char slot[SLOT], zeros[SLOT] = {0};
    char name[64];

    NEED(ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD));
    snprintf(name, sizeof name, "task/%d", tid);
    NEED(fstatat(directory, name, &unused, 0));
    long begin = now();
    NEED(ptrace(PTRACE_INTERRUPT, tid, 0, 0));
    wait_stop();
    NEED(ptrace(PTRACE_GETREGSET, tid, 1, &vector));
    ptrace(GET_SYSCALL_USER_DISPATCH_CONFIG, tid, sizeof dispatch, &dispatch);
    if ((long)original.orig_rax < 0) {
        struct {
            uint64_t pointer;
            uint32_t size, signature, flags, pad;
        } rseq;
        uint64_t section;
        if (ptrace(GET_RSEQ_CONFIGURATION, tid, sizeof rseq, &rseq) > 0 && rseq.pointer)
            NEED(pread(memory, &section, 8, rseq.pointer + 8));
    }
    write_stub(slot, &original);
    NEED(ptrace(PTRACE_SETOPTIONS, tid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP));
    NEED(pwrite(memory, slot, sizeof slot, padding));
    errno = 0;
    ptrace(PTRACE_PEEKDATA, tid, padding + 8, 0);
    calling = original;
    calling.rax = 238;
    calling.orig_rax = -1;
    calling.rip = padding + STUB;
    calling.rdi = mode ? mode | 1 << 15 : 0;
    calling.rsi = mode ? padding + MASK : 0;
    calling.rdx = mode ? 65 : 0;
    vector.iov_base = &calling;
    NEED(ptrace(PTRACE_SETREGSET, tid, 1, &vector));
    vector.iov_base = &entered;
    for (int stop = 0; stop < 2; stop++) {
        NEED(ptrace(PTRACE_SYSCALL, tid, 0, 0));
        wait_stop();
        NEED(ptrace(PTRACE_GETREGSET, tid, 1, &vector));
        if (!stop && (entered.orig_rax != calling.rax || entered.rdi != calling.rdi || entered.rsi != calling.rsi)) {
            fprintf(stderr, "another call\n");
            exit(1);
        }
    }
    long result = (long)entered.rax;
    vector.iov_base = &original;
    NEED(ptrace(PTRACE_SETREGSET, tid, 1, &vector));
    NEED(pwrite(memory, zeros, sizeof zeros, padding));
    NEED(ptrace(PTRACE_DETACH, tid, 0, 0));
    long pause = now() - begin;
    if (result) {
        fprintf(stderr, "set_mempolicy: %ld\n", result);
        exit(1);
    }
    return pause;
}

int main(int count, char **arguments)
{
    static long pauses[1 << 16];
    static int tids[1 << 16];
    unsigned long pairs[64];
    char name[64], text[4096];
    int threads = 0;
    if (count != 3 && count != 4)
        return 2;
    long pace = count == 4 ? atol(arguments[3]) : 0;
    snprintf(name, sizeof name, "/proc/%s", arguments[1]);
    directory = NEED(open(name, O_RDONLY | O_DIRECTORY));
    memory = NEED(openat(directory, "mem", O_RDWR));
    int auxv = NEED(openat(directory, "auxv", O_RDONLY));
    NEED(read(auxv, pairs, sizeof pairs));
    for (int i = 0; pairs[i]; i += 2)
        if (pairs[i] == AT_SYSINFO_EHDR) {
            uint64_t head[8];
            uint16_t sizes[5];
            NEED(pread(memory, head, sizeof head, pairs[i + 1]));
            NEED(pread(memory, sizes, sizeof sizes, pairs[i + 1] + 54));
            padding = (pairs[i + 1] + head[5] + sizes[2] * sizes[3] + 15) & ~15UL;
        }
    snprintf(name, sizeof name, "/proc/%s/task", arguments[1]);
    DIR *tasks = opendir(name);
    for (struct dirent *entry; (entry = readdir(tasks));)
        if (entry->d_name[0] != '.')
            tids[threads++] = atoi(entry->d_name);
    long begin = now();
    for (int i = 0; i < threads; i++) {
        long previous = now();
        thread_file(tids[i], "numa_maps", text, 80);
        thread_file(tids[i], "stat", text, sizeof text);
        thread_file(tids[i], "syscall", text, sizeof text);
        while (now() - previous < pace)
            ;
        pauses[i] = act(tids[i], atoi(arguments[2]));
        thread_file(tids[i], "numa_maps", text, 80);
    }
    long total = now() - begin;
    for (int i = 0; i < threads; i++)
        printf("%ld\n", pauses[i]);
    printf("total %ld\n", total);
    return 0;
}
