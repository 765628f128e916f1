/*
 * Every register, the flags, the red zone, thread pointers, and all vector and control registers, checked all the time.
 *     exact spin|syscall [confined|killed]     prints `ready`; at SIGTERM prints `rounds N bad N short N interrupted N`
 * `spin` is interrupted between two of its own instructions; `syscall` in waits of 2 ms, each kind in turn, which must
 * give the result that they have undisturbed, and not too soon. Those that the kernel itself ends with EINTR at any stop,
 * even one by SIGSTOP (signal(7)), count as `interrupted` then. `confined`: its seccomp filter forbids set_mempolicy and mbind; `killed`: it kills for them.
 */
#define _GNU_SOURCE
#include "check.h"

#include <asm/prctl.h>
#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

static volatile sig_atomic_t stopped;

static void stop(int number)
{
    (void)number;
    stopped = 1;
}

/* What the registers hold while a round lasts. Not static: the assembler text names them. */
uint64_t held[16] = {
    0x1f2e3d4c5b6a7988, 0x0123456789abcdef, 0xfedcba9876543210, 0x5555aaaa3333cccc, 0x0f0f0f0ff0f0f0f0,
    0x1122334455667788, 0x99aabbccddeeff00, 0xdeadbeefcafef00d, 0x8000000000000001, 0x7fffffffffffffff,
    0x00000000ffffffff, 0xffffffff00000000, 0x13579bdf2468ace0, 0x0246813579bdface, 0xa5a5a5a55a5a5a5a,
    0x3c3c3c3cc3c3c3c3,
};
uint64_t seen[16], stack_before, stack_after, flags_after, zone_after[3], pointers_after[2];
volatile uint64_t turns;

/* 32 of up to 64 bytes, and 8 masks. */
unsigned char vectors[32 * 64], vectors_after[32 * 64];
uint64_t masks[8], masks_after[8];
uint32_t odd_mxcsr = 0x7f80, mxcsr_after, usual_mxcsr = 0x1f80; /* rounding towards zero */
uint16_t odd_x87 = 0x0f7f, x87_after, usual_x87 = 0x037f;
static size_t vector_count = 16, vector_width = 16;
static int has_masks;

/* One system call: its number, six arguments, and what it gave. */
uint64_t call_now[8];
extern char after_syscall[];

void fill_sse(void), keep_sse(void), fill_avx(void), keep_avx(void), fill_avx512(void), keep_avx512(void);
void (*fill_vectors)(void) = fill_sse, (*keep_vectors)(void) = keep_sse;

#define TO_15 "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
#define TO_31 TO_15 ",16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
#define EACH(numbers, text) ".irp i," numbers "\n" text "\n.endr\n"
__asm__(".text\n"
        "fill_sse:\n" EACH(TO_15, "movdqu vectors+64*\\i(%rip), %xmm\\i") "ret\n"
        "keep_sse:\n" EACH(TO_15, "movdqu %xmm\\i, vectors_after+64*\\i(%rip)") "ret\n"
        "fill_avx:\n" EACH(TO_15, "vmovdqu vectors+64*\\i(%rip), %ymm\\i") "ret\n"
        "keep_avx:\n" EACH(TO_15, "vmovdqu %ymm\\i, vectors_after+64*\\i(%rip)") "vzeroupper; ret\n"
        "fill_avx512:\n" EACH(TO_31, "vmovdqu64 vectors+64*\\i(%rip), %zmm\\i")
            EACH("0,1,2,3,4,5,6,7", "kmovq masks+8*\\i(%rip), %k\\i") "ret\n"
        "keep_avx512:\n" EACH(TO_31, "vmovdqu64 %zmm\\i, vectors_after+64*\\i(%rip)")
            EACH("0,1,2,3,4,5,6,7", "kmovq %k\\i, masks_after+8*\\i(%rip)") "vzeroupper; ret\n");

#define SAVE_CALLEES "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; mov %rsp, stack_before(%rip)\n"
#define RESTORE_CALLEES "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
/* Before the red zone is filled: a call writes there. */
#define FILL_VECTORS "call *fill_vectors(%rip); ldmxcsr odd_mxcsr(%rip); fldcw odd_x87(%rip)\n"
#define KEEP_VECTORS                                                                                                  \
    "stmxcsr mxcsr_after(%rip); ldmxcsr usual_mxcsr(%rip); fnstcw x87_after(%rip); fldcw usual_x87(%rip)\n"            \
    "call *keep_vectors(%rip)\n"
#define FILL_ZONE "mov held+112(%rip), %rax; mov %rax, -8(%rsp); mov %rax, -64(%rsp); mov %rax, -128(%rsp)\n"
#define KEEP_ZONE                                                                                                     \
    "mov -8(%rsp), %rax; mov %rax, zone_after(%rip); mov -64(%rsp), %rax; mov %rax, zone_after+8(%rip)\n"              \
    "mov -128(%rsp), %rax; mov %rax, zone_after+16(%rip)\n"
#define KEEP_POINTERS                                                                                                 \
    "mov %fs:0, %rax; mov %rax, pointers_after(%rip); mov %gs:0, %rax; mov %rax, pointers_after+8(%rip)\n"
#define FILL_CALLEES                                                                                                  \
    "mov held(%rip), %rbx; mov held+8(%rip), %rbp; mov held+40(%rip), %r12; mov held+48(%rip), %r13\n"                 \
    "mov held+56(%rip), %r14; mov held+64(%rip), %r15\n"
#define KEEP_ALL                                                                                                      \
    "mov %rax, seen+120(%rip); mov %rbx, seen(%rip); mov %rbp, seen+8(%rip); mov %r8, seen+16(%rip)\n"                 \
    "mov %r9, seen+24(%rip); mov %r10, seen+32(%rip); mov %r12, seen+40(%rip); mov %r13, seen+48(%rip)\n"              \
    "mov %r14, seen+56(%rip); mov %r15, seen+64(%rip); mov %rdx, seen+72(%rip); mov %rcx, seen+80(%rip)\n"             \
    "mov %rsi, seen+88(%rip); mov %rdi, seen+96(%rip); mov %r11, seen+104(%rip); mov %rsp, stack_after(%rip)\n"
#define KEEP_REST KEEP_ZONE KEEP_POINTERS "pushf; popq flags_after(%rip); cld\n" KEEP_VECTORS

void spin_round(void);
void syscall_round(void);

__asm__(".text\nspin_round:\n" SAVE_CALLEES FILL_VECTORS FILL_ZONE FILL_CALLEES
        "mov held+16(%rip), %r8; mov held+24(%rip), %r9; mov held+32(%rip), %r10; mov held+72(%rip), %rdx\n"
        "mov held+80(%rip), %rcx; mov held+88(%rip), %rsi; mov held+96(%rip), %rdi; mov held+104(%rip), %r11\n"
        "mov held+120(%rip), %rax\n"
        "movq $200000, turns(%rip)\n"
        /* Carry, and direction backwards: neither is changed by dec, and nothing here looks at them until the end. */
        "stc; std\n"
        "1: decq turns(%rip); jnz 1b\n" KEEP_ALL KEEP_REST RESTORE_CALLEES);

__asm__(".text\nsyscall_round:\n" SAVE_CALLEES FILL_VECTORS FILL_ZONE FILL_CALLEES
        "mov call_now+8(%rip), %rdi; mov call_now+16(%rip), %rsi; mov call_now+24(%rip), %rdx\n"
        "mov call_now+32(%rip), %r10; mov call_now+40(%rip), %r8; mov call_now+48(%rip), %r9\n"
        "mov held+80(%rip), %rcx; mov held+104(%rip), %r11; mov call_now(%rip), %rax\n"
        "std; syscall\n" /* the kernel keeps the direction flag of the program */
        "after_syscall:\n"
        "mov %rax, call_now+56(%rip)\n" KEEP_ALL KEEP_REST RESTORE_CALLEES);

/* What every round has in common; 0, or the number of what is wrong. */
static int is_bad(void)
{
    static const int everywhere[] = {0, 1, 5, 6, 7, 8};
    uint64_t self;
    __asm__("mov %%fs:0, %0" : "=r"(self));
    for (size_t i = 0; i < sizeof everywhere / sizeof *everywhere; i++)
        if (seen[everywhere[i]] != held[everywhere[i]])
            return 1 + everywhere[i];
    for (int i = 0; i < 3; i++)
        if (zone_after[i] != held[14])
            return 20;
    if (stack_before != stack_after)
        return 21;
    if (!(flags_after & 0x400))
        return 22;
    if (pointers_after[0] != self || pointers_after[1] != held[15])
        return 23;
    for (size_t i = 0; i < vector_count; i++)
        if (memcmp(vectors + 64 * i, vectors_after + 64 * i, vector_width))
            return 100 + (int)i;
    if (has_masks && memcmp(masks, masks_after, sizeof masks))
        return 24;
    if (mxcsr_after != odd_mxcsr || x87_after != odd_x87)
        return 25;
    return 0;
}

static int spin_is_bad(void)
{
    static const int also[] = {2, 3, 4, 9, 10, 11, 12, 13, 15};
    for (size_t i = 0; i < sizeof also / sizeof *also; i++)
        if (seen[also[i]] != held[also[i]])
            return 1 + also[i];
    return flags_after & 1 ? is_bad() : 22;
}

/* Whether the syscall instruction leaves its return address in rcx and the flags in r11, or (FRED) nothing at all. */
static int syscall_marks;

static int syscall_is_bad(uint64_t result)
{
    static const int arguments[] = {12, 11, 9, 4, 2, 3};
    for (int i = 0; i < 6; i++)
        if (seen[arguments[i]] != call_now[1 + i])
            return 1 + arguments[i];
    if (syscall_marks ? seen[10] != (uintptr_t)after_syscall || !(seen[13] & 0x400)
                      : seen[10] != held[10] || seen[13] != held[13])
        return 11;
    return call_now[7] == result ? is_bad() : 30;
}

#define NAP 0.002
static struct timespec nap;
static struct timeval short_nap;
static struct itimerspec alarm_time;
static struct epoll_event event;
static struct io_event completion;
static sigset_t usr1;
static uint32_t word;
static uint64_t expirations;
static int epoll, timer, pair[2];
static aio_context_t aio;

static struct {
    uint64_t call[7];
    int64_t result;
    int is_interruptible; /* by any stop */
} waits[] = {
    {{SYS_nanosleep, (uintptr_t)&nap}, 0, 0},
    {{SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (uintptr_t)&nap}, 0, 0},
    {{SYS_poll, 0, 0, 2}, 0, 0},
    {{SYS_ppoll, 0, 0, (uintptr_t)&nap, 0, 8}, 0, 0},
    {{SYS_select, 0, 0, 0, 0, (uintptr_t)&short_nap}, 0, 0},
    {{SYS_pselect6, 0, 0, 0, 0, (uintptr_t)&nap}, 0, 0},
    {{SYS_futex, (uintptr_t)&word, FUTEX_WAIT, 0, (uintptr_t)&nap}, -ETIMEDOUT, 0},
    {{SYS_epoll_wait, 0, (uintptr_t)&event, 1, 2}, 0, 1},
    {{SYS_epoll_pwait, 0, (uintptr_t)&event, 1, 2}, 0, 1},
    {{SYS_epoll_pwait2, 0, (uintptr_t)&event, 1, (uintptr_t)&nap}, 0, 1},
    {{SYS_read, 1, (uintptr_t)&expirations, sizeof expirations}, sizeof expirations, 0},
    {{SYS_recvfrom, 2, (uintptr_t)&expirations, 1}, -EAGAIN, 1},
    {{SYS_rt_sigtimedwait, (uintptr_t)&usr1, 0, (uintptr_t)&nap, 8}, -EAGAIN, 1},
    {{SYS_io_getevents, 3, 1, 1, (uintptr_t)&completion, (uintptr_t)&nap}, 0, 1},
};
#define WAITS (sizeof waits / sizeof *waits)

static void prepare_waits(void)
{
    /* Counted in ticks, of which the first may be nearly over. */
    struct timeval limit = {0, (long)(5 * NAP * 1e6)};
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    epoll = NEED(epoll_create1(0));
    timer = NEED(timerfd_create(CLOCK_MONOTONIC, 0));
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    NEED(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    NEED(syscall(SYS_io_setup, 4, &aio));
    for (size_t i = 0; i < WAITS; i++) {
        uint64_t *first = &waits[i].call[1];
        switch (waits[i].call[0]) {
        case SYS_epoll_wait:
        case SYS_epoll_pwait:
        case SYS_epoll_pwait2:
            *first = epoll;
            break;
        case SYS_read:
            *first = timer;
            break;
        case SYS_recvfrom:
            *first = pair[0];
            break;
        case SYS_io_getevents:
            *first = aio;
        }
    }
    call_now[0] = SYS_getppid;
    syscall_round();
    syscall_marks = seen[10] == (uintptr_t)after_syscall;
}

/* One wait; 0, or the number of what is wrong with it. `*took` are seconds. */
static int wait_round(long round, double *took, struct fare *fare)
{
    size_t kind = round % WAITS;
    nap = seconds(NAP); /* some calls write there what is left */
    short_nap = (struct timeval){0, (long)(NAP * 1e6)};
    alarm_time.it_value = nap;
    double begin = now();
    if (waits[kind].call[0] == SYS_read)
        NEED(timerfd_settime(timer, 0, &alarm_time, NULL));
    memcpy(call_now, waits[kind].call, sizeof waits[kind].call);
    syscall_round();
    *took = now() - begin;
    int is_interrupted = waits[kind].is_interruptible && (int64_t)call_now[7] == -EINTR;
    if (is_interrupted) {
        fare->interrupted += !stopped;
        *took = NAP;
    }
    int bad = syscall_is_bad(is_interrupted ? -EINTR : waits[kind].result);
    return bad ? bad + 1000 * (int)kind : 0;
}

static void prepare_registers(void)
{
    for (size_t i = 0; i < sizeof vectors; i++)
        vectors[i] = (unsigned char)(i * 151 + i / 64 + 1);
    for (int i = 0; i < 8; i++)
        masks[i] = held[i] ^ held[8 + i];
    if (__builtin_cpu_supports("avx512bw")) {
        fill_vectors = fill_avx512, keep_vectors = keep_avx512;
        vector_count = 32, vector_width = 64, has_masks = 1;
    } else if (__builtin_cpu_supports("avx")) {
        fill_vectors = fill_avx, keep_vectors = keep_avx;
        vector_width = 32;
    }
    NEED(syscall(SYS_arch_prctl, ARCH_SET_GS, &held[15]));
}

static void confine(unsigned action)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_set_mempolicy, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mbind, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    NEED(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

int main(int count, char **arguments)
{
    int spins = count > 1 && !strcmp(arguments[1], "spin");
    long rounds = 0, bad = 0, cut = 0;
    struct sigaction action = {.sa_handler = stop, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    open_report();
    struct fare *fare = new_fare();
    prepare_registers();
    prepare_waits();
    if (count > 2)
        confine(strcmp(arguments[2], "killed") ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_KILL_PROCESS);
    say("ready");
    while (!stopped) {
        double took = NAP;
        int wrong;
        rest();
        if (spins) {
            spin_round();
            wrong = spin_is_bad();
        } else {
            wrong = wait_round(rounds, &took, fare);
        }
        if (stopped)
            break; /* this round's wait was ended by the signal */
        bad += wrong != 0;
        cut += took < NAP;
        found(fare, wrong ? wrong : took < NAP ? 1000 * (rounds % (long)WAITS) + 40 : 0);
        rounds++;
    }
    printf("rounds %ld bad %ld short %ld interrupted %ld\n", rounds, bad, cut, (long)fare->interrupted);
    return 0;
}
