/* worker is an echo server whose connections come from portd, by the header that is for everybody: worker HANDOFF_SOCKET REFERENCE. */
#define PORTD_IMPLEMENTATION
#include "../../../clients/c/portd.h"

#include "echo.h"

static portd_worker worker;

static void take(int queue)
{
	static portd_conn conns[PORTD_MAX];
	(void)queue;
	int n = portd_take(&worker, worker.queue, conns);
	if (n < 0)
		exit(0); /* portd is gone */
	for (int i = 0; i < n; i++)
		watch(conns[i].fd);
	for (int i = 0; i < n; i++)
		portd_done(conns[i].queue); /* an echo server is as good as done with them */
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	portd_wish wish = {.reference = argv[2], .flags = PORTD_READY};
	portd_config config = {.socket = argv[1], .wishes = &wish, .n_wishes = 1};
	if (portd_attach(&worker, &config) != 0) {
		fprintf(stderr, "worker: %s\n", worker.error);
		return 1;
	}
	printf("ready\n");
	fflush(stdout);
	serve(portd_queue_fd(worker.queue), take);
}
