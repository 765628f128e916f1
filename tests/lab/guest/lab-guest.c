/*
 * The few things inside the guest that a shell cannot do: run the job with its output on a virtio port, send a
 * stream through one, and end the machine with a status. Static, since the guest's libraries may be any.
 *
 *   lab-guest run PORT FILE    run the NUL-separated command in FILE, all it writes goes to PORT
 *   lab-guest send PORT        standard input to PORT
 *   lab-guest exit STATUS      end QEMU through isa-debug-exit
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEBUG_EXIT_PORT 0xf4
#define CHUNK 65536

static void die(const char *what)
{
    fprintf(stderr, "lab-guest: %s: %s\n", what, strerror(errno));
    exit(125);
}

static int open_port(const char *path)
{
    int fd = open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC);

    if (fd < 0)
        die(path);
    return fd;
}

static void write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            die("write to port");
        data += n;
        size -= n;
    }
}

/*
 * A write to a virtio port returns when the data is queued. The port is writable again when the host has taken
 * it (drivers/char/virtio_console.c, will_write_block), which must come before the machine ends.
 */
static void drain(int port)
{
    struct pollfd p = {.fd = port, .events = POLLOUT};

    while (poll(&p, 1, -1) < 0 && errno == EINTR)
        ;
}

/* Copy what is there; 0 at the end of the input, -1 when nothing is there now. */
static int copy(int from, int port)
{
    static char buffer[CHUNK];
    ssize_t n = read(from, buffer, sizeof buffer);

    if (n > 0)
        write_all(port, buffer, n);
    else if (n < 0 && errno != EAGAIN && errno != EINTR)
        die("read");
    return n > 0 ? 1 : n == 0 ? 0 : -1;
}

static char **read_command(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *text, **argv;
    size_t used = 0, count = 0;

    if (fd < 0 || fstat(fd, &st) < 0)
        die(path);
    text = calloc(1, st.st_size + 1);
    argv = calloc(st.st_size + 1, sizeof *argv);
    if (!text || !argv || read(fd, text, st.st_size) != st.st_size)
        die(path);
    while (used < (size_t)st.st_size) {
        argv[count++] = text + used;
        used += strlen(text + used) + 1;
    }
    close(fd);
    return argv;
}

/*
 * The job writes to a pipe and not to the port itself: a port can be opened once, so that /dev/stdout would fail.
 * When the job has ended, what it left in the pipe still goes out, but a daemon it left behind is not waited for.
 */
static int run(const char *path, const char *file)
{
    char **argv = read_command(file);
    int port = open_port(path), pipes[2], events, status, open_pipe = 1;
    struct pollfd p[2];
    sigset_t chld;
    pid_t pid;

    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, NULL);
    events = signalfd(-1, &chld, SFD_CLOEXEC);
    if (events < 0 || pipe2(pipes, O_CLOEXEC) < 0)
        die("pipe");
    pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        sigprocmask(SIG_UNBLOCK, &chld, NULL);
        dup2(pipes[1], 1);
        dup2(pipes[1], 2);
        execvp(argv[0], argv);
        fprintf(stderr, "lab: %s: %s\n", argv[0], strerror(errno));
        _exit(errno == ENOENT ? 127 : 126);
    }
    close(pipes[1]);
    fcntl(pipes[0], F_SETFL, O_NONBLOCK);
    p[0] = (struct pollfd){.fd = events, .events = POLLIN};
    p[1] = (struct pollfd){.fd = pipes[0], .events = POLLIN};
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (poll(p, open_pipe ? 2 : 1, -1) < 0 && errno != EINTR)
            die("poll");
        if (p[0].revents) {
            struct signalfd_siginfo info;

            if (read(events, &info, sizeof info) < 0)
                die("signalfd");
        }
        if (open_pipe && p[1].revents && copy(pipes[0], port) == 0)
            open_pipe = 0;
    }
    while (copy(pipes[0], port) > 0)
        ;
    drain(port);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int send_all(const char *path)
{
    int port = open_port(path);

    while (copy(0, port) != 0)
        ;
    drain(port);
    return 0;
}

static int end_machine(int status)
{
    /* QEMU ends with (value << 1) | 1 in 8 bits, so 7 bits of the status arrive; the rest goes by the control port. */
    if (ioperm(DEBUG_EXIT_PORT, 1, 1) < 0)
        die("ioperm");
    outb(status & 0x7f, DEBUG_EXIT_PORT);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "run"))
        return run(argv[2], argv[3]);
    if (argc == 3 && !strcmp(argv[1], "send"))
        return send_all(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "exit"))
        return end_machine(atoi(argv[2]));
    fprintf(stderr, "usage: lab-guest run PORT FILE | send PORT | exit STATUS\n");
    return 125;
}
