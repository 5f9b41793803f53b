/* echo serves TCP connections that portd hands over: what a client sends goes back to it.
 *
 *	cc -O2 -o echo echo.c
 *	portctl reserve tcp/8080 && portctl listen tcp/8080
 *	./echo tcp/8080
 *
 * SIGTERM drains it: it takes what is on its way, finishes what it has, and ends. With --once it closes a connection after the
 * first answer, with --log it writes each client's port to standard output before it serves it.
 */
#define PORTD_IMPLEMENTATION
#include "portd.h"

#include <getopt.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

static portd_worker worker;
static int poller, term, once, verbose;
static int leaving; /* 1: takes what is on its way; 2: only what lies in its queues; 3: goes */
static size_t open_connections, open_queues;
static int64_t again_at; /* when to look for portd, in ms */

/* An item is what an event of epoll is about. It is never freed: while portd still has a descriptor of a connection that we closed,
 * its events may come, and find an unused item, or one whose socket has nothing to say. */
typedef struct item {
	enum { UNUSED, CONTROL, QUEUE, SIGNAL, CONNECTION } kind;
	union {
		portd_queue *queue;
		portd_conn conn;
		struct item *next; /* while it is free */
	} u;
} item;

static item control = {CONTROL, {0}}, terminated = {SIGNAL, {0}};
static item *unused;
static item *newest; /* that of worker.queue */
static item *parked; /* the queue that waits for descriptors */

static void fail(const char *what)
{
	fprintf(stderr, "echo: %s: %s\n", what, strerror(errno));
	exit(1);
}

static item *new_item(int kind)
{
	item *i = unused;
	if (i != NULL)
		unused = i->u.next;
	else if ((i = malloc(sizeof *i)) == NULL)
		fail("malloc");
	i->kind = kind;
	return i;
}

static void free_item(item *i)
{
	i->kind = UNUSED;
	i->u.next = unused;
	unused = i;
}

static void watch(int op, int fd, item *i, uint32_t events)
{
	struct epoll_event e = {.events = events, .data = {.ptr = i}};
	if (epoll_ctl(poller, op, fd, &e) != 0)
		fail("epoll_ctl");
}

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* attached is called whenever there is a new attachment. */
static void attached(const portd_queue *before)
{
	fprintf(stderr, "echo: attached as %s\n", worker.id);
	watch(EPOLL_CTL_ADD, worker.control, &control, EPOLLIN);
	if (worker.queue == before)
		return;
	newest = new_item(QUEUE);
	newest->u.queue = worker.queue;
	open_queues++;
	watch(EPOLL_CTL_ADD, portd_queue_fd(worker.queue), newest, EPOLLIN);
}

static void end_queue(item *i)
{
	watch(EPOLL_CTL_DEL, portd_queue_fd(i->u.queue), NULL, 0);
	portd_end(&worker, i->u.queue);
	if (newest == i)
		newest = NULL;
	if (parked == i)
		parked = NULL;
	free_item(i);
	open_queues--;
}

static void take(item *i)
{
	static portd_conn conns[PORTD_MAX];
	portd_queue *q = i->u.queue;
	int n = portd_take(&worker, q, conns);
	if (n < 0)
		end_queue(i);
	else if (n == 0 && portd_full(q)) {
		watch(EPOLL_CTL_MOD, portd_queue_fd(q), i, 0);
		parked = i;
	}
	for (int k = 0; k < n; k++) {
		if (verbose) {
			const struct sockaddr_in *in = (const struct sockaddr_in *)&conns[k].peer;
			char line[16];
			int len = snprintf(line, sizeof line, "%u\n", ntohs(in->sin_port));
			if (write(1, line, (size_t)len) != len)
				fail("write");
		}
		item *c = new_item(CONNECTION);
		c->u.conn = conns[k];
		open_connections++;
		watch(EPOLL_CTL_ADD, conns[k].fd, c, EPOLLIN);
	}
}

static void unpark(void)
{
	watch(EPOLL_CTL_MOD, portd_queue_fd(parked->u.queue), parked, EPOLLIN);
	parked = NULL;
}

static void serve(item *i)
{
	static char buf[16384];
	portd_conn *c = &i->u.conn;
	ssize_t n = recv(c->fd, buf, sizeof buf, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	/* A client that does not read its answers is not served on: this is an example. */
	if (n > 0 && send(c->fd, buf, (size_t)n, MSG_NOSIGNAL) == n && !once)
		return;
	portd_close(c);
	free_item(i);
	open_connections--;
	if (parked != NULL)
		unpark();
}

static void leave(void)
{
	if (newest != NULL)
		end_queue(newest);
	portd_leave(&worker);
}

static void heed(void)
{
	portd_event e;
	switch (portd_heed(&worker, &e)) {
	case PORTD_DRAIN:
		fprintf(stderr, "echo: draining\n");
		break;
	case PORTD_DRAINED:
		fprintf(stderr, "echo: drained after %llu connections\n", (unsigned long long)e.count);
		if (portd_over(&worker))
			leaving = 3;
		break;
	case PORTD_GONE:
		fprintf(stderr, "echo: listener %u: %s\n", e.number, e.text);
		break;
	case PORTD_AWAY:
		fprintf(stderr, "echo: portd is away\n");
		again_at = now();
		leaving = leaving ? 2 : 0; /* the queue ends by itself */
		break;
	case PORTD_OVER:
		leaving = 2;
		break;
	}
}

/* again looks for a portd that had gone away. */
static void again(void)
{
	const portd_queue *before = worker.queue;
	int result = portd_again(&worker);
	if (result == 0) {
		attached(before);
	} else if (result == -1) {
		again_at = now() + worker.wait_ms;
	} else {
		fprintf(stderr, "echo: %s\n", worker.error);
		leaving = 2;
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"socket", required_argument, NULL, 's'}, {"generation", required_argument, NULL, 'g'},
		{"once", no_argument, NULL, 'o'},         {"log", no_argument, NULL, 'l'},
		{NULL, 0, NULL, 0},
	};
	portd_wish wishes[250] = {{0}};
	portd_config config = {.wishes = wishes};
	for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		switch (o) {
		case 's': config.socket = optarg; break;
		case 'g': config.generation = optarg; break;
		case 'o': once = 1; break;
		case 'l': verbose = 1; break;
		default: return 2;
		}
	}
	for (; optind < argc && config.n_wishes < 250; optind++) {
		wishes[config.n_wishes].reference = argv[optind];
		wishes[config.n_wishes++].flags = PORTD_READY;
	}
	if (config.n_wishes == 0) {
		fprintf(stderr, "usage: echo [--socket PATH] [--generation NAME] [--once] [--log] RESERVATION...\n");
		return 2;
	}
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	if ((term = signalfd(-1, &signals, SFD_CLOEXEC)) < 0 || (poller = epoll_create1(EPOLL_CLOEXEC)) < 0)
		fail("epoll");
	watch(EPOLL_CTL_ADD, term, &terminated, EPOLLIN);
	if (portd_attach(&worker, &config) != 0) {
		fprintf(stderr, "echo: %s\n", worker.error);
		return 1;
	}
	attached(NULL);

	while (leaving < 2 || open_connections > 0 || open_queues > 0) {
		struct epoll_event events[64];
		item *queue = NULL;
		int away = worker.control < 0 && leaving < 2;
		int64_t until = away ? again_at - now() : -1;
		int timeout = away && until < 0 ? 0 : parked != NULL && (until < 0 || until > 100) ? 100 : (int)until;
		int n = epoll_wait(poller, events, 64, timeout);
		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int k = 0; k < n; k++) {
			item *i = events[k].data.ptr;
			switch (i->kind) {
			case CONNECTION: serve(i); break;
			case QUEUE: queue = i; break;
			case CONTROL: heed(); break;
			case UNUSED: break;
			case SIGNAL:
				watch(EPOLL_CTL_DEL, term, NULL, 0);
				leaving = worker.control < 0 ? 2 : 1;
				portd_drain(&worker, PORTD_ALL);
				break;
			}
		}
		if (queue != NULL)
			take(queue); /* one message, after those who were there already */
		if (leaving == 3) {
			leave();
			leaving = 2;
		}
		if (n == 0 && parked != NULL)
			unpark();
		if (away && now() >= again_at)
			again();
	}
	portd_leave(&worker);
	return 0;
}
