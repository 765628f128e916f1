/*
 * Processes and threads in the constellations that tracing finds hard.
 *     family threads N     N threads asleep                       at the end of input: `disturbed N`
 *     family churn         threads that make threads              `made N failed N`
 *     family crowd N       N threads, each for half a second, and another one in its place     `made N failed N`
 *     family forks         children, made and waited for          `made N failed N`
 *     family exec N        N programs in a row, each started by a thread that is not the leader    `done`
 *     family replace leader|thread   a thread asleep; at a line of input that thread executes `family read`
 *     family leader        the leader is dead, a thread lives     `alive`
 *     family vfork         a child in the parent's memory: prints its pid          `alive`
 *     family clone_vm      likewise, while the parent goes on                      `alive`
 *     family read          blocked in a read                      `alive`
 * Each prints `ready` first (`exec`: only the first program).
 */
#define _GNU_SOURCE
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static volatile int finished, failed;
static volatile long made, disturbed;
static char **own;

static void until_end_of_input(void)
{
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
}

static void *asleep(void *unused)
{
    struct timespec long_time = {100000, 0};
    nanosleep(&long_time, NULL);
    __sync_fetch_and_add(&disturbed, 1);
    return unused;
}

static void start(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &attributes, run, argument)) {
        perror("pthread_create");
        exit(99);
    }
}

static int threads(long count)
{
    for (long i = 1; i < count; i++)
        start(asleep, NULL);
    say("ready");
    until_end_of_input();
    printf("disturbed %ld\n", disturbed);
    fflush(stdout);
    _exit(0);
}

static void *quick(void *unused)
{
    usleep(100);
    return unused;
}

static void *breeding(void *unused)
{
    while (!finished) {
        pthread_t some[4];
        for (int i = 0; i < 4; i++)
            if (pthread_create(&some[i], NULL, quick, NULL)) {
                failed = 1;
                return unused;
            }
        for (int i = 0; i < 4; i++)
            pthread_join(some[i], NULL);
        __sync_fetch_and_add(&made, 4);
    }
    return unused;
}

static int churn(void)
{
    pthread_t breeders[2];
    say("ready");
    for (int i = 0; i < 2; i++)
        pthread_create(&breeders[i], NULL, breeding, NULL);
    until_end_of_input();
    finished = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(breeders[i], NULL);
    printf("made %ld failed %d\n", made, failed);
    return 0;
}

static void *short_lived(void *unused)
{
    usleep(500000);
    return unused;
}

static void *ending(void *unused)
{
    until_end_of_input();
    finished = 1;
    return unused;
}

static int crowd(long count)
{
    pthread_t *living = calloc(count, sizeof *living);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    start(ending, NULL);
    for (long turn = 0; !finished; turn++) {
        pthread_t *place = &living[turn % count];
        if (turn >= count && pthread_join(*place, NULL))
            failed++;
        if (pthread_create(place, &attributes, short_lived, NULL)) {
            failed++;
            break;
        }
        if (++made == count)
            say("ready");
    }
    printf("made %ld failed %d\n", made, failed);
    return 0;
}

static int forks(void)
{
    say("ready");
    start(ending, NULL);
    while (!finished) {
        int status;
        pid_t child = NEED(fork());
        if (!child) {
            usleep(200);
            _exit(7);
        }
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7)
            failed++;
        made++;
    }
    printf("made %ld failed %d\n", made, failed);
    return 0;
}

static void *executing(void *unused)
{
    char left[32];
    (void)unused;
    usleep(2000);
    snprintf(left, sizeof left, "%ld", atol(own[2]) - 1);
    execl("/proc/self/exe", own[0], "exec", left, "quiet", NULL);
    perror("execl");
    exit(99);
}

static int exec(int is_first)
{
    if (is_first)
        say("ready");
    if (atol(own[2]) == 0) {
        say("done");
        until_end_of_input();
        return 0;
    }
    for (int i = 0; i < 3; i++)
        start(quick, NULL);
    start(executing, NULL);
    for (;;)
        pause();
}

static void *replacing(void *unused)
{
    char byte;
    (void)unused;
    NEED(read(0, &byte, 1));
    execl("/proc/self/exe", own[0], "read", NULL);
    perror("execl");
    exit(99);
}

static int replace(int by_thread)
{
    start(asleep, NULL);
    if (by_thread)
        start(replacing, NULL);
    say("ready");
    if (!by_thread)
        replacing(NULL);
    return pause();
}

static void *surviving(void *unused)
{
    (void)unused;
    say("ready");
    until_end_of_input();
    say("alive");
    _exit(0);
}

static int leader(void)
{
    start(surviving, NULL);
    pthread_exit(NULL);
}

static void tell(long number)
{
    char text[32];
    int length = snprintf(text, sizeof text, "%ld\n", number);
    NEED(write(1, text, length));
}

static int borrowed(void *unused)
{
    (void)unused;
    tell(syscall(SYS_getpid));
    until_end_of_input();
    return 0;
}

static int vforked(void)
{
    int status;
    say("ready");
    pid_t child = vfork();
    if (!child) {
        borrowed(NULL);
        _exit(0);
    }
    NEED(waitpid(child, &status, 0));
    say("alive");
    return 0;
}

static int cloned(void)
{
    static char stack[65536] __attribute__((aligned(16)));
    int status;
    say("ready");
    pid_t child = NEED(clone(borrowed, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL));
    NEED(waitpid(child, &status, 0));
    say("alive");
    return 0;
}

static int reading(void)
{
    say("ready");
    until_end_of_input();
    say("alive");
    return 0;
}

int main(int count, char **arguments)
{
    const char *kind = count > 1 ? arguments[1] : "";
    own = arguments;
    if (!strcmp(kind, "threads") && count == 3)
        return threads(atol(arguments[2]));
    if (!strcmp(kind, "churn"))
        return churn();
    if (!strcmp(kind, "crowd") && count == 3)
        return crowd(atol(arguments[2]));
    if (!strcmp(kind, "forks"))
        return forks();
    if (!strcmp(kind, "exec") && count >= 3)
        return exec(count == 3);
    if (!strcmp(kind, "replace") && count == 3)
        return replace(!strcmp(arguments[2], "thread"));
    if (!strcmp(kind, "leader"))
        return leader();
    if (!strcmp(kind, "vfork"))
        return vforked();
    if (!strcmp(kind, "clone_vm"))
        return cloned();
    if (!strcmp(kind, "read"))
        return reading();
    return 2;
}
