/* direct is an echo server on a listening socket of its own: what portd is measured against. It prints its port. */
#include "echo.h"
#include <arpa/inet.h>

static void take(int listener)
{
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return;
		watch(fd);
	}
}

int main(void)
{
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof addr;
	if (listener < 0 || bind(listener, (struct sockaddr *)&addr, size) < 0 || listen(listener, 4096) < 0 ||
	    getsockname(listener, (struct sockaddr *)&addr, &size) < 0)
		die("listen");
	printf("ready %d\n", ntohs(addr.sin_port));
	fflush(stdout);
	serve(listener, take);
}
