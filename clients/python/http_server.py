"""The files of this directory over HTTP, by http.server, on a port of portd's.

python3 http_server.py tcp/8080
"""

import argparse
import http.server
import signal

import portd


class Server(http.server.ThreadingHTTPServer):
    """A socketserver whose connections are accepted elsewhere."""

    daemon_threads = False  # so that server_close waits for who is still being served

    def __init__(self, handler):
        super().__init__(("", 0), handler, bind_and_activate=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", help="portd's control socket")
    parser.add_argument("reservation")
    args = parser.parse_args()
    listener = portd.Listener(args.reservation, path=args.socket)
    signal.signal(signal.SIGTERM, lambda *_: listener.drain())
    with Server(http.server.SimpleHTTPRequestHandler) as server:
        for conn in listener:
            server.process_request(conn, conn.peer)


if __name__ == "__main__":
    main()
