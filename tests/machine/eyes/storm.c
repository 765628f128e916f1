/* storm COUNT: forks COUNT children one after the other, each of which ends at once. */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    (void)count;
    for (int i = 0; i < atoi(arguments[1]); i++) {
        pid_t pid = fork();
        if (!pid)
            _exit(0);
        if (pid < 0 || waitpid(pid, 0, 0) != pid)
            return 1;
    }
    return 0;
}
