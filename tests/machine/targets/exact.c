/*
 * Every register, the flags, the red zone and vector registers, checked all the time.
 *     exact spin|syscall     prints `ready`; at SIGTERM prints `rounds N bad N short N`
 * `spin` is interrupted between two of its own instructions, `syscall` in a sleep of 2 ms.
 */
#define _GNU_SOURCE
#include "check.h"

#include <signal.h>
#include <stdint.h>

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
uint64_t seen[16], stack_before, stack_after, flags_after, zone_after[3];
uint64_t vectors[8] = {1, 2, 3, 4, 5, 6, 7, 8}, vectors_after[8];
volatile uint64_t turns;
struct timespec nap = {0, 2000000};

#define SAVE_CALLEES "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; mov %rsp, stack_before(%rip)\n"
#define RESTORE_CALLEES "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
#define FILL_ZONE "mov held+112(%rip), %rax; mov %rax, -8(%rsp); mov %rax, -64(%rsp); mov %rax, -128(%rsp)\n"
#define FILL_VECTORS                                                                                                  \
    "movdqu vectors(%rip), %xmm0; movdqu vectors+16(%rip), %xmm7; movdqu vectors+32(%rip), %xmm8\n"                    \
    "movdqu vectors+48(%rip), %xmm15\n"
#define KEEP_VECTORS                                                                                                  \
    "movdqu %xmm0, vectors_after(%rip); movdqu %xmm7, vectors_after+16(%rip)\n"                                        \
    "movdqu %xmm8, vectors_after+32(%rip); movdqu %xmm15, vectors_after+48(%rip)\n"
#define FILL_COMMON                                                                                                   \
    "mov held(%rip), %rbx; mov held+8(%rip), %rbp; mov held+16(%rip), %r8; mov held+24(%rip), %r9\n"                   \
    "mov held+32(%rip), %r10; mov held+40(%rip), %r12; mov held+48(%rip), %r13; mov held+56(%rip), %r14\n"             \
    "mov held+64(%rip), %r15; mov held+72(%rip), %rdx\n"
#define KEEP_COMMON                                                                                                   \
    "mov %rbx, seen(%rip); mov %rbp, seen+8(%rip); mov %r8, seen+16(%rip); mov %r9, seen+24(%rip)\n"                   \
    "mov %r10, seen+32(%rip); mov %r12, seen+40(%rip); mov %r13, seen+48(%rip); mov %r14, seen+56(%rip)\n"             \
    "mov %r15, seen+64(%rip); mov %rdx, seen+72(%rip); mov %rsp, stack_after(%rip)\n"
#define KEEP_ZONE                                                                                                     \
    "mov -8(%rsp), %rax; mov %rax, zone_after(%rip); mov -64(%rsp), %rax; mov %rax, zone_after+8(%rip)\n"              \
    "mov -128(%rsp), %rax; mov %rax, zone_after+16(%rip)\n"

void spin_round(void);
void syscall_round(void);

__asm__(".text\nspin_round:\n" SAVE_CALLEES FILL_ZONE FILL_VECTORS FILL_COMMON
        "mov held+80(%rip), %rcx; mov held+88(%rip), %rsi; mov held+96(%rip), %rdi; mov held+104(%rip), %r11\n"
        "mov held+120(%rip), %rax\n"
        "movq $200000, turns(%rip)\n"
        /* Carry, and direction backwards: neither is changed by dec, and nothing here looks at them until the end. */
        "stc; std\n"
        "1: decq turns(%rip); jnz 1b\n"
        "mov %rax, seen+120(%rip); mov %rcx, seen+80(%rip); mov %rsi, seen+88(%rip); mov %rdi, seen+96(%rip)\n"
        "mov %r11, seen+104(%rip)\n" KEEP_COMMON KEEP_ZONE "pushf; popq flags_after(%rip); cld\n" KEEP_VECTORS
            RESTORE_CALLEES);

__asm__(".text\nsyscall_round:\n" SAVE_CALLEES FILL_ZONE FILL_VECTORS FILL_COMMON
        "lea nap(%rip), %rdi; xor %esi, %esi; mov $35, %eax\n"
        "std; syscall\n" /* the kernel keeps the direction flag of the program */
        "mov %rax, seen+120(%rip); mov %rsi, seen+88(%rip); mov %rdi, seen+96(%rip)\n" KEEP_COMMON KEEP_ZONE
        "pushf; popq flags_after(%rip); cld\n" KEEP_VECTORS RESTORE_CALLEES);

static int is_bad(int spins)
{
    int bad = stack_before != stack_after || memcmp(vectors, vectors_after, sizeof vectors);
    for (int i = 0; i < 10; i++)
        bad |= seen[i] != held[i];
    for (int i = 0; i < 3; i++)
        bad |= zone_after[i] != held[14];
    bad |= !(flags_after & 0x400);
    if (spins) {
        for (int i = 10; i < 14; i++)
            bad |= seen[i] != held[i];
        bad |= seen[15] != held[15] || !(flags_after & 1);
    } else {
        bad |= seen[15] != 0 || seen[11] != 0 || seen[12] != (uint64_t)(uintptr_t)&nap;
    }
    return bad;
}

int main(int count, char **arguments)
{
    int spins = count == 2 && !strcmp(arguments[1], "spin");
    long rounds = 0, bad = 0, cut = 0;
    /* No SA_RESTART, and a stack of its own would hide nothing: the red zone is the kernel's to keep here too. */
    struct sigaction action = {.sa_handler = stop, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    say("ready");
    while (!stopped) {
        double begin = now();
        if (spins)
            spin_round();
        else
            syscall_round();
        if (stopped)
            break; /* this round's sleep was ended by the signal */
        cut += !spins && now() - begin < 0.002;
        bad += is_bad(spins);
        rounds++;
    }
    printf("rounds %ld bad %ld short %ld\n", rounds, bad, cut);
    return 0;
}
