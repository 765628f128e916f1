/* crowd COUNT: waits for a line, then forks COUNT children that stay until standard input is closed. */
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    char byte;
    (void)count;
    if (read(0, &byte, 1) != 1)
        return 1;
    for (int i = 0; i < atoi(arguments[1]); i++) {
        pid_t pid = fork();
        if (pid < 0)
            return 2;
        if (!pid) {
            while (read(0, &byte, 1) > 0)
                ;
            _exit(0);
        }
    }
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
