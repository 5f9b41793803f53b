/* An echo over UDP on a socket that portd lends. lent SOCKET ENDPOINT */
#define PORTD_IMPLEMENTATION
#include "portd.h"

int main(int argc, char **argv)
{
	portd_worker w;
	portd_wish wish = {argc > 2 ? argv[2] : "", PORTD_SOCKET, PORTD_READY, 0, 0};
	portd_config config = {.socket = argv[1], .wishes = &wish, .n_wishes = 1};
	char buf[2048];
	if (portd_attach(&w, &config) != 0 || w.n_listeners != 1 || w.listeners[0].n_sockets != 1) {
		fprintf(stderr, "lent: %s\n", w.error);
		return 1;
	}
	puts("ready");
	fflush(stdout);
	for (struct pollfd p = {w.listeners[0].sockets[0], POLLIN, 0}; poll(&p, 1, -1) > 0;) {
		struct sockaddr_storage from;
		socklen_t len = sizeof from;
		ssize_t n = recvfrom(p.fd, buf, sizeof buf, 0, (struct sockaddr *)&from, &len);
		if (n >= 0)
			sendto(p.fd, buf, (size_t)n, 0, (struct sockaddr *)&from, len);
	}
	return 0;
}
