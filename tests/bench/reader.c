/* reader: the plainest listener on the proc connector, for comparison. It asks for forks, execs and exits, wakes up at
 * most every 20 ms, takes what is there and counts it. Says "ready"; at the end of standard input it prints the number
 * of events, the losses, and the microseconds of processor time that they took. */
#include <errno.h>
#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static long long used(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL + usage.ru_utime.tv_usec +
           usage.ru_stime.tv_usec;
}

int main(void)
{
    struct {
        struct nlmsghdr head;
        struct cn_msg message;
        uint32_t body[2];
    } __attribute__((packed)) request = {0};
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = CN_IDX_PROC};
    char event[256];
    int buffer = 32 << 20, events = 0, losses = 0, ended = 0;
    volatile uint32_t last = 0;
    int listener = socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK, NETLINK_CONNECTOR);
    setsockopt(listener, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
    if (bind(listener, (struct sockaddr *)&address, sizeof address))
        return 1;
    for (int words = 1; words <= 2; words++) {
        request.body[0] = PROC_CN_MCAST_LISTEN;
        request.body[1] = 0x80000003; /* fork, exec, exit: heeded since 6.6 */
        request.message.id.idx = CN_IDX_PROC;
        request.message.id.val = CN_VAL_PROC;
        request.message.len = 4 * words;
        request.head.nlmsg_type = NLMSG_DONE;
        request.head.nlmsg_len = sizeof request.head + sizeof request.message + 4 * words;
        if (send(listener, &request, request.head.nlmsg_len, 0) < 0)
            return 2;
    }
    puts("ready");
    fflush(stdout);
    long long before = used();
    struct pollfd wait[2] = {{listener, POLLIN, 0}, {0, POLLIN, 0}};
    while (!ended) {
        poll(wait, 2, -1);
        ended = wait[1].revents != 0;
        usleep(20000);
        for (;;) {
            ssize_t size = recv(listener, event, sizeof event, 0);
            if (size < 0 && errno == ENOBUFS)
                losses++;
            else if (size < 0)
                break;
            else {
                memcpy((void *)&last, event + 36, 4);
                events++;
            }
        }
    }
    printf("%d %d %lld\n", events, losses, used() - before);
    request.body[0] = PROC_CN_MCAST_IGNORE;
    request.message.len = 4;
    request.head.nlmsg_len -= 4;
    return send(listener, &request, request.head.nlmsg_len, 0) < 0;
}
