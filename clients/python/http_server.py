"""The files of this directory over HTTP, by http.server, on a port of portd's.

python3 http_server.py tcp/8080
"""

import argparse
import http.server
import signal
import sys

import portd


class Server(http.server.ThreadingHTTPServer):
    """A socketserver on a portd.Listener.

    serve_forever ends by EOFError when no more connections will come.
    """

    daemon_threads = False  # so that server_close waits for who is still being served

    def __init__(self, listener, handler):
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        listener.setblocking(False)
        self.socket = listener


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", help="portd's control socket")
    parser.add_argument("reservation", nargs="+")
    args = parser.parse_args()
    listener = portd.Listener(*args.reservation, path=args.socket)
    signal.signal(signal.SIGTERM, lambda *_: listener.drain())
    with Server(listener, http.server.SimpleHTTPRequestHandler) as server:
        try:
            server.serve_forever()
        except EOFError as e:
            print("http_server:", e, file=sys.stderr)


if __name__ == "__main__":
    main()
