/* daemon hands connections over as portd does, with the least that is needed: daemon HANDOFF_SOCKET. Whoever attaches is given what
 * comes to its one listener, by docs/PROTOCOL.md. It shows what the hand-off itself costs. It prints its port. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { frame_size = 1200, per_message = 4, most_workers = 64 };

static struct worker {
	int queue, kept, room;
	uint64_t sequence, sent;
	volatile uint64_t *page;
} workers[most_workers];
static int worker_count, turn, epoll, listener;
static int acceptable; /* connections wait in the backlog, as far as is known */

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void watch(int fd, uint32_t events, uint64_t what)
{
	struct epoll_event e = {.events = events | EPOLLET, .data.u64 = what};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0)
		die("epoll_ctl");
}

static int send_fds(int to, void *message, size_t size, int *fds, int n)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(per_message * sizeof(int))];
	} control = {.head = {.cmsg_len = CMSG_LEN(n * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	memcpy(CMSG_DATA(&control.head), fds, n * sizeof(int));
	struct iovec iov = {message, size};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(n * sizeof(int))};
	return sendmsg(to, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* attach gives a worker its queue and its page. */
static void attach(int door)
{
	char buf[4096];
	int pair[2], fd = accept4(door, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0 || worker_count == most_workers || recv(fd, buf, sizeof buf, 0) < 8)
		return;
	struct worker *w = &workers[worker_count];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
		die("socketpair");
	int room = 2 * 2304 - 1; /* one padded message */
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
	int page = memfd_create("page", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (page < 0 || ftruncate(page, 4096) < 0)
		die("memfd");
	fcntl(page, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	uint32_t *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
	p[0] = 0x64747270, p[1] = 1, p[2] = 4096;
	*w = (struct worker){.queue = pair[0], .kept = pair[1], .page = (uint64_t *)p};
	/* ATTACHED: version 1, room 1, one listener: number 0, wish 0, "r", "tcp/1". */
	static const uint8_t attached[] = {2, 0, 0, 0, 62, 0, 0, 0, 1, 0, 1, 0, 1, 0, 5, 16, 'w', 'r', 'k', '_', '1', 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 'r', 6, 0, 't', 'c', 'p', '/', '1', '0'};
	send_fds(fd, (void *)attached, sizeof attached, (int[]){pair[1], page}, 2);
	close(page);
	watch(w->queue, EPOLLOUT, 2 + worker_count++);
}

/* pick is the worker with the fewest connections among those with room. */
static struct worker *pick(void)
{
	struct worker *best = NULL;
	uint64_t least = 0;
	for (int i = 0; i < worker_count; i++) {
		struct worker *w = &workers[(turn + i) % worker_count];
		uint64_t active = w->sent - w->page[24];
		if (w->room && (!best || active < least))
			best = w, least = active;
	}
	if (best)
		turn = best - workers + 1;
	return best;
}

/* hand_over fills one message and sends it. */
static void hand_over(struct worker *w)
{
	static uint8_t frame[frame_size];
	int fds[per_message], n = 0;
	uint8_t *at = frame + 20;
	while (n < per_message) {
		struct sockaddr_in peer;
		socklen_t size = sizeof peer;
		if ((fds[n] = accept4(listener, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)) < 0) {
			acceptable = 0;
			break;
		}
		n++;
		struct timespec t;
		clock_gettime(CLOCK_REALTIME, &t);
		uint64_t accepted = t.tv_sec * 1000000000ULL + t.tv_nsec;
		uint16_t port = ntohs(peer.sin_port);
		memset(at, 0, 28);
		at[0] = 28, at[18] = 1, at[19] = 6;
		memcpy(at + 6, &accepted, 8);
		memcpy(at + 20, &port, 2);
		memcpy(at + 22, &peer.sin_addr, 4);
		at += 28;
	}
	if (!n)
		return;
	uint32_t size = at - frame;
	memset(at, 0, frame + frame_size - at);
	memset(frame, 0, 20);
	frame[0] = 16, frame[16] = n;
	memcpy(frame + 4, &size, 4);
	w->sequence++;
	memcpy(frame + 8, &w->sequence, 8);
	if (send_fds(w->queue, frame, sizeof frame, fds, n) < 0)
		die("sendmsg");
	for (int i = 0; i < n; i++)
		close(fds[i]);
	w->sent += n;
	w->page[8] = w->sent;
	w->page[9] = w->sequence;
	w->room = 0;
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	int door = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct sockaddr_un path = {.sun_family = AF_UNIX};
	strncpy(path.sun_path, argv[1], sizeof path.sun_path - 1);
	if (door < 0 || bind(door, (struct sockaddr *)&path, sizeof path) < 0 || listen(door, 64) < 0)
		die("listen");
	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof addr;
	if (listener < 0 || bind(listener, (struct sockaddr *)&addr, size) < 0 || listen(listener, 4096) < 0 ||
	    getsockname(listener, (struct sockaddr *)&addr, &size) < 0)
		die("listen");
	if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
		die("epoll_create");
	watch(listener, EPOLLIN, 0);
	struct epoll_event knock = {.events = EPOLLIN, .data.u64 = 1}, events[64];
	epoll_ctl(epoll, EPOLL_CTL_ADD, door, &knock);
	printf("ready %d\n", ntohs(addr.sin_port));
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(epoll, events, 64, -1);
		for (int i = 0; i < n; i++) {
			if (events[i].data.u64 == 0)
				acceptable = 1;
			else if (events[i].data.u64 == 1)
				attach(door);
			else
				workers[events[i].data.u64 - 2].room = 1;
		}
		struct worker *w;
		while (acceptable && (w = pick()))
			hand_over(w);
	}
}
