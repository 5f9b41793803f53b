"""Take connections from portd: ordinary sockets, with the client's own address.

    for conn in portd.Listener("tcp/8080"):
        threading.Thread(target=serve, args=(conn,)).start()

A Listener stands where a listening socket would: it has fileno() and accept(), for selectors and
for socketserver, and serve() does for asyncio what start_server does. It attaches again by itself
when portd was away. docs/PROTOCOL.md has what goes over the wire. Nothing but the standard library
is needed, of Python 3.9 or later on Linux.
"""

import array
import collections
import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import random
import resource
import select
import socket
import struct
import threading
import time
import weakref

ATTACH, ATTACHED, SOCKETS, REFUSED, READY, DRAIN, DRAINED, LISTENER_GONE, GIVE_BACK = range(1, 10)
CONNECTIONS = 16
ALL = 0xFFFFFFFF
LATER = 8, 9, 13, 14  # refusals that may end: no room, not listening, internal error, stopping
MOST = 253  # descriptors in a message


class Refused(ConnectionRefusedError):
    """portd's own refusal. code is one of gRPC's; the text says what to do next."""

    def __init__(self, code, text):
        super().__init__(errno.ECONNREFUSED, text)
        self.code = code


class Malformed(ConnectionError):
    """What is there does not talk as portd does."""


class Connection(socket.socket):
    """A connection, from .peer, of the listener .name. Closing it tells portd of new room."""

    def _real_close(self):  # what close() comes to when no file made of it is open any more
        super()._real_close()
        self._done()


class Listener:
    """Connections of portd's listeners: reservations by id or name, or endpoints ("tcp/8080").

    path is portd's control socket; without it $PORTD_SOCKET, else the user's own portd, else the
    system's. With lend=True it is the sockets themselves that come: in .sockets, the caller's to
    close, and others after portd was away. With ready=False there are no connections before
    ready() asks for them. What portd refuses is Refused; without a portd it is another OSError.
    """

    def __init__(self, *references, path=None, ready=True, lend=False, weight=0, priority=0,
                 generation="", room=0):
        self.id, self.names, self.sockets = "", {}, []
        generation = generation or os.environ.get("PORTD_GENERATION", "")
        self._path, self._token, self._flags = path, b"", [1 if ready else 0] * len(references)
        self._wishes = references, 2 if lend else 1, weight, priority, generation, room
        self._why, self._blocking, self._rung = "", True, False
        self._gone, self._draining, self._drained = set(), set(), set()
        self._queues, self._pending = {}, collections.deque()
        self._lock = threading.RLock()
        self._epoll = select.epoll()
        # Always readable, and in the epoll set while accept has no need to wait.
        self._bell, writer = os.pipe()
        os.close(writer)
        weakref.finalize(self, os.close, self._bell)
        self._attach()
        threading.Thread(target=self._follow, name="portd", daemon=True).start()

    def accept(self):
        """Wait for a connection: it, and its peer's address. EOFError: no more will come."""
        while True:
            with self._lock:
                if not self._pending:
                    self._pending.extend(self.take())
                if self._pending:
                    conn = self._pending.popleft()
                    self._ring()
                    conn.settimeout(socket.getdefaulttimeout())
                    return conn, conn.peer
            if not self._blocking:
                raise BlockingIOError(errno.EAGAIN, "no connection")
            self._epoll.poll()

    def take(self):
        """Take one message: its connections, nonblocking, often none. EOFError as for accept."""
        with self._lock:
            for fd, _ in self._epoll.poll(0):
                queue = self._queues.get(fd)
                conns = queue.take() if queue else []
                if conns is None:
                    self._drop(queue)
                elif conns:
                    return conns
                elif queue and queue.need:  # not enough descriptors
                    self._say(GIVE_BACK)
                    self._epoll.modify(queue, 0)
                    self._later(queue)
            if self._why and not self._queues:
                raise EOFError(self._why)
            return []

    def __iter__(self):
        try:
            while True:
                yield self.accept()[0]
        except EOFError:
            return

    def fileno(self):
        """Readable when accept would not wait; the same one for as long as the Listener lives."""
        return self._epoll.fileno()

    def setblocking(self, flag):
        """Say whether accept waits, or raises BlockingIOError."""
        self._blocking = flag

    def ready(self):
        """Ask for connections."""
        with self._lock:
            self._stand(READY, ALL)

    def drain(self):
        """Ask for no more. accept goes on until all that were sent are taken; EOFError follows."""
        with self._lock:
            self._stand(DRAIN, ALL)

    def close(self):
        """Leave. What was not accepted goes to others; what was is not touched."""
        with self._lock:
            self._end("closed", drop=True)
            while self._pending:
                self._pending.pop().close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _attach(self):
        references, kind, weight, priority, generation, room = self._wishes
        tlvs = struct.pack("<HHH", 1, 2, weight) if weight else b""
        tlvs += struct.pack("<HHB", 2, 1, priority) if priority else b""
        body = struct.pack("<HHHHBxxx", 1, 1, room, len(references), len(self._token))
        body += self._token
        for text, flags in zip(map(str.encode, references), self._flags):
            length = 6 + len(text + tlvs)
            body += struct.pack("<HBBH", length, kind, flags, len(text)) + text + tlvs
        if generation:
            body += struct.pack("<HH", 1, len(generation.encode())) + generation.encode()
        control, path = _connect(self._path)
        fds = []
        try:
            control.send(_message(ATTACH, body))
            more, listeners = True, None
            while more:
                packet, got, cut = _receive(control)
                fds += got
                if cut:
                    raise OSError(errno.EMFILE, "too few descriptors")
                if not packet:
                    raise ConnectionResetError("portd went away")
                kind, flags, m = _parse(packet)
                if kind == REFUSED:
                    raise Refused(m.get("HH")[0], m.text())
                if kind == ATTACHED:
                    kept, (_, _, n, id_len, token_len) = flags & 1, m.get("HHHBB")
                    ident, token = m.take(id_len).decode(errors="replace"), m.take(token_len)
                    listeners = dict(_listener(m.entry()) for _ in range(n))
                if kind in (ATTACHED, SOCKETS) and listeners is not None:
                    more = flags & 2
                else:  # of a later version
                    _close(got)
                    del fds[len(fds) - len(got):]
            if not kept and len(fds) < 2:
                raise Malformed("no queue comes")
            names = {number: name for number, (_, name) in listeners.items()}
            queue = None if kept else _Queue(fds[0], fds[1], names)
            control.settimeout(None)
        except BaseException:
            _close(fds)
            control.close()
            raise
        with self._lock:
            if queue:
                os.close(fds[1])
                del fds[:2]
                self._queues[queue.fileno()] = queue
                self._epoll.register(queue, select.EPOLLIN)
            self.id, self.names, self._token, self._path = ident, names, token, path
            self._control = control
            self.sockets = list(filter(None, (_adopt(socket.socket, fd) for fd in fds)))
            self._wish_of = {number: wish for number, (wish, _) in listeners.items()
                             if wish < len(self._flags)}
            self._gone, self._draining, self._drained = set(), set(), set()
            for number, wish in self._wish_of.items():
                if self._flags[wish] == 2:  # drained before: now there is to be a DRAINED
                    self._stand(DRAIN, number)
            if self._why:  # somebody closed it meanwhile
                self._end(self._why, drop=True)

    def _follow(self):
        """Heed what portd says, in a thread of its own, and attach again after it was away."""
        while not self._why:
            try:
                self._heed(*_parse(_receive(self._control)[0]))
                continue
            except OSError:  # its end, or what makes no sense: begin anew
                self._control.close()
            if self._gone >= self.names.keys() or self._draining >= self.names.keys():
                self._end("released" if self._gone else "drained")
            wait = 0.01
            while not self._why and self._control.fileno() < 0:
                try:
                    self._attach()
                except OSError as e:
                    if isinstance(e, Refused) and e.code not in LATER:
                        self._end(str(e))
                    time.sleep(wait * random.uniform(0.5, 1.5))  # not all workers at once
                    wait = min(wait * 2, 1)
        self._control.close()

    def _heed(self, kind, _, m):
        with self._lock:
            number = m.get("I")[0] if kind in (DRAIN, DRAINED, LISTENER_GONE) else None
            if kind == DRAIN:
                # A READY may have crossed with it; this one is answered in any case.
                self._stand(DRAIN, number)
            elif kind == DRAINED and number in self._draining:  # else a READY crossed with it
                self._drained.add(number)
            elif kind == LISTENER_GONE:
                self._gone.add(number)
            if self._drained and self._drained | self._gone >= self.names.keys():
                # Nothing lies in the queue.
                self._end("drained", drop=True)

    def _stand(self, kind, number):
        numbers = set(self.names) if number == ALL else {number}
        self._drained -= numbers
        self._draining = self._draining | numbers if kind == DRAIN else self._draining - numbers
        for n in numbers & self._wish_of.keys():  # said again when portd was away
            self._flags[self._wish_of[n]] = 2 if kind == DRAIN else 1
        self._say(kind, number)

    def _say(self, kind, *number):
        try:
            message = _message(kind, struct.pack("<%dI" % len(number), *number))
            self._control.send(message, socket.MSG_DONTWAIT)
        except OSError:
            pass  # portd is away; the next ATTACH says it

    def _end(self, why, drop=False):
        with self._lock:
            self._why = self._why or why
            if self._control.fileno() >= 0:
                self._control.shutdown(socket.SHUT_RDWR)  # which the thread sees
            for queue in list(self._queues.values()) if drop else []:
                self._drop(queue)
            self._ring()

    def _drop(self, queue):
        del self._queues[queue.fileno()]
        self._epoll.unregister(queue)  # closing would not, as portd has a descriptor of it, too
        queue.close()
        self._ring()

    def _ring(self):
        with self._lock:
            ring = bool(self._pending or self._why and not self._queues)
            if ring and not self._rung:
                self._epoll.register(self._bell, select.EPOLLIN)
            elif self._rung and not ring:
                self._epoll.unregister(self._bell)
            self._rung = ring

    def _later(self, queue):
        """Look at a queue again when there are as many descriptors as it needed."""
        with self._lock:
            if self._queues.get(queue.fileno()) is not queue:
                return
            fds = []
            try:
                fds.extend(os.dup(queue.fileno()) for _ in range(queue.need))
                self._epoll.modify(queue, select.EPOLLIN)
            except OSError:
                timer = threading.Timer(0.02, self._later, (queue,))
                timer.daemon = True
                timer.start()
            finally:
                _close(fds)


class _Queue(socket.socket):
    """One queue of portd's, with the page that its connections are counted on."""

    def __init__(self, fd, page, names):
        count = _Count(page)
        super().__init__(fileno=fd)
        self.setblocking(False)  # as it is; but for Python's default timeout
        self._count, self._names, self.need = count, names, 0
        self._limit, self._last = resource.getrlimit(resource.RLIMIT_NOFILE)[0], fd

    def take(self):
        """Take one message: its connections; None at the end."""
        count, self.need = self._count, 0
        count.turn.value += 1
        try:
            near = 0 <= self._limit < self._last + 2 * MOST
            packet, fds, cut = self._careful() if near else _receive(self)
            if not packet:
                return None
            try:
                kind, _, m = _parse(packet)
                if kind != CONNECTIONS:
                    _close(fds)
                    return []
                sequence, n = m.get("QBxxx")
                entries = [_connection(m.entry()) for _ in range(n)]
                if len(fds) > n:
                    raise Malformed("more descriptors than connections")
            except Malformed:
                _close(fds)
                self.shutdown(socket.SHUT_RD)  # portd sees it, and gives us another queue
                return None
            count.sequence.value = sequence
            count.received.value += n
            self._last = self._limit if cut or not fds else fds[-1]
        except BlockingIOError:
            return []
        except OSError:
            return None
        finally:
            count.turn.value += 1
        for _ in range(n - len(fds)):
            count.done()  # the kernel closed it
        return list(filter(None, map(self._connection, fds, entries)))

    def _careful(self):
        """Take a message in the steps of "Near the limit of descriptors"."""
        packet, held, cut = _receive(self, socket.MSG_PEEK)
        if cut:
            _close(held)
            self.need = packet[16] if len(packet) > 16 else MOST
            raise BlockingIOError
        try:
            again, fds, cut = _receive(self)
        except BaseException:
            _close(held)
            raise
        if packet[:16] == again[:16]:  # type and sequence are in it
            _close(fds)
            return again, held, False
        _close(held)
        return again, fds, cut

    def _connection(self, fd, entry):
        number, flags, accepted, peer = entry
        conn = _adopt(Connection, fd)
        if not conn:
            return self._count.done()
        conn.setblocking(False)
        conn._done = weakref.finalize(conn, self._count.done)  # once: when closed, or forgotten
        conn._done.atexit = False
        conn.peer, conn.name = peer, self._names.get(number, "")
        conn.redelivered, conn.accepted = bool(flags & 1), accepted / 1e9
        return conn


class _Count:
    """The shared page. ctypes stores a number at once; struct.pack_into would not promise it."""

    def __init__(self, fd):
        try:
            page = mmap.mmap(fd, 4096)
        except ValueError as e:
            raise Malformed("page: %s" % e)
        self.turn, self.sequence, self.received, self._done = (
            ctypes.c_uint64.from_buffer(page, at) for at in (128, 136, 144, 192))
        self._numbers, self._lock, self._pid = itertools.count(1), threading.RLock(), os.getpid()

    def done(self):
        with self._lock:
            if os.getpid() == self._pid:  # a child's copy is not its
                self._done.value = next(self._numbers)


class _Cursor:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        if self.at > len(self.data):
            raise Malformed("a message that ends too early")
        return self.data[self.at - n:self.at]

    def get(self, fields):
        return struct.unpack("<" + fields, self.take(struct.calcsize("<" + fields)))

    def text(self):
        return self.take(*self.get("H")).decode(errors="replace")

    def entry(self):
        length, = self.get("H")
        if length < 2:
            raise Malformed("an entry shorter than its length")
        return _Cursor(self.take(length - 2))


def _message(kind, body):
    return struct.pack("<HHI", kind, 0, 8 + len(body)) + body


def _parse(packet):
    kind, flags, length = _Cursor(packet).get("HHI")
    if not 8 <= length <= len(packet):
        raise Malformed("a message longer than its packet")
    return kind, flags, _Cursor(packet[8:length])


def _listener(e):
    number, wish, _, _ = e.get("IHHI")
    e.text()
    return number, (wish, e.text())


def _connection(e):
    number, accepted, flags = e.get("IQI")
    family, n = e.get("BB")
    address, peer = e.take(n), ""
    if family == 1 and n >= 6:
        peer = socket.inet_ntop(socket.AF_INET, address[2:6]), *struct.unpack_from("<H", address)
    elif family == 2 and n >= 22:
        port, scope = struct.unpack_from("<HI", address)
        peer = socket.inet_ntop(socket.AF_INET6, address[6:22]), port, 0, scope
    elif family == 3:
        peer = address if address[:1] == b"\0" else os.fsdecode(address)
    return number, flags, accepted, peer


def _receive(sock, flags=0):
    """One packet, its descriptors, and whether some did not fit."""
    if sock.gettimeout() == 0:
        flags |= socket.MSG_DONTWAIT
    packet, control, got, _ = sock.recvmsg(65536, socket.CMSG_SPACE(4 * MOST),
                                           flags | socket.MSG_CMSG_CLOEXEC)
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
    places = [path]
    if not path:
        home = [os.environ.get("XDG_RUNTIME_DIR", ""), os.environ.get("XDG_STATE_HOME", ""),
                os.path.join(os.environ.get("HOME", ""), ".local/state")]
        own = [d for d in home if d.startswith("/") and os.geteuid() != 0]
        places = [d + "/portd/portd.sock" for d in own + ["/run"]]
    for place in places:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            control.settimeout(5)
            control.connect(os.path.join(os.path.dirname(place), "handoff.sock"))
            peer = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            _, uid, _ = struct.unpack("iII", peer)
            if uid not in (0, os.geteuid()):
                raise PermissionError(errno.EPERM, "this is the program of another user", place)
            return control, place
        except OSError as e:
            control.close()
            nobody = e.errno in (errno.ENOENT, errno.ECONNREFUSED)
            if place == places[-1] or not nobody:
                raise


async def serve(listener, handler):
    """Call handler(reader, writer) for each connection, as asyncio.start_server does.

    It returns when no more will come and all are served.
    """
    import asyncio
    loop, ended, serving = asyncio.get_running_loop(), asyncio.Event(), set()

    async def one(conn):
        reader = asyncio.StreamReader()
        transport, protocol = await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader), conn)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        await handler(reader, writer)
        if writer.is_closing():
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def readable():
        try:
            for conn in listener.take():
                task = loop.create_task(one(conn))
                serving.add(task)
                task.add_done_callback(serving.discard)
        except EOFError:
            ended.set()

    loop.add_reader(listener, readable)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(listener)
    if serving:
        await asyncio.wait(serving)
