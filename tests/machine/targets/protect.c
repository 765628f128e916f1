/*
 * Takes the right to be executed from its own vdso when a byte comes in. Prints `ready`, then `protected`; at the end of
 * its input gives it back and prints `alive`. Handles no signal: a fault would end it.
 */
#define _GNU_SOURCE
#include "check.h"

static char *begin, *end;

static void find(void)
{
    char line[256];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "[vdso]"))
            NEED(sscanf(line, "%p-%p", (void **)&begin, (void **)&end) - 2 ? -1 : 0);
    NEED(end ? 0 : -1);
}

int main(void)
{
    char byte;
    find();
    say("ready");
    NEED(read(0, &byte, 1));
    NEED(mprotect(begin, end - begin, PROT_READ));
    /* Whatever asks the vdso for the time would fault. */
    NEED(write(1, "protected\n", 10));
    while (read(0, &byte, 1) > 0)
        ;
    NEED(mprotect(begin, end - begin, PROT_READ | PROT_EXEC));
    NEED(write(1, "alive\n", 6));
    return 0;
}
