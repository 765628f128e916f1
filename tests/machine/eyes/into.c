/* into DIRECTORY: a child made directly in another cgroup (clone3(2), CLONE_INTO_CGROUP), as service managers do.
 * Prints its pid; it ends when standard input is closed. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

int main(int count, char **arguments)
{
    uint64_t clone_args[11] = {0};
    (void)count;
    clone_args[0] = CLONE_INTO_CGROUP;
    clone_args[4] = SIGCHLD;
    clone_args[10] = open(arguments[1], O_PATH | O_DIRECTORY);
    pid_t pid = syscall(SYS_clone3, clone_args, sizeof clone_args);
    if (!pid) {
        char byte;
        while (read(0, &byte, 1) > 0)
            ;
        _exit(0);
    }
    printf("%d\n", pid);
    fflush(stdout);
    waitpid(pid, 0, 0);
    return pid < 0;
}
