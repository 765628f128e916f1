/*
 * A program under seccomp whose filter does not let it call set_mempolicy.
 *     filters errno|trap|kill|strict     prints `ready`, reads a byte, prints `alive`
 */
#define _GNU_SOURCE
#include "check.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static void forbid(unsigned action)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_set_mempolicy, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    NEED(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

int main(int count, char **arguments)
{
    char byte;
    const char *kind = count == 2 ? arguments[1] : "";
    say("ready");
    if (!strcmp(kind, "errno"))
        forbid(SECCOMP_RET_ERRNO | 1);
    else if (!strcmp(kind, "trap"))
        forbid(SECCOMP_RET_TRAP);
    else if (!strcmp(kind, "kill"))
        forbid(SECCOMP_RET_KILL_PROCESS);
    else
        NEED(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
    /* In strict mode there is read, write and exit, and nothing else. */
    while (read(0, &byte, 1) > 0)
        ;
    if (write(1, "alive\n", 6) == 6)
        syscall(SYS_exit, 0);
    return 1;
}
