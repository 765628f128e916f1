/* move_pages(2) as a plain C loop, to hold hetmemd's against. Prints seconds.
 *   pages query PID BASE PAGES BATCH
 *   pages move PID BASE PAGES BATCH NODE    every fourth page, BATCH of them in a call
 *   pages pass PID BASE PAGES BATCH NODE    the same, asking where all are before, and where those are after */
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

static void **addresses;
static int *nodes, *status;

/* Every step-th page, batch of them in a call; to a node, or only asking where node is negative. */
static long walk(int pid, uint64_t base, long pages, long step, long batch, int node)
{
	long wrong = 0;

	for (long page = 0; page < pages;) {
		long count = 0;

		for (; count < batch && page < pages; page += step, count++) {
			addresses[count] = (void *)(base + page * 4096);
			nodes[count] = node;
			status[count] = -1000;
		}
		if (syscall(SYS_move_pages, pid, count, addresses, node < 0 ? NULL : nodes, status, node < 0 ? 0 : 2))
			exit(1);
		for (long i = 0; i < count; i++)
			wrong += node < 0 ? status[i] < 0 : status[i] != node;
	}
	return wrong;
}

int main(int argc, char **argv)
{
	if (argc < 6)
		return 2;
	const char *what = argv[1];
	int pid = atoi(argv[2]), node = argc > 6 ? atoi(argv[6]) : -1;
	uint64_t base = strtoull(argv[3], NULL, 0);
	long pages = atol(argv[4]), batch = atol(argv[5]), room = batch > 16384 ? batch : 16384, wrong = 0;
	double begin = now();

	addresses = malloc(room * sizeof *addresses);
	nodes = malloc(room * sizeof *nodes);
	status = malloc(room * sizeof *status);
	if (!strcmp(what, "query"))
		wrong = walk(pid, base, pages, 1, batch, -1);
	if (!strcmp(what, "pass"))
		wrong += walk(pid, base, pages, 1, 16384, -1);
	if (!strcmp(what, "pass") || !strcmp(what, "move"))
		wrong += walk(pid, base, pages, 4, batch, node);
	if (!strcmp(what, "pass"))
		wrong += walk(pid, base, pages, 4, batch, -1);
	printf("%f\n", now() - begin);
	return wrong > 0;
}
