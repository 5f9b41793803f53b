/* worker is an echo server whose connections come from portd: worker HANDOFF_SOCKET REFERENCE. See docs/PROTOCOL.md. */
#include "echo.h"
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/un.h>

static uint64_t *page;

/* receive takes one message and its descriptors. */
static ssize_t receive(int from, char *buf, size_t size, int *fds, int *count)
{
	char control[CMSG_SPACE(253 * sizeof(int))];
	struct iovec iov = {buf, size};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	ssize_t n = recvmsg(from, &m, MSG_CMSG_CLOEXEC);
	*count = 0;
	if (n <= 0)
		return n;
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_type == SCM_RIGHTS) {
		*count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(c), *count * sizeof(int));
	}
	return n;
}

static void take(int queue)
{
	char buf[1200];
	int fds[253], n;
	__atomic_add_fetch(&page[16], 1, __ATOMIC_RELEASE); /* turn */
	ssize_t got = receive(queue, buf, sizeof buf, fds, &n);
	if (got == 0)
		exit(0); /* portd is gone */
	if (got > 0) {
		memcpy(&page[17], buf + 8, 8); /* the sequence */
		page[18] += n;
	}
	__atomic_add_fetch(&page[16], 1, __ATOMIC_RELEASE);
	for (int i = 0; i < n; i++)
		watch(fds[i]);
	__atomic_add_fetch(&page[24], n, __ATOMIC_RELEASE); /* an echo server is as good as done with them */
}

int main(int argc, char **argv)
{
	if (argc != 3 || strlen(argv[2]) > 255)
		return 2;
	int portd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	strncpy(addr.sun_path, argv[1], sizeof addr.sun_path - 1);
	if (portd < 0 || connect(portd, (struct sockaddr *)&addr, sizeof addr) < 0)
		die("connect");
	uint8_t ref = strlen(argv[2]);
	char attach[300] = {1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1};
	uint32_t size = 26 + ref;
	uint16_t entry = 6 + ref, text = ref;
	memcpy(attach + 4, &size, 4);
	memcpy(attach + 20, &entry, 2);
	memcpy(attach + 24, &text, 2);
	memcpy(attach + 26, argv[2], ref);
	char answered[4096];
	int fds[253], n;
	if (send(portd, attach, size, 0) < 0 || receive(portd, answered, sizeof answered, fds, &n) < 8 || answered[0] != 2 || n != 2) {
		fprintf(stderr, "worker: portd refuses: %.200s\n", answered + 14);
		return 1;
	}
	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
	if (page == MAP_FAILED)
		die("mmap");
	printf("ready\n");
	fflush(stdout);
	serve(fds[0], take);
}
