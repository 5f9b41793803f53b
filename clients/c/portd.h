/* portd.h: take connections from portd, in C11 for Linux, without dependencies.
 *
 * In one file of a program:
 *
 *	#define PORTD_IMPLEMENTATION
 *	#include "portd.h"
 *
 * and in others without the #define; in the first one before other headers, as it asks for GNU's declarations. docs/PROTOCOL.md
 * has what goes over the wire. A worker is an event loop over two descriptors:
 *
 *	portd_attach(&w, &config);
 *	portd_control(&w)       readable: portd_heed(&w, &event)
 *	portd_queue_fd(queue)   readable: portd_take(queue, conns), when there is somebody to serve them
 *
 * A connection is an ordinary nonblocking socket, and the caller's. Close it with portd_close, which tells portd that the
 * worker has room again. portd_close may be called from any thread; the rest of a worker from one thread at a time.
 *
 * portd may have a descriptor of the connection, and has one of the queue, when the worker closes its own. So closing does not take
 * it out of an epoll set (epoll(7), questions 6): EPOLL_CTL_DEL does, or let the event of one that is closed do no harm.
 */
#ifndef PORTD_H
#define PORTD_H

#if defined(PORTD_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define PORTD_MAX 253 /* connections, and descriptors, in a message */
#define PORTD_ALL UINT32_MAX

enum { PORTD_CONNECTIONS = 1, PORTD_SOCKET = 2 }; /* what is wished for; the second one is the socket itself */
enum { PORTD_READY = 1, PORTD_DRAINING = 2 };     /* flags of a wish */
enum { PORTD_REDELIVERED = 1 };                   /* flags of a connection */

typedef struct {
	const char *reference; /* "tcp/8080", a name, or an id */
	uint8_t kind, flags;   /* 0 is PORTD_CONNECTIONS, and attached without getting any until portd_ready */
	uint16_t weight;       /* 0 leaves it to portd */
	uint8_t priority;      /* 0 is the first */
} portd_wish;

typedef struct {
	const char *socket;     /* portd's control socket, or NULL: $PORTD_SOCKET, else one's own portd's, else the system's */
	const char *generation; /* or NULL: $PORTD_GENERATION */
	uint16_t room;          /* messages that may wait for this worker; 0 leaves it to portd */
	portd_wish *wishes;     /* must stay; their flags follow portd_ready, portd_drain and what portd says */
	size_t n_wishes;        /* 1 to 250 */
} portd_config;

typedef struct {
	uint32_t number;
	uint16_t wish, endpoint; /* which wish it answers, and which endpoint of the reservation it is */
	char reservation[256], name[256];
	const int *sockets; /* PORTD_SOCKET: the caller closes them */
	uint32_t n_sockets;
	uint8_t gone, draining, drained;
} portd_listener;

/* A queue is where connections come from. A worker has one, and for a while an older one too after portd was away. */
typedef struct portd_queue portd_queue;

typedef struct {
	int control;        /* the attach connection, to wait for; -1 while portd is away */
	portd_queue *queue; /* the newest queue; NULL if it is over, or there was none */
	char id[256];
	portd_listener *listeners;
	size_t n_listeners;
	int wait_ms;      /* after PORTD_AWAY: before portd_again makes sense */
	int backoff_ms;
	int code;         /* of a refusal, 0 where it is none of portd's */
	char error[512];  /* what went wrong last, for people */
	portd_config config;
	int *sockets;
	size_t n_sockets, token_len;
	unsigned char token[255];
	char path[108];
} portd_worker;

typedef struct {
	int fd;
	uint32_t number; /* of the listener; the rest of it is 0xffff where portd never named it */
	uint16_t wish, endpoint;
	uint32_t flags;
	uint64_t accepted_ns; /* since 1970 */
	struct sockaddr_storage peer, local;
	socklen_t peer_len, local_len; /* 0 where portd did not say */
	portd_queue *queue;            /* that it counts in */
} portd_conn;

enum {
	PORTD_NOTHING, /* no more messages for now */
	PORTD_OTHER,   /* a message of a later version */
	PORTD_DRAIN,   /* portd sends no more of this listener, or of PORTD_ALL: finish, and leave when portd_over says so */
	PORTD_DRAINED, /* after portd_drain or PORTD_DRAIN: count connections were sent in all, and none lie in the queue */
	PORTD_GONE,    /* the listener has ended for good; text says why */
	PORTD_AWAY,    /* portd is gone; read the queue to its end, and call portd_again after wait_ms */
	PORTD_OVER     /* nothing more will come but what lies in the queue: all listeners are gone */
};

typedef struct {
	int type;
	uint32_t number;
	uint64_t count;
	char text[256];
} portd_event;

/* portd_attach attaches, once, within some seconds. 0, or -1 with w->error (and w->code where portd refused). */
int portd_attach(portd_worker *w, const portd_config *config);

/* portd_again attaches again after PORTD_AWAY: 0; -1 try again after wait_ms; -2 never (w->error). A new w->queue is
 * beside the old one, which goes on until portd_take says that it has ended. */
int portd_again(portd_worker *w);

/* portd_heed takes one message from portd, without waiting. */
int portd_heed(portd_worker *w, portd_event *event);

/* portd_ready asks for connections of a listener or of PORTD_ALL; portd_drain for no more. 0, or -1 if portd is gone or
 * does not listen: portd_heed tells which. */
int portd_ready(portd_worker *w, uint32_t number);
int portd_drain(portd_worker *w, uint32_t number);

/* portd_over says whether every listener is drained or gone: what was sent is taken. */
int portd_over(const portd_worker *w);

/* portd_leave ends the attachment, and w->queue: what was not taken goes to others. Connections stay. */
void portd_leave(portd_worker *w);

int portd_queue_fd(const portd_queue *q);

/* portd_take takes one message without waiting. It returns the number of connections; 0 if there is none, or if they do not
 * fit under the limit of descriptors now (portd_full says so: close some, or wait a moment); -1 at the end of the queue:
 * stop waiting for it, and portd_end it. */
int portd_take(portd_worker *w, portd_queue *q, portd_conn conns[PORTD_MAX]);
int portd_full(const portd_queue *q);

/* portd_end closes a queue, which is freed with its last connection. w->queue, if it is this one, is NULL then. */
void portd_end(portd_worker *w, portd_queue *q);

/* portd_close closes the connection and counts it as done. */
void portd_close(portd_conn *c);

/* portd_done only counts: for who has closed the descriptor, or passed it on. Once for each connection. */
void portd_done(portd_queue *q);

#ifdef PORTD_IMPLEMENTATION

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <netinet/in.h>
#include <unistd.h>

#define PORTD_PACKET 65536

struct portd_queue {
	int fd, full;
	_Atomic uint64_t *page; /* NULL where it makes no sense: then nothing is counted */
	atomic_uint refs;       /* the queue until its end, and each connection until it is done */
	uint64_t received, turn;
	int last, limit; /* descriptor received, and how many there may be */
	size_t need;     /* descriptors, before a full queue is looked at again */
	portd_listener *listeners;
	size_t n_listeners;
	unsigned char buf[PORTD_PACKET];
};

enum { PORTD_PAGE = 4096, PORTD_TURN = 128 / 8, PORTD_SEQUENCE = 136 / 8, PORTD_RECEIVED = 144 / 8, PORTD_DONE = 192 / 8 };

/* A cursor reads a message; past its end it reads zeros, and bad says so. */
typedef struct {
	const unsigned char *p;
	size_t n;
	int bad;
} portd_cursor;

static const unsigned char *portd_bytes_(portd_cursor *c, size_t n)
{
	static const unsigned char zeros[32];
	const unsigned char *p = c->p;
	if (c->bad || n > c->n) {
		c->bad = 1;
		return zeros; /* callers that ask for more than 32 look at bad first */
	}
	c->p += n;
	c->n -= n;
	return p;
}

static uint64_t portd_number_(portd_cursor *c, size_t bytes)
{
	const unsigned char *p = portd_bytes_(c, bytes);
	uint64_t v = 0;
	while (bytes-- > 0)
		v = v << 8 | p[bytes];
	return v;
}

static void portd_text_(portd_cursor *c, char *to, size_t size)
{
	size_t n = (size_t)portd_number_(c, 2);
	const unsigned char *p = portd_bytes_(c, n);
	if (c->bad)
		n = 0;
	if (n > size - 1)
		n = size - 1;
	memcpy(to, p, n);
	to[n] = 0;
}

/* portd_entry_ is the rest of an entry, which begins with its length: what a later version put behind it is skipped. */
static portd_cursor portd_entry_(portd_cursor *c)
{
	portd_cursor e = {NULL, 0, 1};
	size_t n = (size_t)portd_number_(c, 2);
	if (n < 2) {
		c->bad = 1;
		return e;
	}
	e.p = portd_bytes_(c, n - 2);
	e.n = n - 2;
	e.bad = c->bad;
	return e;
}

/* portd_message_ takes the header off a packet and returns the type, or -1. */
static int portd_message_(portd_cursor *c, const unsigned char *packet, size_t n, unsigned *flags)
{
	c->p = packet;
	c->n = n;
	c->bad = 0;
	int type = (int)portd_number_(c, 2);
	*flags = (unsigned)portd_number_(c, 2);
	uint64_t length = portd_number_(c, 4);
	if (c->bad || length < 8 || length > n || length > PORTD_PACKET)
		return -1;
	c->n = (size_t)length - 8;
	return type;
}

/* portd_receive_ is recvmsg(2) with descriptors. Never more than PORTD_MAX come; truncated says that some did not. */
static ssize_t portd_receive_(int fd, unsigned char *buf, int flags, int fds[PORTD_MAX], size_t *n_fds, int *truncated)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(PORTD_MAX * sizeof(int))];
	} control;
	struct iovec iov = {buf, PORTD_PACKET};
	struct msghdr m;
	ssize_t n;
	memset(&m, 0, sizeof m);
	m.msg_iov = &iov;
	m.msg_iovlen = 1;
	m.msg_control = control.buf;
	m.msg_controllen = sizeof control.buf;
	*n_fds = 0;
	do
		n = recvmsg(fd, &m, flags | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -1;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h != NULL; h = CMSG_NXTHDR(&m, h)) {
		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		size_t bytes = h->cmsg_len - CMSG_LEN(0);
		for (size_t at = 0; at + sizeof(int) <= bytes && *n_fds < PORTD_MAX; at += sizeof(int))
			memcpy(&fds[(*n_fds)++], CMSG_DATA(h) + at, sizeof(int));
	}
	*truncated = (m.msg_flags & MSG_CTRUNC) != 0;
	if (m.msg_flags & MSG_TRUNC)
		n = 1; /* longer than a message may be: shorter than a header is as malformed */
	return n;
}

static void portd_close_all_(const int *fds, size_t n)
{
	while (n-- > 0)
		close(fds[n]);
}

static int portd_fail_(portd_worker *w, const char *what, int err)
{
	w->code = 0;
	snprintf(w->error, sizeof w->error, "%s: %s", what, strerror(err));
	errno = err;
	return -1;
}

/* ---- attaching ---- */

/* portd_connect_ connects to the hand-off socket beside a control socket and asks the kernel whose it is. */
static int portd_connect_(portd_worker *w, const char *control)
{
	struct sockaddr_un a;
	struct ucred peer;
	socklen_t len = sizeof peer;
	const char *slash = strrchr(control, '/');
	int dir = slash == NULL ? 0 : (int)(slash - control) + 1;
	memset(&a, 0, sizeof a);
	a.sun_family = AF_UNIX;
	if (snprintf(a.sun_path, sizeof a.sun_path, "%.*shandoff.sock", dir, control) >= (int)sizeof a.sun_path)
		return portd_fail_(w, control, ENAMETOOLONG);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return portd_fail_(w, "socket", errno);
	int err = 0;
	if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0)
		err = errno;
	else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0)
		err = errno;
	else if (peer.uid != 0 && peer.uid != geteuid())
		err = EPERM; /* somebody else's program: it would learn our token and choose our connections */
	if (err != 0) {
		close(fd);
		return portd_fail_(w, a.sun_path, err);
	}
	snprintf(w->path, sizeof w->path, "%s", control);
	return fd;
}

/* portd_find_ connects to the first portd that there is. */
static int portd_find_(portd_worker *w)
{
	static const char *const places[][2] = {
		{"XDG_RUNTIME_DIR", ""}, {"XDG_STATE_HOME", ""}, {"HOME", "/.local/state"}, {NULL, "/run"},
	};
	const char *path = w->path[0] ? w->path : w->config.socket;
	if (path == NULL || *path == 0)
		path = getenv("PORTD_SOCKET");
	if (path != NULL && *path != 0)
		return portd_connect_(w, path);
	int fd = -1;
	for (size_t i = 0; i < sizeof places / sizeof places[0] && fd < 0; i++) {
		char buf[108];
		const char *base = places[i][0] == NULL ? "" : getenv(places[i][0]);
		if (places[i][0] != NULL && (geteuid() == 0 || base == NULL || *base != '/'))
			continue; /* root's own portd is the system's */
		if (snprintf(buf, sizeof buf, "%s%s/portd/portd.sock", base, places[i][1]) >= (int)sizeof buf)
			continue;
		fd = portd_connect_(w, buf);
		if (fd < 0 && errno != ENOENT && errno != ECONNREFUSED && errno != ENOTDIR)
			break;
	}
	return fd;
}

static void portd_put_(unsigned char *buf, size_t *at, uint64_t v, size_t bytes)
{
	while (bytes-- > 0) {
		buf[(*at)++] = (unsigned char)v;
		v >>= 8;
	}
}

/* portd_wishes_ writes ATTACH; buf has PORTD_PACKET bytes. 0 if it does not fit. */
static size_t portd_wishes_(const portd_worker *w, unsigned char *buf)
{
	const portd_config *c = &w->config;
	size_t n = 8, token = w->token_len >= 16 && w->token_len <= 32 ? w->token_len : 0;
	const char *named = c->generation != NULL ? c->generation : getenv("PORTD_GENERATION");
	size_t generation = named == NULL ? 0 : strlen(named);
	if (c->n_wishes < 1 || c->n_wishes > 250 || generation > 63)
		return 0;
	portd_put_(buf, &n, 1, 2);
	portd_put_(buf, &n, 1, 2);
	portd_put_(buf, &n, c->room, 2);
	portd_put_(buf, &n, c->n_wishes, 2);
	portd_put_(buf, &n, token, 4);
	memcpy(buf + n, w->token, token);
	n += token;
	for (size_t i = 0; i < c->n_wishes; i++) {
		const portd_wish *wish = &c->wishes[i];
		size_t text = strlen(wish->reference);
		size_t entry = 6 + text + (wish->weight ? 6 : 0) + (wish->priority ? 5 : 0);
		if (text < 1 || text > 255 || n + entry + 4 + generation > PORTD_PACKET)
			return 0;
		portd_put_(buf, &n, entry, 2);
		portd_put_(buf, &n, wish->kind ? wish->kind : PORTD_CONNECTIONS, 1);
		portd_put_(buf, &n, wish->flags, 1);
		portd_put_(buf, &n, text, 2);
		memcpy(buf + n, wish->reference, text);
		n += text;
		if (wish->weight) {
			portd_put_(buf, &n, 1 | 2 << 16, 4);
			portd_put_(buf, &n, wish->weight, 2);
		}
		if (wish->priority) {
			portd_put_(buf, &n, 2 | 1 << 16, 4);
			portd_put_(buf, &n, wish->priority, 1);
		}
	}
	if (generation) {
		portd_put_(buf, &n, 1 | generation << 16, 4);
		memcpy(buf + n, named, generation);
		n += generation;
	}
	size_t at = 0;
	portd_put_(buf, &at, 1, 4);
	portd_put_(buf, &at, n, 4);
	return n;
}

static void portd_unref_(portd_queue *q)
{
	if (atomic_fetch_sub(&q->refs, 1) != 1)
		return;
	if (q->page != NULL)
		munmap((void *)(uintptr_t)q->page, PORTD_PAGE);
	free(q->listeners);
	free(q);
}

void portd_end(portd_worker *w, portd_queue *q)
{
	close(q->fd);
	if (w->queue == q)
		w->queue = NULL;
	portd_unref_(q);
}

static portd_queue *portd_new_queue_(int fd, int page)
{
	portd_queue *q = calloc(1, sizeof *q);
	struct rlimit limit;
	struct stat st;
	if (q == NULL)
		return NULL;
	q->fd = q->last = fd;
	q->limit = getrlimit(RLIMIT_NOFILE, &limit) != 0 ? 0 : limit.rlim_cur > INT_MAX ? INT_MAX : (int)limit.rlim_cur;
	atomic_init(&q->refs, 1);
	/* The size is looked at first: beyond the end of a short file there is a SIGBUS. */
	if (fstat(page, &st) == 0 && st.st_size >= PORTD_PAGE) {
		void *p = mmap(NULL, PORTD_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
		const uint32_t *head = p;
		if (p != MAP_FAILED && (head[0] != 0x64747270 || head[1] != 1))
			munmap(p, PORTD_PAGE);
		else if (p != MAP_FAILED)
			q->page = p;
	}
	return q;
}

/* portd_attached_ reads ATTACHED. The descriptors are its to keep or to close. */
static int portd_attached_(portd_worker *w, portd_cursor *c, unsigned flags, int *fds, size_t n_fds)
{
	size_t own = flags & 1 ? 0 : 2; /* kept: no queue and no page come */
	uint64_t version = portd_number_(c, 2);
	portd_number_(c, 2); /* room */
	size_t n = (size_t)portd_number_(c, 2), id_len = (size_t)portd_number_(c, 1), token_len = (size_t)portd_number_(c, 1);
	const unsigned char *id = portd_bytes_(c, id_len), *token = portd_bytes_(c, token_len);
	portd_listener *l = calloc(n ? n : 1, sizeof *l);
	for (size_t i = 0; l != NULL && i < n && !c->bad; i++) {
		portd_cursor e = portd_entry_(c);
		l[i].number = (uint32_t)portd_number_(&e, 4);
		l[i].wish = (uint16_t)portd_number_(&e, 2);
		l[i].endpoint = (uint16_t)portd_number_(&e, 2);
		l[i].n_sockets = (uint32_t)portd_number_(&e, 4);
		portd_text_(&e, l[i].reservation, sizeof l[i].reservation);
		portd_text_(&e, l[i].name, sizeof l[i].name);
		c->bad |= e.bad;
	}
	if (l == NULL || c->bad || version != 1 || n_fds < own || (own == 0 && w->queue == NULL)) {
		portd_close_all_(fds, n_fds);
		free(l);
		return portd_fail_(w, "ATTACHED", l == NULL ? ENOMEM : EPROTO);
	}
	if (own) {
		portd_queue *q = portd_new_queue_(fds[0], fds[1]);
		close(fds[1]);
		if (q == NULL) {
			close(fds[0]);
			portd_close_all_(fds + 2, n_fds - 2);
			free(l);
			return portd_fail_(w, "queue", ENOMEM);
		}
		w->queue = q;
	}
	memcpy(w->id, id, id_len);
	w->id[id_len] = 0;
	memcpy(w->token, token, token_len);
	w->token_len = token_len;
	free(w->listeners);
	w->listeners = l;
	w->n_listeners = n;
	/* The queue has a copy of its own: an old one goes on under the old numbers. */
	portd_listener *copy = malloc((n ? n : 1) * sizeof *l);
	if (copy != NULL)
		memcpy(copy, l, n * sizeof *l);
	free(w->queue->listeners);
	w->queue->listeners = copy;
	w->queue->n_listeners = copy == NULL ? 0 : n;
	w->sockets = malloc((n_fds - own + 1) * sizeof *w->sockets);
	w->n_sockets = w->sockets == NULL ? 0 : n_fds - own;
	if (w->sockets == NULL)
		portd_close_all_(fds + own, n_fds - own);
	else
		memcpy(w->sockets, fds + own, w->n_sockets * sizeof *w->sockets);
	return 0;
}

/* portd_more_ takes the descriptors of a SOCKETS message. */
static int portd_more_(portd_worker *w, const int *fds, size_t n)
{
	int *all = realloc(w->sockets, (w->n_sockets + n + 1) * sizeof *all);
	if (all == NULL) {
		portd_close_all_(fds, n);
		return portd_fail_(w, "sockets", ENOMEM);
	}
	memcpy(all + w->n_sockets, fds, n * sizeof *all);
	w->sockets = all;
	w->n_sockets += n;
	return 0;
}

/* portd_answer_ waits for ATTACHED and what belongs to it. */
static int portd_answer_(portd_worker *w, int fd, unsigned char *buf)
{
	for (int attached = 0;;) {
		int fds[PORTD_MAX], truncated = 0;
		size_t n_fds;
		unsigned flags;
		portd_cursor c;
		struct pollfd p = {fd, POLLIN, 0};
		int ready = poll(&p, 1, 5000);
		if (ready < 0 && errno == EINTR)
			continue;
		if (ready <= 0)
			return portd_fail_(w, "portd does not answer", ready == 0 ? ETIMEDOUT : errno);
		ssize_t n = portd_receive_(fd, buf, 0, fds, &n_fds, &truncated);
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			continue;
		if (n <= 0)
			return portd_fail_(w, "portd went away", n == 0 ? ECONNRESET : errno);
		int type = portd_message_(&c, buf, (size_t)n, &flags), err = 0;
		if (type == 2 && !attached && !truncated) {
			if (portd_attached_(w, &c, flags, fds, n_fds) != 0)
				return -1;
			attached = 1;
		} else if (type == 3 && attached && !truncated) {
			if (portd_more_(w, fds, n_fds) != 0)
				return -1;
		} else {
			portd_close_all_(fds, n_fds);
			if (type == 4 && !attached) {
				w->code = (int)portd_number_(&c, 2);
				portd_number_(&c, 2);
				portd_text_(&c, w->error, sizeof w->error);
				errno = ECONNREFUSED;
				return -1;
			}
			err = type < 0 ? EPROTO : truncated ? EMFILE : 0;
		}
		if (err != 0)
			return portd_fail_(w, "answer", err);
		if (attached && (type == 2 || type == 3) && (flags & 2) == 0)
			return 0;
	}
}

/* portd_try_ makes one attempt to attach. */
static int portd_try_(portd_worker *w)
{
	unsigned char *buf = malloc(PORTD_PACKET);
	size_t n = buf == NULL ? 0 : portd_wishes_(w, buf);
	if (n == 0) {
		free(buf);
		w->code = 3;
		snprintf(w->error, sizeof w->error, "the wishes do not fit into a message");
		errno = EINVAL;
		return -1;
	}
	portd_queue *before = w->queue;
	int fd = portd_find_(w), failed = fd < 0;
	if (!failed && send(fd, buf, n, MSG_NOSIGNAL) != (ssize_t)n)
		failed = portd_fail_(w, "ATTACH", errno);
	free(w->sockets); /* the descriptors are the caller's by now */
	w->sockets = NULL;
	w->n_sockets = 0;
	if (!failed)
		failed = portd_answer_(w, fd, buf);
	free(buf);
	size_t given = 0;
	for (size_t i = 0; !failed && i < w->n_listeners; i++) {
		portd_listener *l = &w->listeners[i];
		if (l->n_sockets > w->n_sockets - given)
			l->n_sockets = (uint32_t)(w->n_sockets - given);
		l->sockets = w->sockets + given;
		given += l->n_sockets;
	}
	if (failed) {
		int err = errno;
		if (fd >= 0)
			close(fd);
		portd_close_all_(w->sockets, w->n_sockets);
		w->n_sockets = 0;
		if (w->queue != before) {
			portd_end(w, w->queue);
			w->queue = before;
		}
		errno = err;
		return -1;
	}
	w->control = fd;
	w->wait_ms = w->backoff_ms = 0;
	for (size_t i = 0; i < w->n_listeners; i++) { /* drained before: now there is to be a DRAINED */
		const portd_listener *l = &w->listeners[i];
		if (l->wish < w->config.n_wishes && w->config.wishes[l->wish].flags & PORTD_DRAINING)
			portd_drain(w, l->number);
	}
	return 0;
}

int portd_attach(portd_worker *w, const portd_config *config)
{
	memset(w, 0, sizeof *w);
	w->control = -1;
	w->config = *config;
	return portd_try_(w);
}

int portd_again(portd_worker *w)
{
	if (portd_try_(w) == 0)
		return 0;
	/* 9 too: after a restart the port may still be somebody else's, and comes back. */
	if (w->code != 0 && w->code != 8 && w->code != 9 && w->code != 13 && w->code != 14)
		return -2;
	/* Spread out, as all workers of a portd lose it at the same time. */
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	w->backoff_ms = w->backoff_ms < 10 ? 10 : w->backoff_ms > 500 ? 1000 : w->backoff_ms * 2;
	w->wait_ms = w->backoff_ms / 2 + (int)((now.tv_nsec / 1000 + getpid()) % w->backoff_ms);
	return -1;
}

/* ---- the attach connection ---- */

static int portd_send_(portd_worker *w, unsigned type, const uint32_t *number)
{
	unsigned char m[12];
	size_t n = 0;
	portd_put_(m, &n, type, 4);
	portd_put_(m, &n, number == NULL ? 8 : 12, 4);
	if (number != NULL)
		portd_put_(m, &n, *number, 4);
	if (w->control < 0)
		return portd_fail_(w, "portd is away", ENOTCONN);
	if (send(w->control, m, n, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)n)
		return portd_fail_(w, "attach connection", errno);
	return 0;
}

/* portd_stand_ notes what was said last of listeners. The wishes say it again when portd was away. */
static void portd_stand_(portd_worker *w, uint32_t number, uint8_t flags)
{
	for (size_t i = 0; i < w->n_listeners; i++) {
		portd_listener *l = &w->listeners[i];
		if (number != PORTD_ALL && number != l->number)
			continue;
		l->draining = flags == PORTD_DRAINING;
		l->drained = 0;
		if (l->wish < w->config.n_wishes)
			w->config.wishes[l->wish].flags = flags;
	}
}

int portd_ready(portd_worker *w, uint32_t number)
{
	portd_stand_(w, number, PORTD_READY);
	return portd_send_(w, 5, &number);
}

int portd_drain(portd_worker *w, uint32_t number)
{
	portd_stand_(w, number, PORTD_DRAINING);
	return portd_send_(w, 6, &number);
}

int portd_heed(portd_worker *w, portd_event *e)
{
	unsigned char *buf;
	int fds[PORTD_MAX], truncated;
	size_t n_fds, gone = 0;
	unsigned flags;
	portd_cursor c;
	memset(e, 0, sizeof *e);
	if (w->control < 0)
		return 0;
	if ((buf = malloc(PORTD_PACKET)) == NULL)
		return 0; /* again, when there is memory */
	ssize_t n = portd_receive_(w->control, buf, 0, fds, &n_fds, &truncated);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
		free(buf);
		return 0;
	}
	portd_close_all_(fds, n_fds);
	int type = n <= 0 ? -1 : portd_message_(&c, buf, (size_t)n, &flags);
	e->type = PORTD_OTHER;
	if (type >= 6 && type <= 8) {
		e->number = (uint32_t)portd_number_(&c, 4);
		if (type == 7) {
			portd_number_(&c, 4);
			e->count = portd_number_(&c, 8);
		} else if (type == 8) {
			portd_text_(&c, e->text, sizeof e->text);
		}
		if (c.bad)
			type = -1;
		else
			e->type = type == 6 ? PORTD_DRAIN : type == 7 ? PORTD_DRAINED : PORTD_GONE;
	}
	free(buf);
	for (size_t i = 0; i < w->n_listeners; i++) {
		portd_listener *l = &w->listeners[i];
		if (l->number == e->number) {
			l->gone |= e->type == PORTD_GONE;
			l->drained |= e->type == PORTD_DRAINED && l->draining; /* else a READY crossed with it */
		}
		gone += l->gone;
	}
	if (e->type == PORTD_DRAIN)
		portd_drain(w, e->number); /* a READY may have crossed with it, too; this one is answered in any case */
	if (type == -1) { /* its end, or what makes no sense: begin anew */
		close(w->control);
		w->control = -1;
		e->type = w->n_listeners > 0 && gone == w->n_listeners ? PORTD_OVER : PORTD_AWAY;
	}
	return e->type;
}

int portd_over(const portd_worker *w)
{
	for (size_t i = 0; i < w->n_listeners; i++)
		if (!w->listeners[i].gone && !w->listeners[i].drained)
			return 0;
	return 1;
}

void portd_leave(portd_worker *w)
{
	if (w->control >= 0)
		close(w->control);
	w->control = -1;
	if (w->queue != NULL)
		portd_end(w, w->queue);
	free(w->listeners);
	free(w->sockets);
	w->listeners = NULL;
	w->sockets = NULL;
	w->n_listeners = w->n_sockets = 0;
}

/* ---- the queue ---- */

static socklen_t portd_address_(portd_cursor *c, struct sockaddr_storage *to)
{
	unsigned family = (unsigned)portd_number_(c, 1);
	size_t n = (size_t)portd_number_(c, 1);
	portd_cursor a = {portd_bytes_(c, n), n, 0};
	struct sockaddr_in *in = (struct sockaddr_in *)to;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)to;
	struct sockaddr_un *un = (struct sockaddr_un *)to;
	to->ss_family = AF_UNSPEC;
	if (c->bad)
		return 0;
	if (family == 1 && n >= 6) {
		memset(in, 0, sizeof *in);
		in->sin_family = AF_INET;
		in->sin_port = htons((uint16_t)portd_number_(&a, 2));
		memcpy(&in->sin_addr, portd_bytes_(&a, 4), 4);
		return sizeof *in;
	}
	if (family == 2 && n >= 22) {
		memset(in6, 0, sizeof *in6);
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons((uint16_t)portd_number_(&a, 2));
		in6->sin6_scope_id = (uint32_t)portd_number_(&a, 4);
		memcpy(&in6->sin6_addr, portd_bytes_(&a, 16), 16);
		return sizeof *in6;
	}
	if (family == 3 && n <= sizeof un->sun_path) {
		memset(un, 0, sizeof *un);
		un->sun_family = AF_UNIX;
		memcpy(un->sun_path, a.p, n);
		return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
	}
	return 0;
}

/* portd_connections_ reads CONNECTIONS. It returns how many there are, or -1; conns are filled in as far as they have descriptors. */
static int portd_connections_(portd_queue *q, portd_cursor *c, uint64_t *sequence, const int *fds, size_t n_fds,
			      portd_conn conns[PORTD_MAX])
{
	*sequence = portd_number_(c, 8);
	size_t n = (size_t)portd_number_(c, 1);
	portd_bytes_(c, 3);
	if (c->bad || n < 1 || n > PORTD_MAX || n_fds > n)
		return -1;
	for (size_t i = 0; i < n; i++) {
		portd_conn *k = &conns[i];
		portd_cursor e = portd_entry_(c);
		k->number = (uint32_t)portd_number_(&e, 4);
		k->accepted_ns = portd_number_(&e, 8);
		k->flags = (uint32_t)portd_number_(&e, 4);
		k->peer_len = portd_address_(&e, &k->peer);
		k->local_len = portd_address_(&e, &k->local);
		if (e.bad)
			return -1;
		k->fd = i < n_fds ? fds[i] : -1;
		k->queue = q;
		k->wish = k->endpoint = 0xffff;
		for (size_t j = 0; j < q->n_listeners; j++) {
			if (q->listeners[j].number == k->number) {
				k->wish = q->listeners[j].wish;
				k->endpoint = q->listeners[j].endpoint;
				break;
			}
		}
	}
	return (int)n;
}

static void portd_store_(portd_queue *q, size_t at, uint64_t v)
{
	if (q->page != NULL)
		atomic_store_explicit(&q->page[at], v, memory_order_release);
}

int portd_queue_fd(const portd_queue *q) { return q->fd; }

int portd_full(const portd_queue *q) { return q->full; }

/* portd_pop_ takes the message out, or only looks at it. 0: there is none; -1: the end. */
static ssize_t portd_pop_(portd_queue *q, int flags, int fds[PORTD_MAX], size_t *n_fds, int *truncated)
{
	ssize_t n = portd_receive_(q->fd, q->buf, flags, fds, n_fds, truncated);
	if (n < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
	return n == 0 ? -1 : n;
}

/* portd_sequence_ is the sequence of a CONNECTIONS message, 0 for others. */
static uint64_t portd_sequence_(const portd_queue *q, ssize_t n, size_t *count)
{
	portd_cursor c;
	unsigned flags;
	if (portd_message_(&c, q->buf, (size_t)n, &flags) != 16)
		return 0;
	uint64_t sequence = portd_number_(&c, 8);
	*count = (size_t)portd_number_(&c, 1);
	return sequence;
}

/* portd_fits_ says whether so many descriptors are free. */
static int portd_fits_(const portd_queue *q, size_t need)
{
	int fds[PORTD_MAX] = {0};
	size_t n = 0;
	while (n < need && n < PORTD_MAX && (fds[n] = fcntl(q->fd, F_DUPFD_CLOEXEC, 0)) >= 0)
		n++;
	portd_close_all_(fds, n);
	return n == need;
}

/* portd_near_ says whether to look before taking. The kernel gives out the lowest free descriptor: those of the last message tell
 * how many are in use, give or take what the program has opened and closed since. */
static int portd_near_(const portd_queue *q) { return q->limit - q->last < 2 * PORTD_MAX; }

/* portd_careful_ takes a message in the steps of "Near the limit of descriptors". full is set where it does not fit. */
static ssize_t portd_careful_(portd_queue *q, int fds[PORTD_MAX], size_t *n_fds)
{
	int held[PORTD_MAX], truncated = 0;
	size_t n_held = 0;
	ssize_t n = portd_pop_(q, MSG_PEEK, held, &n_held, &truncated);
	if (n <= 0)
		return n;
	uint64_t peeked = portd_sequence_(q, n, &q->need);
	if (truncated) {
		portd_close_all_(held, n_held);
		q->full = 1;
		return 0;
	}
	n = portd_pop_(q, 0, fds, n_fds, &truncated);
	if (n > 0 && peeked != 0 && portd_sequence_(q, n, &q->need) == peeked) {
		portd_close_all_(fds, *n_fds); /* there may be fewer: the limit again */
		memcpy(fds, held, n_held * sizeof *fds);
		*n_fds = n_held;
	} else {
		portd_close_all_(held, n_held);
	}
	return n;
}

int portd_take(portd_worker *w, portd_queue *q, portd_conn conns[PORTD_MAX])
{
	int fds[PORTD_MAX], truncated = 0, got = 0;
	size_t n_fds = 0;
	uint64_t sequence = 0;
	unsigned flags;
	portd_cursor c;
	if (q->full && !portd_fits_(q, q->need))
		return 0;
	q->full = 0;
	portd_store_(q, PORTD_TURN, ++q->turn);
	ssize_t n = portd_near_(q) ? portd_careful_(q, fds, &n_fds) : portd_pop_(q, 0, fds, &n_fds, &truncated);
	int type = n > 0 ? portd_message_(&c, q->buf, (size_t)n, &flags) : 0;
	if (type == 16) {
		got = portd_connections_(q, &c, &sequence, fds, n_fds, conns);
		if (got > 0) {
			q->received += (uint64_t)got;
			portd_store_(q, PORTD_SEQUENCE, sequence);
			portd_store_(q, PORTD_RECEIVED, q->received);
			q->last = n_fds > 0 && !truncated ? fds[n_fds - 1] : q->limit;
		}
	}
	portd_store_(q, PORTD_TURN, ++q->turn);
	if (n < 0)
		return -1;
	if (type < 0 || got < 0) {
		/* It makes no sense: portd sees that we end it, and gives us another. */
		portd_close_all_(fds, n_fds);
		shutdown(q->fd, SHUT_RD);
		return -1;
	}
	if (q->full && q == w->queue && w->control >= 0)
		portd_send_(w, 9, NULL);
	if (got == 0)
		portd_close_all_(fds, n_fds); /* none, or of a message that a later version has */
	atomic_fetch_add(&q->refs, (unsigned)got);
	for (; got > (int)n_fds; got--)
		portd_done(q); /* the kernel closed it */
	return got;
}

void portd_done(portd_queue *q)
{
	if (q->page != NULL)
		atomic_fetch_add(&q->page[PORTD_DONE], 1);
	portd_unref_(q);
}

void portd_close(portd_conn *c)
{
	close(c->fd);
	c->fd = -1;
	portd_done(c->queue);
}

#endif /* PORTD_IMPLEMENTATION */
#endif /* PORTD_H */
