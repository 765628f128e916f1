/* kin MODE: prints the pid of a child and waits until standard input is closed.
 *   fork    an ordinary child
 *   vfork   a child that runs in the parent's memory, the parent stopped meanwhile
 *   clone   a child that shares the memory for good (CLONE_VM)
 *   sibling the same, but a child of the parent's parent (CLONE_PARENT)
 *   threads no child: two threads, both alive; prints the second's tid
 *   headless no child: the leader ends and leaves a thread behind; prints its tid
 *   zombie  a child that has ended and is not waited for */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(int number)
{
    char text[16];
    int length = sprintf(text, "%d\n", number);
    if (write(1, text, length) != length)
        _exit(9);
}

static int rest(void *argument)
{
    char byte;
    (void)argument;
    while (read(0, &byte, 1) > 0)
        ;
    _exit(0);
}

static void *thread(void *argument)
{
    if (argument)
        pthread_join(*(pthread_t *)argument, 0); /* only once the leader is dead is anything said */
    say(syscall(SYS_gettid));
    rest(0);
    return 0;
}

int main(int count, char **arguments)
{
    static char stack[1 << 16];
    static pthread_t self;
    pthread_t other;
    const char *mode = arguments[1];
    (void)count;
    if (!strcmp(mode, "vfork")) {
        pid_t pid = vfork();
        if (!pid) {
            say(getpid());
            rest(0);
        }
        return pid < 0;
    }
    if (!strcmp(mode, "clone")) {
        say(clone(rest, stack + sizeof stack, CLONE_VM | SIGCHLD, 0));
        wait(0);
        return 0;
    }
    if (!strcmp(mode, "sibling")) {
        say(clone(rest, stack + sizeof stack, CLONE_VM | CLONE_PARENT | SIGCHLD, 0));
        rest(0);
    }
    if (!strcmp(mode, "threads") || !strcmp(mode, "headless")) {
        int headless = !strcmp(mode, "headless");
        self = pthread_self();
        if (pthread_create(&other, 0, thread, headless ? &self : 0))
            return 1;
        if (headless)
            pthread_exit(0);
        pthread_join(other, 0);
        return 0;
    }
    pid_t pid = fork();
    if (!pid) {
        if (!strcmp(mode, "zombie"))
            _exit(0);
        rest(0);
    }
    if (!strcmp(mode, "zombie")) {
        siginfo_t info;
        waitid(P_PID, pid, &info, WEXITED | WNOWAIT);
    }
    say(pid);
    rest(0);
}
