"""An echo that writes down whom it received."""

import argparse
import asyncio
import os
import signal
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "python"))
import asyncio_echo  # noqa: E402
import portd  # noqa: E402


def echo(conn):
    with conn:
        try:
            while data := conn.recv(65536):
                conn.sendall(data)
        except ConnectionError:
            pass


class Logged(portd.Listener):
    def take(self, timeout=None):
        conns = super().take(timeout)
        os.write(1, b"".join(b"%d\n" % conn.peer[1] for conn in conns))
        return conns


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket")
    parser.add_argument("--log", action="store_true")
    parser.add_argument("--asyncio", action="store_true")
    parser.add_argument("--lend", action="store_true")
    parser.add_argument("--generation", default="")
    parser.add_argument("reservation")
    args = parser.parse_args()
    kind = Logged if args.log else portd.Listener
    listener = kind(args.reservation, path=args.socket, lend=args.lend, generation=args.generation)
    if args.lend:
        sock, = listener.sockets
        sock.setblocking(True)
        assert sock.type == socket.SOCK_DGRAM
        print("ready", flush=True)
        while True:
            data, peer = sock.recvfrom(65536)
            sock.sendto(data, peer)
    if args.asyncio:
        asyncio.run(asyncio_echo.main(listener))
        return
    signal.signal(signal.SIGTERM, lambda *_: listener.drain())
    threads = []
    for conn in listener:
        threads = [t for t in threads if t.is_alive()]
        threads.append(threading.Thread(target=echo, args=(conn,)))
        threads[-1].start()
    for t in threads:
        t.join()


if __name__ == "__main__":
    main()
