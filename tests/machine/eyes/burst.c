/* burst DIRECTORY COUNT: makes COUNT cgroups as fast as it can, with a waiting process in each. Prints their pids.
 * The processes end when standard input is closed. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    char name[4096], text[16];
    (void)count;
    for (int i = 0; i < atoi(arguments[2]); i++) {
        snprintf(name, sizeof name, "%s/%d", arguments[1], i);
        if (mkdir(name, 0755))
            return 1;
        pid_t pid = fork();
        if (!pid) {
            char byte;
            while (read(0, &byte, 1) > 0)
                ;
            _exit(0);
        }
        strcat(name, "/cgroup.procs");
        int file = open(name, O_WRONLY);
        int length = sprintf(text, "%d", pid);
        if (write(file, text, length) != length)
            return 2;
        close(file);
        printf("%d\n", pid);
    }
    puts("done");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
