/*
 * Blocked in a call that has done a part of its work, and would return short if it were stopped.
 *     large write     into a pipe, which a child empties         large send      into a socket, likewise
 *     large receive   with MSG_WAITALL, which a child feeds
 * Prints `ready`; at the end of its input the child sets to work. Prints `complete`, or `short N of N`.
 */
#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define SIZE (1 << 20)

static char here[SIZE], there[SIZE];

static void until_end_of_input(void)
{
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
}

int main(int count, char **arguments)
{
    const char *kind = count == 2 ? arguments[1] : "";
    int ends[2];
    ssize_t done;
    memset(here, 'x', SIZE);
    if (!strcmp(kind, "write"))
        NEED(pipe(ends)); /* read from the first, written to the second */
    else
        NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    pid_t child = NEED(fork());
    if (!child) {
        int status = 0;
        until_end_of_input();
        if (!strcmp(kind, "receive")) {
            for (size_t sent = 0; sent < SIZE; sent += 1000)
                NEED(write(ends[0], here + sent, SIZE - sent < 1000 ? SIZE - sent : 1000));
        } else {
            for (ssize_t got = 0, some; got < SIZE; got += some)
                if ((some = NEED(read(ends[0], there, SIZE))) == 0)
                    status = 1;
        }
        _exit(status);
    }
    say("ready");
    if (!strcmp(kind, "write"))
        done = write(ends[1], here, SIZE);
    else if (!strcmp(kind, "send"))
        done = send(ends[1], here, SIZE, 0);
    else
        done = recv(ends[1], here, SIZE, MSG_WAITALL);
    if (done == SIZE)
        say("complete");
    else
        printf("short %zd of %d\n", done, SIZE);
    fflush(stdout);
    kill(child, SIGKILL);
    return 0;
}
