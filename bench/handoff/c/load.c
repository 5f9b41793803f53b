/* load makes short connections to 127.0.0.1, so many at a time: connect, a request, the answer, end of file, close.
 *
 *	load PORT AT_A_TIME MILLISECONDS echo|http
 *
 * It is one thread on epoll, so that what is measured is the server. It prints one line: connections that got their whole answer, those
 * that did not, how long it took, and the 50th and 99th percentile of a connection's life, all times in nanoseconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char http[] = "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
static char request[64];
static size_t request_size = sizeof request;
static int is_http;

struct client {
	int fd;
	size_t got;
	int64_t began;
	char head[12]; /* of an answer over HTTP */
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static int epoll;
static int64_t *lives;
static size_t done, failed, room;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* begin opens a connection and sends the request; a failure counts, and the next one is tried. */
static void begin(struct client *c)
{
	for (;;) {
		c->got = 0;
		c->began = now();
		c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (c->fd < 0)
			die("socket");
		/* A reset at the end leaves no TIME_WAIT, of which there would soon be more than there are ports. */
		struct linger reset = {.l_onoff = 1};
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
		if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)
			die("connect");
		/* Over loopback the handshake is mostly done by now. */
		ssize_t n = write(c->fd, request, request_size);
		if (n < 0 && errno == EAGAIN) {
			struct pollfd p = {.fd = c->fd, .events = POLLOUT};
			poll(&p, 1, 5000);
			n = write(c->fd, request, request_size);
		}
		if (n == (ssize_t)request_size)
			break;
		failed++;
		close(c->fd);
	}
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e) < 0)
		die("epoll_ctl");
}

/* step reads what has come, and says whether the connection is over. */
static int step(struct client *c)
{
	char buf[4096];
	for (;;) {
		ssize_t n = read(c->fd, buf, sizeof buf);
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n > 0) {
			for (size_t i = c->got; i < sizeof c->head && i - c->got < (size_t)n; i++)
				c->head[i] = buf[i - c->got];
			c->got += n;
			continue;
		}
		int whole = is_http ? c->got > sizeof c->head && !memcmp(c->head, "HTTP/1.1 200", sizeof c->head) : c->got == request_size;
		if (n < 0 || !whole) {
			failed++;
		} else {
			if (done == room && !(lives = realloc(lives, (room = room ? 2 * room : 1 << 16) * sizeof *lives)))
				die("realloc");
			lives[done++] = now() - c->began;
		}
		close(c->fd);
		return 1;
	}
}

static int earlier(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: load PORT AT_A_TIME MILLISECONDS echo|http\n");
		return 2;
	}
	server.sin_port = htons(atoi(argv[1]));
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int at_a_time = atoi(argv[2]), open = at_a_time;
	int64_t length = atoi(argv[3]) * 1000000LL;
	is_http = !strcmp(argv[4], "http");
	if (is_http)
		memcpy(request, http, request_size = sizeof http - 1);
	struct client *clients = calloc(at_a_time, sizeof *clients);
	if (!clients || (epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
		die("start");
	int64_t start = now();
	for (int i = 0; i < at_a_time; i++)
		begin(&clients[i]);
	struct epoll_event events[64];
	while (open > 0) {
		int n = epoll_wait(epoll, events, 64, 10000);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			fprintf(stderr, "load: %d of %d connections hang\n", open, at_a_time);
			return 1;
		}
		int late = now() - start > length;
		for (int i = 0; i < n; i++) {
			struct client *c = events[i].data.ptr;
			if (!step(c))
				continue;
			if (late)
				open--;
			else
				begin(c);
		}
	}
	int64_t took = now() - start;
	qsort(lives, done, sizeof *lives, earlier);
	printf("%zu %zu %lld %lld %lld\n", done, failed, (long long)took, done ? (long long)lives[done / 2] : 0,
	       done ? (long long)lives[done * 99 / 100] : 0);
	return 0;
}
