"""What a client sends goes back to it, by asyncio, on a port of portd's.

python3 asyncio_echo.py tcp/8080
"""

import argparse
import asyncio
import signal

import portd


async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", help="portd's control socket")
    parser.add_argument("reservation", nargs="+")
    args = parser.parse_args()
    listener = portd.Listener(*args.reservation, path=args.socket)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, listener.drain)
    await portd.serve(listener, echo)


if __name__ == "__main__":
    asyncio.run(main())
