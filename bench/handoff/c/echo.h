/* What both servers in C do with a connection once they have it: 64 bytes, and back, and close. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static int epoll;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void watch(int fd)
{
	struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0)
		die("epoll_ctl");
}

/* answer says whether the connection is over, and closed. */
static int answer(int fd)
{
	char buf[64];
	ssize_t n = read(fd, buf, sizeof buf);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n > 0 && write(fd, buf, n) < 0)
		perror("write");
	close(fd);
	return 1;
}

/* serve calls more() whenever something has come from `from`. */
static void serve(int from, void (*more)(int from))
{
	if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
		die("epoll_create");
	watch(from);
	struct epoll_event events[64];
	for (;;) {
		int n = epoll_wait(epoll, events, 64, -1);
		for (int i = 0; i < n; i++) {
			if (events[i].data.fd == from)
				more(from);
			else
				answer(events[i].data.fd);
		}
	}
}
