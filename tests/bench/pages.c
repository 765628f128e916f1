/* move_pages(2) as a plain C loop, to hold hetmemd's against. Prints seconds.
 *   pages query PID BASE PAGES BATCH
 *   pages move PID BASE PAGES BATCH NODE   every fourth page, BATCH of them in a call, statuses looked at */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	if (argc < 6)
		return 2;
	int moving = !strcmp(argv[1], "move"), pid = atoi(argv[2]), node = moving && argc > 6 ? atoi(argv[6]) : 0;
	uint64_t base = strtoull(argv[3], NULL, 0);
	long pages = atol(argv[4]), batch = atol(argv[5]), step = moving ? 4 : 1, wrong = 0;
	void **addresses = malloc(batch * sizeof *addresses);
	int *nodes = malloc(batch * sizeof *nodes), *status = malloc(batch * sizeof *status);
	double begin = now();

	for (long page = 0; page < pages;) {
		long count = 0;

		for (; count < batch && page < pages; page += step, count++) {
			addresses[count] = (void *)(base + page * 4096);
			nodes[count] = node;
			status[count] = -1000;
		}
		if (syscall(SYS_move_pages, pid, count, addresses, moving ? nodes : NULL, status, moving ? 2 : 0))
			return 1;
		for (long i = 0; i < count; i++)
			wrong += moving ? status[i] != node : status[i] < 0;
	}
	printf("%f\n", now() - begin);
	return wrong > 0;
}
