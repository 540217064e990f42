"""What a Python program does with vats, with pycapnp from PyPI and the schemas of this repository.

Each line that it prints is one thing that worked; tests/foreign.rs compares them.

    client.py SCHEMAS bridge PATH                  through a bridge
    client.py SCHEMAS obey PATH                    the same, doing what each line says: `connect` to the one reference
                                                   that is read first, or `add` to what was connected to
    client.py SCHEMAS tls HOST PORT FILE           through a vat's TLS port, whose certificate is in FILE

References are read from standard input, one a line: those of a counter, a directory and a poll, and one that was
revoked. They are secrets, so they are no arguments.
"""

import asyncio
import itertools
import os
import ssl
import sys

import capnp

schemas = sys.argv[1]
bridge_capnp = capnp.load(os.path.join(schemas, "bridge.capnp"))
objects_capnp = capnp.load(os.path.join(schemas, "objects.capnp"))
poll_capnp = capnp.load(os.path.join(schemas, "poll.capnp"))
vat_capnp = capnp.load(os.path.join(schemas, "vat.capnp"))


def read_references():
    return [sys.stdin.readline().strip() for _ in range(4)]


def say(what, outcome):
    print(f"{what}: {outcome}", flush=True)


def code_of(error):
    """The stable code in the reason of an exception."""
    for part in error.description.split(":"):
        if "." in part and " " not in part.strip():
            return part.strip()
    return f"no code in {error.description}"


async def code_of_failing(promise):
    try:
        await promise
    except capnp.KjException as error:
        return code_of(error)
    return "no failure"


class Listener(poll_capnp.Poll.Listener.Server):
    """Hears a poll read out, and fails at the choice that it does not like."""

    def __init__(self, refused=None):
        self.heard = []
        self.refused = refused

    async def choice(self, choice, **_):
        if choice.name == self.refused:
            raise RuntimeError("not this one")
        self.heard.append(f"{choice.name} {choice.votes}")


async def order(counter):
    """A hundred calls without waiting for any: the totals tell whether they were carried out in order."""
    before = (await counter.add(0)).total
    answers = await asyncio.gather(*[counter.add(by) for by in range(1, 101)])
    expected = list(itertools.accumulate(range(1, 101), initial=before))[1:]
    in_order = [answer.total for answer in answers] == expected
    say("a hundred calls", "in order" if in_order else "out of order")


async def callback(poll):
    for choice in ["soup", "salad", "soup"]:
        await poll.vote(choice)
    listener = Listener()
    choices = (await poll.readOut(listener)).choices
    say("heard", f"{', '.join(listener.heard)} ({choices})")

    partly = Listener(refused="soup")
    try:
        await poll.readOut(partly)
        say("heard until it refused", f"{', '.join(partly.heard)}, and nobody noticed")
    except capnp.KjException:
        say("heard until it refused", f"{', '.join(partly.heard)}, then the call failed")


async def through_bridge(path):
    counter_uri, directory_uri, poll_uri, revoked_uri = read_references()
    stream = await capnp.AsyncIoStream.create_unix_connection(path)
    bridge = capnp.TwoPartyClient(stream).bootstrap().cast_as(bridge_capnp.Bridge)

    def object_of(uri, interface):
        return bridge.connect(uri).object.cast_as(interface)

    # Called before it has been reached.
    counter = object_of(counter_uri, objects_capnp.Counter)
    say("pipelined", (await counter.add(5)).total)
    await order(counter)
    # What is called on the answer to a call.
    directory = object_of(directory_uri, objects_capnp.Directory)
    made = directory.make("made from Python", "counter").object.cast_as(objects_capnp.Counter)
    say("made and called", (await made.add(7)).total)
    await callback(object_of(poll_uri, poll_capnp.Poll))
    say("too much", await code_of_failing(counter.add(2**64 - 1)))

    say("revoked", await code_of_failing(object_of(revoked_uri, objects_capnp.Counter).add(1)))
    say("mistyped", await code_of_failing(object_of(counter_uri + "y", objects_capnp.Counter).add(1)))
    vat = bridge.vat(counter_uri.split("#")[0]).vat
    say("guessed", await code_of_failing(vat.restore(b"x" * 32)))


async def obey(path):
    uri = sys.stdin.readline().strip()
    stream = await capnp.AsyncIoStream.create_unix_connection(path)
    bridge = capnp.TwoPartyClient(stream).bootstrap().cast_as(bridge_capnp.Bridge)
    counter = None
    loop = asyncio.get_running_loop()
    while order := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        try:
            if order == "connect":
                counter = (await bridge.connect(uri)).object.as_interface(objects_capnp.Counter)
                say(order, "done")
            else:
                say(order, (await counter.add(1)).total)
        except capnp.KjException as error:
            say(order, f"{error.type} {code_of(error)}")


async def through_tls(host, port, certificate):
    counter_uri, _, _, revoked_uri = read_references()
    # The certificate is the only one that is trusted, and says `capnp`, whatever the host is.
    context = ssl.create_default_context(cafile=certificate)
    # What later versions of Python do by themselves.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    stream = await capnp.AsyncIoStream.create_connection(
        host=host, port=port, ssl=context, server_hostname="capnp"
    )
    vat = capnp.TwoPartyClient(stream).bootstrap().cast_as(vat_capnp.Vat)

    def object_of(secret):
        return vat.restore(secret).capability.cast_as(objects_capnp.Counter)

    counter = object_of(secret_of(counter_uri))
    say("pipelined", (await counter.add(5)).total)
    await order(counter)
    say("revoked", await code_of_failing(object_of(secret_of(revoked_uri)).add(1)))
    say("guessed", await code_of_failing(object_of(b"x" * 32).add(1)))


def secret_of(uri):
    """The 32 bytes of a sturdyref's secret: z-base-32, and behind them four bytes of checksum."""
    alphabet = "ybndrfg8ejkmcpqxot1uwisza345h769"
    number = 0
    fragment = uri.split("#")[1]
    for character in fragment:
        number = number << 5 | alphabet.index(character)
    spare = len(fragment) * 5 - 36 * 8
    return (number >> spare).to_bytes(36, "big")[:32]


if sys.argv[2] == "bridge":
    asyncio.run(capnp.run(through_bridge(sys.argv[3])))
elif sys.argv[2] == "obey":
    asyncio.run(capnp.run(obey(sys.argv[3])))
else:
    asyncio.run(capnp.run(through_tls(sys.argv[3], int(sys.argv[4]), sys.argv[5])))
