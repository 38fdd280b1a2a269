"""A peer in a process of its own that opens or takes one stream and then does nothing until it is killed.

peer.py <transport>            listen, print the address, take the stream and read one frame
peer.py <transport> <address>  connect, send one control frame, print a line
"""

from __future__ import annotations

import asyncio
import sys

from kv_transfer.frames import Kind, control_frame
from kv_transfer.staging import StagingPool
from kv_transfer.transport import Incoming
from tests.kv_transfer.contract.transports import TOKEN, TRANSPORTS, WAIT_S


async def _run(name: str, address: str | None) -> None:
    transport = TRANSPORTS[name].make(TOKEN, StagingPool(1 << 20))
    forever = asyncio.Event()

    async def serve(stream: Incoming) -> None:
        await stream.payload(await stream.header())
        await stream.write(control_frame(Kind.GRANT))
        await forever.wait()

    if address is None:
        print(await transport.listen("127.0.0.1", serve), flush=True)
    else:
        stream = await transport.connect(address, WAIT_S)
        await stream.write(control_frame(Kind.OFFER))
        print("sent", flush=True)
    await forever.wait()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
