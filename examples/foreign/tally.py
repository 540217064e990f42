"""Counts in a vat's counter, wherever that vat is. Reads the reference from standard input."""

import asyncio
import sys

import capnp

bridge_capnp = capnp.load("schemas/bridge.capnp")
objects_capnp = capnp.load("schemas/objects.capnp")


async def main(socket, reference):
    stream = await capnp.AsyncIoStream.create_unix_connection(socket)
    bridge = capnp.TwoPartyClient(stream).bootstrap().cast_as(bridge_capnp.Bridge)

    # Nothing is waited for until the answer is needed: connecting and adding go out together.
    counter = bridge.connect(reference).object.cast_as(objects_capnp.Counter)
    print("total:", (await counter.add(by=3)).total)

    try:
        await counter.add(by=2**64 - 1)
    except capnp.KjException as error:
        print("refused:", error.description.removeprefix("remote exception: "))


asyncio.run(capnp.run(main(sys.argv[1], sys.stdin.read().strip())))
