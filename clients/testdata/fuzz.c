/* Says to the C worker what no portd would: mutations of the messages on standard input, a line of hexadecimal digits each. It must
 * neither crash nor keep a descriptor. fuzz SEED ROUNDS */
#define PORTD_IMPLEMENTATION
#include "portd.h"

#include <dirent.h>

static unsigned char seeds[64][PORTD_PACKET];
static size_t lengths[64], n_seeds;
static uint64_t state;
static int spare; /* a socket to be passed */

static unsigned rnd(unsigned below)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(state >> 33) % below;
}

static void need(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static size_t open_descriptors(void)
{
	size_t n = 0;
	DIR *d = opendir("/proc/self/fd");
	need(d != NULL, "/proc/self/fd");
	while (readdir(d) != NULL)
		n++;
	closedir(d);
	return n;
}

/* mutate makes a packet of a seed. */
static size_t mutate(unsigned char *to)
{
	static const unsigned char odd[] = {0, 1, 2, 0x7f, 0x80, 0xfe, 0xff};
	unsigned k = rnd((unsigned)n_seeds);
	size_t n = lengths[k];
	memcpy(to, seeds[k], n);
	for (unsigned i = rnd(6); i > 0 && n > 0; i--)
		to[rnd((unsigned)n)] = rnd(2) ? (unsigned char)rnd(256) : odd[rnd(sizeof odd)];
	if (rnd(4) == 0)
		n = rnd((unsigned)n + 1);
	else if (rnd(4) == 0) {
		size_t more = rnd(300);
		for (size_t i = 0; i < more; i++)
			to[n++] = (unsigned char)rnd(256);
	}
	if (n >= 8 && rnd(2)) { /* a length that is right */
		size_t at = 4;
		portd_put_(to, &at, n, 4);
	}
	return n > 0 ? n : 1;
}

static void say(int fd, int page)
{
	static unsigned char packet[2 * PORTD_PACKET];
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(8 * sizeof(int))];
	} control;
	int fds[8];
	unsigned n_fds = rnd(5);
	struct iovec iov = {packet, mutate(packet)};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	for (unsigned i = 0; i < n_fds; i++)
		fds[i] = rnd(2) ? page : spare;
	if (n_fds > 0) {
		m.msg_control = control.buf;
		m.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		memset(&control, 0, sizeof control);
		struct cmsghdr *h = CMSG_FIRSTHDR(&m);
		h->cmsg_level = SOL_SOCKET;
		h->cmsg_type = SCM_RIGHTS;
		h->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(h), fds, n_fds * sizeof(int));
	}
	sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void worker_round(int fd, int page)
{
	static portd_conn conns[PORTD_MAX];
	static unsigned char buf[PORTD_PACKET];
	char name[] = "tcp/8080";
	portd_wish wish = {name, PORTD_CONNECTIONS, PORTD_READY, 0, 0};
	portd_worker w;
	portd_event e;
	portd_queue *q;
	memset(&w, 0, sizeof w);
	w.control = -1;
	w.config.wishes = &wish;
	w.config.n_wishes = 1;
	switch (rnd(3)) {
	case 0:
		portd_answer_(&w, fd, buf);
		portd_close_all_(w.sockets, w.n_sockets);
		close(fd);
		break;
	case 1:
		w.listeners = calloc(2, sizeof *w.listeners);
		need(w.listeners != NULL, "calloc");
		w.listeners[1].number = w.n_listeners = 2;
		w.control = fd;
		while (w.control >= 0)
			portd_heed(&w, &e);
		break;
	default:
		q = portd_new_queue_(fd, page);
		need(q != NULL, "queue");
		if (rnd(2))
			q->limit = 0; /* looks first */
		for (int n = 0, tries = 0; n >= 0 && tries < 20; tries++) {
			struct rlimit few, before;
			need(getrlimit(RLIMIT_NOFILE, &before) == 0, "getrlimit");
			few = before;
			few.rlim_cur = rnd(2) ? 12 : before.rlim_cur;
			need(setrlimit(RLIMIT_NOFILE, &few) == 0, "setrlimit");
			n = portd_take(&w, q, conns);
			need(setrlimit(RLIMIT_NOFILE, &before) == 0, "setrlimit");
			for (int i = 0; i < n; i++)
				portd_close(&conns[i]);
		}
		portd_end(&w, q);
	}
	portd_leave(&w);
}

int main(int argc, char **argv)
{
	unsigned byte;
	int page = memfd_create("page", MFD_CLOEXEC);
	need(argc == 3 && page >= 0 && ftruncate(page, PORTD_PAGE) == 0, "memfd");
	uint32_t head[2] = {0x64747270, 1};
	need(write(page, head, sizeof head) == sizeof head, "page");
	state = strtoull(argv[1], NULL, 10);
	for (int c; n_seeds < 64 && (c = getchar()) != EOF;) {
		if (c == '\n') {
			n_seeds += lengths[n_seeds] > 0;
			continue;
		}
		ungetc(c, stdin);
		need(lengths[n_seeds] < PORTD_PACKET / 2 && scanf("%2x", &byte) == 1, "seed");
		seeds[n_seeds][lengths[n_seeds]++] = (unsigned char)byte;
	}
	need(n_seeds > 0, "seeds");
	need((spare = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0, "socket");
	size_t before = open_descriptors();
	for (long left = strtol(argv[2], NULL, 10); left > 0; left--) {
		int pair[2];
		need(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0, "socketpair");
		for (unsigned i = 1 + rnd(3); i > 0; i--)
			say(pair[0], page);
		close(pair[0]);
		worker_round(pair[1], page);
	}
	size_t after = open_descriptors();
	if (after != before) {
		fprintf(stderr, "%zu descriptors before, %zu after\n", before, after);
		return 1;
	}
	return 0;
}
