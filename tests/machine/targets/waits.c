/*
 * One wait in the kernel, and what came of it.
 *     waits NAME SECONDS    prints `ready`, waits, prints `NAME RESULT ERRNO SECONDS_WAITED complete|broken`
 *     waits --list          names
 * Each wait ends by its own time limit, or by what another process does after SECONDS. `complete` means the result that
 * an undisturbed wait has: no EINTR, no short count.
 */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <mqueue.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

static double limit;
static struct timespec limit_spec;
static pid_t self;
static double began;
static clockid_t timed_by = CLOCK_MONOTONIC;
static char buffer[1 << 20];
static int piped[2], paired[2];

/* By the clock that the wait itself goes by: a clock that is being set right runs faster or slower than another. */
static double time_now(void)
{
    struct timespec t;
    clock_gettime(timed_by, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void ready(void)
{
    if (!began)
        began = time_now();
    say("ready");
}

/* In another process, once the limit is over. */
#define AFTERWARDS(action)                                                                                            \
    do {                                                                                                              \
        began = now();                                                                                                \
        if (NEED(fork()) == 0) {                                                                                      \
            struct timespec rest = limit_spec;                                                                        \
            while (nanosleep(&rest, &rest))                                                                           \
                ;                                                                                                     \
            action;                                                                                                   \
            _exit(0);                                                                                                 \
        }                                                                                                             \
    } while (0)

/* What the wait is measured from is what its deadline was reckoned from: what is done between the two may take long. */
static struct timespec deadline(clockid_t clock)
{
    timed_by = clock;
    began = time_now();
    return seconds(began + limit);
}

static void *shared(void)
{
    return NEED(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

static void block(int number)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

static void noted(int number)
{
    (void)number;
}

static int epoll_on_pipe(void)
{
    int epoll = NEED(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN};
    NEED(epoll_ctl(epoll, EPOLL_CTL_ADD, piped[0], &event));
    return epoll;
}

static void swallow(int fd, long count)
{
    while (count > 0) {
        ssize_t got = read(fd, buffer, sizeof buffer);
        if (got <= 0)
            break;
        count -= got;
    }
}

static long wait_nanosleep(void)
{
    struct timespec rest;
    ready();
    return syscall(SYS_nanosleep, &limit_spec, &rest);
}

static long wait_clock_nanosleep(void)
{
    struct timespec rest;
    ready();
    return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &limit_spec, &rest);
}

static long wait_clock_nanosleep_absolute(void)
{
    struct timespec until = deadline(CLOCK_MONOTONIC);
    ready();
    return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static long wait_poll(void)
{
    struct pollfd item = {piped[0], POLLIN, 0};
    ready();
    return syscall(SYS_poll, &item, 1, (int)(limit * 1000));
}

static long wait_ppoll(void)
{
    struct pollfd item = {piped[0], POLLIN, 0};
    ready();
    return syscall(SYS_ppoll, &item, 1, &limit_spec, NULL, 8);
}

static long wait_select(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(piped[0], &set);
    struct timeval timeout = {limit_spec.tv_sec, limit_spec.tv_nsec / 1000};
    ready();
    return syscall(SYS_select, piped[0] + 1, &set, NULL, NULL, &timeout);
}

static long wait_pselect(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(piped[0], &set);
    ready();
    return syscall(SYS_pselect6, piped[0] + 1, &set, NULL, NULL, &limit_spec, NULL);
}

static long wait_futex_timed(void)
{
    uint32_t word = 0;
    ready();
    return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &limit_spec, NULL, 0);
}

static long wait_futex_woken(void)
{
    uint32_t *word = shared();
    AFTERWARDS({
        *word = 1;
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
    });
    ready();
    return syscall(SYS_futex, word, FUTEX_WAIT, 0, NULL, NULL, 0);
}

static long wait_futex_bitset(void)
{
    uint32_t word = 0;
    struct timespec until = deadline(CLOCK_MONOTONIC);
    ready();
    return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &until, NULL, FUTEX_BITSET_MATCH_ANY);
}

static long wait_futex_pi(void)
{
    uint32_t *word = shared();
    int taken[2];
    char byte;
    NEED(pipe(taken));
    began = now();
    if (NEED(fork()) == 0) {
        struct timespec rest = limit_spec;
        syscall(SYS_futex, word, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
        NEED(write(taken[1], "x", 1));
        while (nanosleep(&rest, &rest))
            ;
        syscall(SYS_futex, word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
        _exit(0);
    }
    NEED(read(taken[0], &byte, 1));
    ready();
    return syscall(SYS_futex, word, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
}

static long wait_pipe_read(void)
{
    AFTERWARDS(NEED(write(piped[1], "0123456789", 10)));
    ready();
    return syscall(SYS_read, piped[0], buffer, 64);
}

static long wait_recv(void)
{
    AFTERWARDS(NEED(write(paired[0], "0123456789", 10)));
    ready();
    return syscall(SYS_recvfrom, paired[1], buffer, 64, 0, NULL, NULL);
}

static void limit_receiving(int fd)
{
    struct timeval timeout = {limit_spec.tv_sec, limit_spec.tv_nsec / 1000};
    NEED(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout));
}

static long wait_recv_timed(void)
{
    limit_receiving(paired[1]);
    ready();
    return syscall(SYS_recvfrom, paired[1], buffer, 64, 0, NULL, NULL);
}

static long wait_read_timed_socket(void)
{
    limit_receiving(paired[1]);
    ready();
    return syscall(SYS_read, paired[1], buffer, 64);
}

static int listening(struct sockaddr_un *address)
{
    int fd = NEED(socket(AF_UNIX, SOCK_STREAM, 0));
    socklen_t length = sizeof *address;
    address->sun_family = AF_UNIX;
    NEED(bind(fd, (struct sockaddr *)address, sizeof(sa_family_t)));
    NEED(listen(fd, 1));
    NEED(getsockname(fd, (struct sockaddr *)address, &length));
    return fd;
}

static long wait_accept(void)
{
    struct sockaddr_un address;
    int fd = listening(&address);
    AFTERWARDS(NEED(connect(NEED(socket(AF_UNIX, SOCK_STREAM, 0)), (struct sockaddr *)&address,
                            sizeof(sa_family_t) + 6)));
    ready();
    return syscall(SYS_accept, fd, NULL, NULL) >= 0 ? 0 : -1;
}

static long wait_accept_timed(void)
{
    struct sockaddr_un address;
    int fd = listening(&address);
    limit_receiving(fd);
    ready();
    return syscall(SYS_accept4, fd, NULL, NULL, 0);
}

static long wait_wait4(void)
{
    AFTERWARDS((void)0);
    ready();
    return syscall(SYS_wait4, -1, NULL, 0, NULL) > 0 ? 0 : -1;
}

static long wait_waitid(void)
{
    siginfo_t info;
    AFTERWARDS((void)0);
    ready();
    return syscall(SYS_waitid, P_ALL, 0, &info, WEXITED, NULL);
}

static long wait_eventfd(void)
{
    int fd = NEED(eventfd(0, 0));
    uint64_t value = 1;
    AFTERWARDS(NEED(write(fd, &value, 8)));
    ready();
    return syscall(SYS_read, fd, &value, 8);
}

static long wait_timerfd(void)
{
    int fd = NEED(timerfd_create(CLOCK_MONOTONIC, 0));
    struct itimerspec when = {{0, 0}, limit_spec};
    uint64_t value;
    NEED(timerfd_settime(fd, 0, &when, NULL));
    ready();
    return syscall(SYS_read, fd, &value, 8);
}

static long wait_inotify(void)
{
    char folder[] = "/tmp/hetmemd-waits-XXXXXX", file[64];
    int fd = NEED(inotify_init());
    if (!mkdtemp(folder))
        exit(99);
    NEED(inotify_add_watch(fd, folder, IN_CREATE));
    snprintf(file, sizeof file, "%s/x", folder);
    AFTERWARDS({
        close(NEED(open(file, O_CREAT | O_WRONLY, 0600)));
        unlink(file);
        rmdir(folder);
    });
    ready();
    return syscall(SYS_read, fd, buffer, 4096) > 0 ? 0 : -1;
}

static long wait_signalfd(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    block(SIGUSR1);
    int fd = NEED(signalfd(-1, &set, 0));
    AFTERWARDS(kill(self, SIGUSR1));
    ready();
    return syscall(SYS_read, fd, buffer, 4096) > 0 ? 0 : -1;
}

static int file_locked_elsewhere(int posix)
{
    char name[] = "/tmp/hetmemd-waits-XXXXXX";
    int fd = NEED(mkstemp(name)), taken[2];
    char byte;
    NEED(pipe(taken));
    began = now();
    if (NEED(fork()) == 0) {
        int own = NEED(open(name, O_RDWR));
        struct flock whole = {.l_type = F_WRLCK};
        struct timespec rest = limit_spec;
        unlink(name);
        NEED(posix ? fcntl(own, F_SETLK, &whole) : flock(own, LOCK_EX));
        NEED(write(taken[1], "x", 1));
        while (nanosleep(&rest, &rest))
            ;
        _exit(0);
    }
    NEED(read(taken[0], &byte, 1));
    return fd;
}

static long wait_flock(void)
{
    int fd = file_locked_elsewhere(0);
    ready();
    return syscall(SYS_flock, fd, LOCK_EX);
}

static long wait_fcntl_lock(void)
{
    int fd = file_locked_elsewhere(1);
    struct flock whole = {.l_type = F_WRLCK};
    ready();
    return syscall(SYS_fcntl, fd, F_SETLKW, &whole);
}

static long wait_mq_timedreceive(void)
{
    char name[64];
    struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 8};
    struct timespec until = deadline(CLOCK_REALTIME);
    snprintf(name, sizeof name, "/hetmemd-waits-%d", self);
    mqd_t queue = NEED(mq_open(name, O_CREAT | O_RDWR, 0600, &attributes));
    mq_unlink(name);
    ready();
    return syscall(SYS_mq_timedreceive, queue, buffer, 8, NULL, &until);
}

static long wait_pause(void)
{
    AFTERWARDS(kill(self, SIGUSR1));
    ready();
    return syscall(SYS_pause);
}

static long wait_sigsuspend(void)
{
    sigset_t none;
    sigemptyset(&none);
    block(SIGUSR1);
    AFTERWARDS(kill(self, SIGUSR1));
    ready();
    return syscall(SYS_rt_sigsuspend, &none, 8);
}

static long wait_sigtimedwait(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    block(SIGRTMIN);
    ready();
    return syscall(SYS_rt_sigtimedwait, &set, NULL, &limit_spec, 8);
}

static long wait_sigwaitinfo(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    block(SIGRTMIN);
    AFTERWARDS(kill(self, SIGRTMIN));
    ready();
    return syscall(SYS_rt_sigtimedwait, &set, NULL, NULL, 8) == SIGRTMIN ? 0 : -1;
}

static long wait_epoll_wait(void)
{
    struct epoll_event event;
    int epoll = epoll_on_pipe();
    ready();
    return syscall(SYS_epoll_wait, epoll, &event, 1, (int)(limit * 1000));
}

static long wait_epoll_wait_woken(void)
{
    struct epoll_event event;
    int epoll = epoll_on_pipe();
    AFTERWARDS(NEED(write(piped[1], "x", 1)));
    ready();
    return syscall(SYS_epoll_wait, epoll, &event, 1, -1);
}

static long wait_epoll_pwait(void)
{
    struct epoll_event event;
    int epoll = epoll_on_pipe();
    ready();
    return syscall(SYS_epoll_pwait, epoll, &event, 1, (int)(limit * 1000), NULL, 8);
}

static long wait_epoll_pwait2(void)
{
    struct epoll_event event;
    int epoll = epoll_on_pipe();
    ready();
    return syscall(SYS_epoll_pwait2, epoll, &event, 1, &limit_spec, NULL, 8);
}

static long wait_semtimedop(void)
{
    int set = NEED(semget(IPC_PRIVATE, 1, 0600));
    struct sembuf take = {0, -1, 0};
    ready();
    long result = syscall(SYS_semtimedop, set, &take, 1, &limit_spec);
    int code = errno;
    semctl(set, 0, IPC_RMID);
    errno = code;
    return result;
}

static long wait_msgrcv(void)
{
    int queue = NEED(msgget(IPC_PRIVATE, 0600));
    struct {
        long type;
        char text[8];
    } message = {1, ""};
    AFTERWARDS(NEED(msgsnd(queue, &message, 8, 0)));
    ready();
    long result = syscall(SYS_msgrcv, queue, &message, 8, 0, 0);
    int code = errno;
    msgctl(queue, IPC_RMID, NULL);
    errno = code;
    return result;
}

static long wait_io_getevents(void)
{
    unsigned long context = 0;
    NEED(syscall(SYS_io_setup, 8, &context));
    ready();
    return syscall(SYS_io_getevents, context, 1, 1, buffer, &limit_spec);
}

static long wait_io_uring_enter(void)
{
    struct io_uring_params parameters = {0};
    struct io_uring_getevents_arg argument = {.ts = (uint64_t)(uintptr_t)&limit_spec};
    int ring = NEED(syscall(SYS_io_uring_setup, 8, &parameters));
    ready();
    return syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument,
                   sizeof argument);
}

/* Those that a stop would cut short: they must not be stopped at all. */

static long wait_write_large(void)
{
    AFTERWARDS(swallow(piped[0], sizeof buffer));
    ready();
    return syscall(SYS_write, piped[1], buffer, sizeof buffer);
}

static long wait_send_large(void)
{
    AFTERWARDS(swallow(paired[0], sizeof buffer));
    ready();
    return syscall(SYS_sendto, paired[1], buffer, sizeof buffer, 0, NULL, 0);
}

static long wait_recv_whole(void)
{
    NEED(write(paired[0], "01234", 5));
    AFTERWARDS(NEED(write(paired[0], "56789", 5)));
    ready();
    return syscall(SYS_recvfrom, paired[1], buffer, 10, MSG_WAITALL, NULL, NULL);
}

static const struct {
    const char *name;
    long (*run)(void);
    long result;
    int code;
} waits[] = {
#define WAIT(name, result, code) {#name, wait_##name, result, code}
    WAIT(nanosleep, 0, 0),
    WAIT(clock_nanosleep, 0, 0),
    WAIT(clock_nanosleep_absolute, 0, 0),
    WAIT(poll, 0, 0),
    WAIT(ppoll, 0, 0),
    WAIT(select, 0, 0),
    WAIT(pselect, 0, 0),
    WAIT(futex_timed, -1, ETIMEDOUT),
    WAIT(futex_woken, 0, 0),
    WAIT(futex_bitset, -1, ETIMEDOUT),
    WAIT(futex_pi, 0, 0),
    WAIT(pipe_read, 10, 0),
    WAIT(recv, 10, 0),
    WAIT(recv_timed, -1, EAGAIN),
    WAIT(read_timed_socket, -1, EAGAIN),
    WAIT(accept, 0, 0),
    WAIT(accept_timed, -1, EAGAIN),
    WAIT(wait4, 0, 0),
    WAIT(waitid, 0, 0),
    WAIT(eventfd, 8, 0),
    WAIT(timerfd, 8, 0),
    WAIT(inotify, 0, 0),
    WAIT(signalfd, 0, 0),
    WAIT(flock, 0, 0),
    WAIT(fcntl_lock, 0, 0),
    WAIT(mq_timedreceive, -1, ETIMEDOUT),
    WAIT(pause, -1, EINTR), /* by the signal that it waits for */
    WAIT(sigsuspend, -1, EINTR),
    WAIT(sigtimedwait, -1, EAGAIN),
    WAIT(sigwaitinfo, 0, 0),
    WAIT(epoll_wait, 0, 0),
    WAIT(epoll_wait_woken, 1, 0),
    WAIT(epoll_pwait, 0, 0),
    WAIT(epoll_pwait2, 0, 0),
    WAIT(semtimedop, -1, EAGAIN),
    WAIT(msgrcv, 8, 0),
    WAIT(io_getevents, 0, 0),
    WAIT(io_uring_enter, -1, ETIME),
    WAIT(write_large, sizeof buffer, 0),
    WAIT(send_large, sizeof buffer, 0),
    WAIT(recv_whole, 10, 0),
};

int main(int count, char **arguments)
{
    const size_t known = sizeof waits / sizeof *waits;
    if (count == 2 && !strcmp(arguments[1], "--list")) {
        for (size_t i = 0; i < known; i++)
            puts(waits[i].name);
        return 0;
    }
    if (count != 3)
        return 2;
    limit = atof(arguments[2]);
    limit_spec = seconds(limit);
    self = getpid();
    NEED(pipe(piped));
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, paired));
    struct sigaction action = {.sa_handler = noted}; /* no SA_RESTART: the strictest there is */
    sigaction(SIGUSR1, &action, NULL);
    for (size_t i = 0; i < known; i++) {
        if (strcmp(waits[i].name, arguments[1]))
            continue;
        long result = waits[i].run();
        int code = result < 0 ? errno : 0;
        double took = time_now() - began;
        printf("%s %ld %d %.3f %s\n", waits[i].name, result, code, took,
               result == waits[i].result && code == waits[i].code && took >= limit - 0.005 ? "complete" : "broken");
        return 0;
    }
    return 2;
}
