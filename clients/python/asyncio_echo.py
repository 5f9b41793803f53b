"""What a client sends goes back to it, by asyncio, on a port of portd's.

python3 asyncio_echo.py tcp/8080
"""

import argparse
import asyncio
import contextlib
import signal

import portd


async def serve(listener, handler):
    """Call handler(reader, writer) for each connection, as asyncio.start_server does.

    It returns when no more will come and all are served.
    """
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

    def take():
        try:
            for conn in listener.take(0):
                task = loop.create_task(one(conn))
                serving.add(task)
                task.add_done_callback(serving.discard)
        except EOFError:
            ended.set()

    loop.add_reader(listener, take)
    try:
        while not ended.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ended.wait(), 0.1)
            take()  # also when nothing is to be read: portd may be away
    finally:
        loop.remove_reader(listener)
    if serving:
        await asyncio.wait(serving)


async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main(listener):
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, listener.drain)
    await serve(listener, echo)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", help="portd's control socket")
    parser.add_argument("reservation")
    args = parser.parse_args()
    asyncio.run(main(portd.Listener(args.reservation, path=args.socket)))
