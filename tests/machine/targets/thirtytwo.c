/*
 * A 32-bit program without a C library: registers spinning, and a poll that must neither fail nor lose a register.
 *     thirtytwo [DESCRIPTOR]   prints `ready`; at the end of its input prints `alive`, or `broken` as soon as something
 *                              is wrong. DESCRIPTOR is a page to tell in how often it has looked (check.h).
 * Built with -m32 -nostdlib -static. Syscalls by `int 0x80`, and by the vdso's own entry every other time.
 */
enum { NR_EXIT = 1, NR_READ = 3, NR_WRITE = 4, NR_MMAP = 90, NR_POLL = 168, AT_SYSINFO = 32 };
enum { BUSY = 2, COUNT = 3, CHECKS = 8, BAD = 9 }; /* words of struct report */

static unsigned long long unseen[64], *report = unseen;

static void *vdso_entry;

static long call(long number, long a, long b, long c, int by_vdso)
{
    long result, b_after = b, c_after = c;
    if (by_vdso && vdso_entry)
        __asm__ volatile("call *%[entry]"
                         : "=a"(result), "+c"(b_after), "+d"(c_after)
                         : "0"(number), "b"(a), [entry] "m"(vdso_entry)
                         : "memory");
    else
        __asm__ volatile("int $0x80" : "=a"(result), "+c"(b_after), "+d"(c_after) : "0"(number), "b"(a) : "memory");
    if (b_after != b || c_after != c)
        result = -1000;
    return result;
}

/* `text` is a descriptor's number. */
static void open_report(const char *text)
{
    long descriptor = 0;
    while (*text)
        descriptor = descriptor * 10 + *text++ - '0';
    long arguments[] = {0, 4096, 3, 1, descriptor, 0}; /* anywhere, to read and write, shared */
    report = (void *)call(NR_MMAP, (long)arguments, 0, 0, 0);
    report[COUNT] = 1;
}

static void finish(const char *text, long length, int status)
{
    call(NR_WRITE, 1, (long)text, length, 0);
    call(NR_EXIT, status, 0, 0, 0);
}

/* 0 where every register came through a spin unchanged. */
static int spin(void)
{
    int bad;
    __asm__ volatile("push %%ebp\n"
                     "mov $0x11112222, %%ebp; mov $0x33334444, %%ebx; mov $0x55556666, %%ecx\n"
                     "mov $0x77778888, %%edx; mov $0x9999aaaa, %%esi; mov $0xbbbbcccc, %%edi\n"
                     "mov $300000, %%eax\n"
                     "1: dec %%eax; jnz 1b\n"
                     "xor $0x11112222, %%ebp; xor $0x33334444, %%ebx; xor $0x55556666, %%ecx\n"
                     "xor $0x77778888, %%edx; xor $0x9999aaaa, %%esi; xor $0xbbbbcccc, %%edi\n"
                     "or %%ebp, %%eax; or %%ebx, %%eax; or %%ecx, %%eax; or %%edx, %%eax; or %%esi, %%eax\n"
                     "or %%edi, %%eax\n"
                     "pop %%ebp\n"
                     : "=a"(bad)
                     :
                     : "ebx", "ecx", "edx", "esi", "edi", "cc", "memory");
    return bad;
}

__attribute__((used)) void run(long *stack)
{
    struct {
        int fd;
        short events, revents;
    } input = {0, 1, 0};
    char byte;
    long *at = stack + 1 + stack[0] + 1;
    if (stack[0] > 1)
        open_report((char *)stack[2]);
    while (*at)
        at++;
    for (at++; at[0]; at += 2)
        if (at[0] == AT_SYSINFO)
            vdso_entry = (void *)at[1];
    call(NR_WRITE, 1, (long)"ready\n", 6, 0);
    for (int turn = 0;; turn ^= 1) {
        long result = call(NR_POLL, (long)&input, 1, report[BUSY] ? 2 : 20, turn);
        if (result == 1 && call(NR_READ, 0, (long)&byte, 1, turn) <= 0)
            finish("alive\n", 6, 0);
        report[CHECKS]++;
        if (result < 0 || spin()) {
            report[BAD]++;
            finish("broken\n", 7, 1);
        }
    }
}

__asm__(".globl _start\n_start: mov %esp, %eax; and $-16, %esp; sub $12, %esp; push %eax; call run\n");
