"""Take connections from portd: ordinary sockets, with the client's own address.

    for conn in portd.Listener("tcp/8080"):
        threading.Thread(target=serve, args=(conn,)).start()

No thread and no other machinery is behind it: whoever calls accept or take heeds what portd says,
and attaches again when portd was away. docs/PROTOCOL.md has what goes over the wire. Nothing but
the standard library is needed, of Python 3.9 or later on Linux.
"""

import array
import collections
import contextlib
import errno
import mmap
import os
import random
import select
import socket
import struct
import threading
import time
import weakref

ATTACH, ATTACHED, SOCKETS, REFUSED, READY, DRAIN, DRAINED, LISTENER_GONE, GIVE_BACK = range(1, 10)
CONNECTIONS = 16
LATER = 8, 9, 13, 14  # refusals that may end: no room, not listening, internal error, stopping
TURN, SEQUENCE, RECEIVED, DONE = 16, 17, 18, 24  # the worker's numbers in the page


class Refused(ConnectionRefusedError):
    """portd's own refusal. code is one of gRPC's; the text says what to do next."""

    def __init__(self, code, text):
        super().__init__(errno.ECONNREFUSED, text)
        self.code = code


class Connection(socket.socket):
    """A connection, from .peer. Closing it tells portd of new room."""

    _done = bool  # of a duplicate: does nothing

    def close(self):
        super().close()
        if self.fileno() < 0:  # else a file made of it is open, which comes here again
            self._done()


class Listener:
    """Connections of a reservation, by its id or name, or of an endpoint ("tcp/8080").

    Any thread may call it, and a signal's handler drain(). path is portd's control socket; without
    it $PORTD_SOCKET, else the user's own portd, else the system's. With lend=True it is the sockets
    themselves that come: in .sockets, the caller's to close, and others when take has attached
    again. What portd refuses is Refused; without a portd it is another OSError.
    """

    def __init__(self, reference, path=None, lend=False, generation=""):
        generation = generation or os.environ.get("PORTD_GENERATION", "")
        self._wish = reference.encode(), 2 if lend else 1, generation.encode()
        self._path, self._word = path, {}  # the last word on each listener, by its number
        self._queues, self._full, self._pending, self._why = {}, set(), collections.deque(), ""
        self._lock, self._epoll = threading.RLock(), select.epoll()
        self._attach()

    def accept(self):
        """Wait for a connection: it, and its peer's address. EOFError: no more will come."""
        with self._lock:
            while not self._pending:
                self._pending.extend(self.take())
            conn = self._pending.popleft()
        conn.settimeout(socket.getdefaulttimeout())
        return conn, conn.peer

    def __iter__(self):
        with contextlib.suppress(EOFError):
            while True:
                yield self.accept()[0]

    def fileno(self):
        """Readable when take is to be called. It is also to be called a few times a second."""
        return self._epoll.fileno()

    def take(self, timeout=None):
        """Wait at most so many seconds: connections, nonblocking, or none. EOFError as above."""
        with self._lock:
            if self._away() and not self._why and time.monotonic() >= self._next:
                self._attach_again()
            if self._why and not self._queues:
                raise EOFError(self._why)
            if timeout != 0 and (self._full or self._away()):
                timeout = 0.02
            conns, events = [], self._epoll.poll(timeout)
            if self._full:
                with contextlib.suppress(OSError):  # there is no descriptor yet
                    os.close(os.dup(self.fileno()))
                    while self._full:
                        self._epoll.register(self._full.pop(), select.EPOLLIN)
            for fd, _ in events:
                queue = self._queues.get(fd)
                try:
                    if queue:
                        conns += queue.take()
                    elif fd == self._control.fileno():
                        self._heed(*_parse(self._control.recv(65536)))
                except BlockingIOError:
                    pass
                except OSError as e:
                    if e.errno == errno.EMFILE:  # others may have it; we look again, not at once
                        self._say(GIVE_BACK)
                        self._epoll.unregister(queue)
                        self._full.add(queue)
                    else:  # its end, or what makes no sense
                        self._drop(queue) if queue else self._hang_up()
            return conns

    def drain(self):
        """Ask for no more. accept goes on until all that were sent are taken; EOFError follows."""
        for number in list(self._word):
            self._drain(number)

    def close(self):
        """Leave. What was not accepted goes to others; what was is not touched."""
        self._why = self._why or "closed"
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # wakes an accept, which has the lock
        with self._lock:
            self._leave()
            while self._pending:
                self._pending.pop().close()

    def _attach(self):
        text, kind, generation = self._wish
        body = struct.pack("<HHHHL", 1, 1, 0, 1, 0)  # no resume token: the queue is a new one
        body += struct.pack("<HBBH", 6 + len(text), kind, 1, len(text)) + text
        body += struct.pack("<HH", 1, len(generation)) + generation if generation else b""
        control, path = _connect(self._path)
        fds, numbers, more = [], [], True
        try:
            control.send(_message(ATTACH, body))
            while more:
                packet, got, cut = _receive(control)
                fds += got
                kind, flags, m = _parse(packet)
                if cut:
                    raise OSError(errno.EMFILE, "too few descriptors")
                if kind == REFUSED:
                    code, _, length = m.get("HHH")
                    raise Refused(code, m.take(length).decode(errors="replace"))
                if kind == ATTACHED:
                    _, _, n, id_len, token_len = m.get("HHHBB")
                    m.take(id_len + token_len)
                    numbers = [m.entry().get("I")[0] for _ in range(n)]
                if kind == ATTACHED or kind == SOCKETS and numbers:
                    more = flags & 2
                else:  # of a later version
                    _close([fds.pop() for _ in got])
            if len(fds) < 2:
                raise ConnectionError("no queue comes")
            queue = _Queue(*fds[:2])
            os.close(fds[1])
            del fds[:2]
        except BaseException:
            _close(fds)
            control.close()
            raise
        self._control, self._path = control, path
        self._queues[queue.fileno()] = queue  # beside an old one, which is read to its end
        self._epoll.register(queue, select.EPOLLIN)
        self._epoll.register(control, select.EPOLLIN)
        self.sockets = [s for s in (_adopt(socket.socket, fd) for fd in fds) if s]
        before, self._word = self._word, dict.fromkeys(numbers, READY)
        if before and READY not in before.values():  # drain was called meanwhile
            self.drain()

    def _attach_again(self):
        try:
            if READY in self._word.values():
                return self._attach()
            self._why = "drained, or released"
        except OSError as e:
            if isinstance(e, Refused) and e.code not in LATER:
                self._why = str(e)
            self._wait = min(self._wait * 2, 1)  # spread by chance: not all workers at once
            self._next = time.monotonic() + self._wait * random.uniform(0.5, 1.5)

    def _away(self):
        return self._control.fileno() < 0

    def _heed(self, kind, _, m):
        if kind not in (DRAIN, DRAINED, LISTENER_GONE):
            return
        number, = m.get("I")
        if kind == DRAIN:
            for n in [n for n in self._word if number in (n, 0xFFFFFFFF)]:
                self._drain(n)
        elif self._word.get(number) == DRAIN or kind == LISTENER_GONE:
            self._word[number] = kind
        words = set(self._word.values())
        if DRAINED in words and words <= {DRAINED, LISTENER_GONE}:
            self._why = "drained"
            self._leave()  # nothing lies in the queue

    def _drain(self, number):
        if self._word.get(number) == READY:
            self._word[number] = DRAIN
            self._say(DRAIN, number)

    def _say(self, kind, *number):
        with contextlib.suppress(OSError):  # portd is away
            body = struct.pack("<%dI" % len(number), *number)
            self._control.send(_message(kind, body), socket.MSG_DONTWAIT)

    def _hang_up(self):
        if not self._away():
            self._epoll.unregister(self._control)
            self._control.close()
        self._wait, self._next = 0.005, 0

    def _leave(self):
        self._hang_up()
        for queue in list(self._queues.values()):
            self._drop(queue)

    def _drop(self, queue):
        del self._queues[queue.fileno()]
        if queue in self._full:
            self._full.remove(queue)
        else:
            self._epoll.unregister(queue)  # closing would not: portd has a descriptor of it, too
        queue.close()


class _Queue(socket.socket):
    """One queue of portd's, with the page that its connections are counted on."""

    def __init__(self, fd, page):
        try:
            self.page = memoryview(mmap.mmap(page, 4096)).cast("Q")
        except ValueError as e:
            raise ConnectionError("page: %s" % e)
        super().__init__(fileno=fd)
        self.setblocking(False)  # as it is; but for Python's default timeout
        self.lock, self.pid = threading.RLock(), os.getpid()

    def take(self):
        """Take one message: its connections. ConnectionError: the end; EMFILE: it stays there."""
        spare, peers = [], []
        self.page[TURN] += 1
        try:
            # In the steps of "Near the limit of descriptors", always: a look costs Python little.
            seen, spare, cut = _receive(self, socket.MSG_PEEK)
            if cut:
                raise OSError(errno.EMFILE, "too few descriptors")
            packet, fds, _ = _receive(self)
            if packet[:16] == seen[:16]:  # type and sequence are in it
                fds, spare = spare, fds
            try:
                kind, _, m = _parse(packet)
                if kind == CONNECTIONS:
                    self.page[SEQUENCE], n = m.get("QBxxx")
                    self.page[RECEIVED] += n
                    peers = [_peer(m.entry()) for _ in range(n)]
            except ConnectionError:
                self.shutdown(socket.SHUT_RD)  # portd sees it, and ends the attachment
                raise
            finally:
                spare += fds[len(peers):]
        finally:
            _close(spare)
            self.page[TURN] += 1
        for _ in peers[len(fds):]:
            self.done()  # the kernel closed it
        return [c for c in map(self.connection, fds, peers) if c]

    def connection(self, fd, peer):
        conn = _adopt(Connection, fd)
        if not conn:
            return self.done()
        conn.setblocking(False)
        conn.peer = peer
        conn._done = weakref.finalize(conn, self.done)  # once: when closed, or forgotten
        conn._done.atexit = False
        return conn

    def done(self):
        with self.lock:
            if os.getpid() == self.pid:  # a child closes only its copy
                self.page[DONE] += 1


class _Cursor:
    def __init__(self, data):
        self.data = data

    def take(self, n):
        if n > len(self.data):
            raise ConnectionError("a message that ends too early")
        taken, self.data = self.data[:n], self.data[n:]
        return taken

    def get(self, fields):
        return struct.unpack("<" + fields, self.take(struct.calcsize("<" + fields)))

    def entry(self):
        length, = self.get("H")
        return _Cursor(self.take(max(length, 2) - 2))


def _message(kind, body):
    return struct.pack("<HHI", kind, 0, 8 + len(body)) + body


def _parse(packet):
    kind, flags, length = _Cursor(packet).get("HHI")
    if not 8 <= length <= len(packet):
        raise ConnectionError("a message longer than its packet")
    return kind, flags, _Cursor(packet[8:length])


def _peer(e):
    """The peer of a connection's entry, as accept tells it."""
    _, _, _, family, n = e.get("IQIBB")
    address = e.take(n)
    if family == 1 and n >= 6:
        return socket.inet_ntop(socket.AF_INET, address[2:6]), *struct.unpack_from("<H", address)
    if family == 2 and n >= 22:
        port, scope = struct.unpack_from("<HI", address)
        return socket.inet_ntop(socket.AF_INET6, address[6:22]), port, 0, scope
    return "" if family != 3 else address if address[:1] == b"\0" else os.fsdecode(address)


def _receive(sock, flags=0):
    """One packet, its descriptors, and whether some did not fit."""
    packet, control, got, _ = sock.recvmsg(65536, socket.CMSG_SPACE(4 * 253),
                                           flags | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[:len(data) // 4 * 4])
    return packet, list(fds), bool(got & socket.MSG_CTRUNC)


def _adopt(kind, fd):
    """A socket of fd, or None, and fd is closed, where it is something else."""
    try:
        return kind(fileno=fd)
    except OSError:
        os.close(fd)


def _close(fds):
    for fd in fds:
        os.close(fd)


def _connect(path):
    """Connect to the hand-off socket beside a control socket, and ask the kernel whose it is."""
    path = path or os.environ.get("PORTD_SOCKET")
    home = [os.environ.get("XDG_RUNTIME_DIR", ""), os.environ.get("XDG_STATE_HOME", ""),
            os.path.join(os.environ.get("HOME", ""), ".local/state")]
    own = [d for d in home if d.startswith("/") and os.geteuid() != 0]
    places = [path] if path else [d + "/portd/portd.sock" for d in own + ["/run"]]
    for place in places:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            control.settimeout(5)
            control.connect(os.path.join(os.path.dirname(place), "handoff.sock"))
            peer = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("iII", peer)[1] not in (0, os.geteuid()):
                raise PermissionError(errno.EPERM, "this is the program of another user", place)
            return control, place
        except OSError as e:
            control.close()
            if place == places[-1] or e.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                raise
