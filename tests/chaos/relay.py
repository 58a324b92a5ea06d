"""`python relay.py LISTEN PORT TO PORT LEAST_MS MOST_MS`: passes bytes on, each piece late by a random time.

What netem does to packets, for kernels without it: order is kept, connections and data are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys


async def main() -> None:
    listen, port, to, to_port, least, most = sys.argv[1], *sys.argv[2:3], sys.argv[3], *sys.argv[4:]
    late_s = float(least) / 1000, float(most) / 1000

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                await asyncio.sleep(random.uniform(*late_s))
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(random.uniform(*late_s))
        to_reader, to_writer = await asyncio.open_connection(to, int(to_port))
        await asyncio.gather(pass_on(reader, to_writer), pass_on(to_reader, writer))

    async with await asyncio.start_server(serve, listen, int(port)) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
