/*
 * A 64-bit program that runs 32-bit code.
 *     compat     prints `ready`; at the end of its input comes back, and prints `alive`
 * Built without PIE: 32-bit code reaches addresses below 4 GiB only.
 */
#define _GNU_SOURCE
#include "check.h"

#include <pthread.h>
#include <stdint.h>

static volatile uint32_t finished;

static void *until_end_of_input(void *unused)
{
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    finished = 1;
    return unused;
}

/* Selectors of arch/x86/include/asm/segment.h: __USER32_CS is 0x23, __USER_DS 0x2b, __USER_CS 0x33. */
static void run_32_bit_code(void)
{
    __asm__ volatile("mov %%rsp, %%r15\n"
                     "mov $0x2b, %%eax\n"
                     "mov %%eax, %%ds\n"
                     "ljmp *1f(%%rip)\n"
                     "1: .long 2f\n"
                     ".word 0x23\n"
                     ".code32\n"
                     "2: pause\n"
                     "cmpl $0, finished\n"
                     "je 2b\n"
                     "ljmp $0x33, $3f\n"
                     ".code64\n"
                     "3: mov %%r15, %%rsp\n"
                     "xor %%eax, %%eax\n"
                     "mov %%eax, %%ds\n" ::
                         : "rax", "r15", "memory", "cc");
}

int main(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, until_end_of_input, NULL);
    say("ready");
    run_32_bit_code();
    pthread_join(thread, NULL);
    say("alive");
    return 0;
}
