/*
 * A process that kills itself exactly before or after a certain one of its system calls, whatever code makes it.
 *     gcc -shared -fPIC
 * By Syscall User Dispatch (Linux 5.11; Documentation/admin-guide/syscall-user-dispatch.rst): each system call outside
 * of a few instructions here becomes a SIGSYS, whose handler notes it, makes it, and dies where it is to.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif
#define PTRACE_SEIZE_REQUEST 0x4206
#define SA_RESTORER 0x04000000

/* Shared with whoever forked the process. */
struct doom {
    int64_t call, request; /* of the call to die at; `request` is the first argument of ptrace(2), 0 of others */
    int64_t occurrence; /* counted from 1, from the last PTRACE_SEIZE on; 0: never */
    int64_t after; /* 0: the call is not made any more */
    int64_t died;
    int64_t count;
    struct {
        int64_t call, request, done;
    } calls[254];
};

static struct doom *doom;

long doom_call(long number, const long *arguments);
void doom_return(void);
extern char doom_begin[], doom_end[];
__asm__(".text\n.globl doom_call, doom_return\n"
        "doom_begin:\n"
        "doom_call: mov %rdi, %rax; mov %rsi, %r11\n"
        "mov (%r11), %rdi; mov 8(%r11), %rsi; mov 16(%r11), %rdx; mov 24(%r11), %r10; mov 32(%r11), %r8\n"
        "mov 40(%r11), %r9; syscall; ret\n"
        "doom_return: mov $15, %eax; syscall; ud2\n" /* rt_sigreturn; the kernel looks at the address behind the call */
        "doom_end:\n");

static void die(void)
{
    doom->died = 1;
    long self[6] = {doom_call(SYS_getpid, (long[6]){0}), SIGKILL};
    doom_call(SYS_kill, self);
}

static void dispatched(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    long call = registers[REG_RAX];
    long arguments[6] = {registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
                         registers[REG_R10], registers[REG_R8],  registers[REG_R9]};
    long request = call == SYS_ptrace ? arguments[0] : 0;
    (void)number;
    (void)info;
    if (call == SYS_ptrace && request == PTRACE_SEIZE_REQUEST)
        doom->count = 0;
    int64_t at = doom->count, occurrence = 1;
    for (int64_t i = 0; i < at; i++)
        occurrence += doom->calls[i].call == call && doom->calls[i].request == request;
    if (at < (int64_t)(sizeof doom->calls / sizeof *doom->calls)) {
        doom->calls[at].call = call;
        doom->calls[at].request = request;
        doom->calls[at].done = 0;
        doom->count = at + 1;
    }
    int hit = doom->call == call && doom->request == request && doom->occurrence == occurrence;
    if (hit && !doom->after)
        die();
    registers[REG_RAX] = doom_call(call, arguments);
    if (at < doom->count)
        doom->calls[at].done = 1;
    if (hit)
        die();
}

/* From here on; 0, or -errno. */
long doom_begins(struct doom *shared)
{
    struct {
        void (*handler)(int, siginfo_t *, void *);
        unsigned long flags;
        void (*restorer)(void);
        uint64_t mask;
    } action = {dispatched, SA_SIGINFO | SA_RESTORER, doom_return, 0};
    doom = shared;
    long set[6] = {SIGSYS, (long)&action, 0, 8};
    long result = doom_call(SYS_rt_sigaction, set);
    long on[6] = {PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, (long)doom_begin, doom_end - doom_begin, 0};
    return result ? result : doom_call(SYS_prctl, on);
}
