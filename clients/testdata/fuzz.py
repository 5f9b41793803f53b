"""Says to the Python worker what no portd would.

They are mutations of the messages on standard input, a line of hexadecimal digits each. It must
raise nothing but what it is documented to, and keep no descriptor. fuzz.py SEED ROUNDS
"""

import faulthandler
import gc
import os
import random
import socket
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "python"))
import portd  # noqa: E402


def mutate(rnd, seeds):
    m = bytearray(rnd.choice(seeds))
    for _ in range(rnd.randrange(6)):
        m[rnd.randrange(len(m))] = rnd.choice((rnd.randrange(256), 0, 1, 2, 0x7f, 0x80, 0xff))
    if rnd.randrange(4) == 0:
        del m[rnd.randrange(len(m)):]
    elif rnd.randrange(4) == 0:
        m += rnd.randbytes(rnd.randrange(300))
    if len(m) >= 8 and rnd.randrange(2):
        struct.pack_into("<I", m, 4, len(m))
    return bytes(m) or b"\0"


def main():
    faulthandler.dump_traceback_later(60, exit=True)
    rnd = random.Random(int(sys.argv[1]))
    seeds = [bytes.fromhex(line) for line in sys.stdin]
    page = os.memfd_create("page")
    os.ftruncate(page, 4096)
    spare = socket.socket()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(int(sys.argv[2])):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for _ in range(1 + rnd.randrange(3)):
            fds = [rnd.choice((page, spare.fileno())) for _ in range(rnd.randrange(5))]
            if fds:
                socket.send_fds(ours, [mutate(rnd, seeds)], fds)
            else:
                ours.send(mutate(rnd, seeds))
        ours.close()
        if rnd.randrange(2):
            theirs.settimeout(5)
            portd._connect = lambda _: (theirs, "")
            try:
                listener = portd.Listener("tcp/8080")
            except OSError:
                continue
            portd._connect = lambda _: (_ for _ in ()).throw(portd.Refused(5, "no more"))
            for _ in range(5):
                try:
                    for conn in listener.take(0):
                        conn.close()
                except EOFError:
                    break
            for sock in listener.sockets:
                sock.close()
            listener.close()
        else:
            with portd._Queue(theirs.detach(), page) as queue:
                for _ in range(5):
                    try:
                        for conn in queue.take():
                            conn.close()
                    except OSError:
                        break
    del theirs
    listener = queue = None
    gc.collect()
    after = len(os.listdir("/proc/self/fd"))
    spare.close()
    assert before == after, (before, after)


if __name__ == "__main__":
    main()
