#!/usr/bin/env python3
"""Writes vectors.txt: frames, rows, keyslots files and images from fixed keys and salts.

A second, independent implementation of the formats, from their description alone (HMAC from the standard
library; AES-GCM, X25519 and Argon2id from pyca/cryptography 44 or later; HPKE from RFC 9180). The Rust tests compare every byte with what it wrote. The formats
are final: the output never changes, it is only added to.
"""
import hashlib
import hmac
import struct
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

SECTOR = 512


def hkdf(secret, salt, info, length):
    prk = hmac.new(salt, secret, hashlib.sha256).digest()
    block, out, i = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out, i = out + block, i + 1
    return out[:length]


def aes(key, associated, body):
    sealed = AESGCM(key).encrypt(bytes(12), body, associated)
    return sealed[:-16], sealed[-16:]


def names_key(root, store):
    return hkdf(root or bytes(32), store, b"vat checkpoint names 1\0", 32)


def prf(root, store, kind, data):
    return hmac.new(names_key(root, store), bytes([kind]) + data, hashlib.sha256).digest()


def name(root, store, kind, data):
    return prf(root, store, kind, data)[:16]


def varint(n):
    out = b""
    while n >= 0x80:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def data(b):
    return varint(len(b)) + b


def turns(list_of_turns):
    out = varint(len(list_of_turns))
    for turn, changes in list_of_turns:
        out += varint(turn) + varint(len(changes))
        for space, key, value in changes:
            out += varint(space) + data(key) + (b"\0" if value is None else b"\1" + data(value))
    return out


def pad(length):
    if length <= 8192:
        return length
    exponent = length.bit_length() - 1
    low = exponent - exponent.bit_length()
    return (length + (1 << low) - 1) >> low << low


def frame(root, store, vat, kind, group, sequence, epoch, incarnation, previous, salt, payload):
    extent = SECTOR
    while True:
        sectors = extent // SECTOR
        room = extent - 160 - 16 - (0 if root else sectors - 1)
        if room >= len(payload) and pad(extent) == extent:
            break
        extent += SECTOR
    plain = payload + bytes(room - len(payload))
    header = b"vatframe" + struct.pack("<HBBIQQQ", 1, kind, 1 if root else 2, extent, group, sequence, epoch)
    header += bytes(8) + store + name(root, store, 1, vat) + incarnation + salt
    assert len(header) == 128
    if root:
        material = hkdf(root, salt, b"vat checkpoint frame 1\0" + header, 64)
        header += material[32:]
        body, tag = aes(material[:32], header + previous, plain)
    else:
        header += hashlib.sha256(b"vat checkpoint frame commitment 1\0" + header).digest()
        body, rest = plain[:352], plain[352:]
        while rest:
            body, rest = body + b"\xff" + rest[:511], rest[511:]
        tag = hashlib.sha256(b"vat checkpoint frame tag 1\0" + header + previous + body).digest()[:16]
    whole = header + body + tag
    assert len(whole) == extent
    return whole


def row(root, store, vat, space, key, value, salt):
    row_key = name(root, store, 1, vat) + name(root, store, 2, struct.pack("<Q", space)) + name(root, store, 3, key)
    plain = varint(space) + data(key) + data(value)
    plain += bytes(pad(-(-len(plain) // 64) * 64) - len(plain))
    context = b"vat checkpoint row 1\0" + store + name(root, store, 1, vat) + row_key
    if root:
        body, tag = aes(hkdf(root, salt, context, 32), context, plain)
        return row_key, b"\1" + salt + body + tag
    return row_key, b"\2" + plain + hashlib.sha256(context + b"\2" + plain).digest()[:16]


def keyslots(root, store, key_file, salt):
    head = b"vatslots" + struct.pack("<HBB", 1, 1 if root else 2, 0) + store
    head += hkdf(root, store, b"vat checkpoint root key check 1\0", 32) if root else bytes(32)
    slots = b""
    if root:
        key = hkdf(key_file, salt, b"vat checkpoint keyslot 1\0" + store + struct.pack("<H", 1), 32)
        wrapped, tag = aes(key, head + struct.pack("<H", 1), root)
        slots = struct.pack("<HI", 1, 80) + salt + wrapped + tag
    whole = head + struct.pack("<H", 1 if root else 0) + slots
    return whole + hashlib.sha256(whole).digest()


def image(root, store, vat, slots, epoch, incarnation, head, frames, census):
    """`frames` is a list of lists of rows. The salt of each frame is made of its number."""
    out = b"vatimage" + struct.pack("<HHI", 1, 0, len(slots)) + slots
    out += bytes(-len(out) % SECTOR)
    payloads = [(4, vat + varint(head["turn"]) + varint(head["created"]) + data(head["label"]))]
    for rows in frames:
        encoded = b"".join(varint(space) + data(key) + data(value) for space, key, value in rows)
        payloads.append((5, varint(len(rows)) + encoded))
    payloads.append((6, varint(census[0]) + varint(census[1])))
    previous = bytes(16)
    for number, (kind, payload) in enumerate(payloads, 1):
        salt = bytes([number]) * 32
        whole = frame(root, store, vat, kind, number, number, epoch, incarnation, previous, salt, payload)
        out, previous = out + whole, whole[-16:]
    return out
def slots_head(root, store):
    head = b"vatslots" + struct.pack("<HBB", 1, 1, 0) + store
    return head + hkdf(root, store, b"vat checkpoint root key check 1\0", 32)


def whole_slots(head, kind, body):
    whole = head + struct.pack("<H", 1) + struct.pack("<HI", kind, len(body)) + body
    return whole + hashlib.sha256(whole).digest()


def passphrase_keyslots(root, store, passphrase, salt, memory, passes, lanes):
    head = slots_head(root, store)
    key = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory).derive(passphrase)
    key = hkdf(key, salt, b"vat checkpoint keyslot 1\0" + store + struct.pack("<H", 2), 32)
    wrapped, tag = aes(key, head + struct.pack("<H", 2), root)
    return whole_slots(head, 2, struct.pack("<III", memory, passes, lanes) + salt + wrapped + tag)


def labeled_extract(suite, salt, label, secret):
    return hmac.new(salt or bytes(32), b"HPKE-v1" + suite + label + secret, hashlib.sha256).digest()


def labeled_expand(suite, prk, label, info, length):
    out, block, i, info = b"", b"", 1, struct.pack(">H", length) + b"HPKE-v1" + suite + label + info
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out, i = out + block, i + 1
    return out[:length]


def hpke_seal(ephemeral, recipient, info, associated, plain):
    """RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM."""
    enc = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    kem = b"KEM" + struct.pack(">H", 0x20)
    prk = labeled_extract(kem, b"", b"eae_prk", shared)
    secret = labeled_expand(kem, prk, b"shared_secret", enc + recipient, 32)
    suite = b"HPKE" + struct.pack(">HHH", 0x20, 1, 2)
    context = b"\0" + labeled_extract(suite, b"", b"psk_id_hash", b"") + labeled_extract(suite, b"", b"info_hash", info)
    prk = labeled_extract(suite, secret, b"secret", b"")
    key = labeled_expand(suite, prk, b"key", context, 32)
    nonce = labeled_expand(suite, prk, b"base_nonce", context, 12)
    return enc, AESGCM(key).encrypt(nonce, plain, associated)


def recipient_keyslots(root, store, recipient_key, ephemeral_key):
    head = slots_head(root, store)
    recipient = X25519PrivateKey.from_private_bytes(recipient_key).public_key().public_bytes_raw()
    associated = head + struct.pack("<H", 3)
    ephemeral = X25519PrivateKey.from_private_bytes(ephemeral_key)
    enc, sealed = hpke_seal(ephemeral, recipient, b"vat checkpoint recipient 1\0" + store, associated, root)
    note, tag = aes(hkdf(root, enc, b"vat checkpoint recipient note 1\0" + store, 32), associated, recipient)
    return recipient, whole_slots(head, 3, enc + sealed + note + tag)


def write(kind, fields):
    print(f"\n[{kind}]")
    for key, value in fields.items():
        print(f"{key} = {value.hex() if isinstance(value, bytes) else value}")


def main():
    print("# Written by generate.py, an independent implementation. Numbers decimal, bytes hexadecimal.")
    root, store, vat = bytes(range(32)), bytes(range(64, 80)), bytes(range(96, 128))
    incarnation, previous, salt = bytes([0xC3] * 16), bytes([0xD4] * 16), bytes(range(160, 192))
    small = turns([(1, [(7, b"name", b"value")])])
    large = turns([(300, [(1 << 40, b"", bytes(i % 251 for i in range(9000))), (2, b"gone", None)]), (301, [])])
    middle = turns([(2, [(7, bytes(i % 7 for i in range(700)), bytes(600))])])
    for secret in (root, b""):
        cases = [(1, 1, 1, 0, bytes(16), bytes(16), vat), (2, 2, 2, 1, incarnation, previous, varint(0) + varint(300))]
        cases += [(3, 3, 3, 1, incarnation, previous, payload) for payload in (small, middle, large)]
        for kind, group, sequence, epoch, inc, prev, payload in cases:
            fields = dict(root=secret, store=store, vat=vat, kind=kind, group=group, sequence=sequence, epoch=epoch)
            fields |= dict(incarnation=inc, previous=prev, salt=salt, payload=payload)
            whole = frame(secret, store, vat, kind, group, sequence, epoch, inc, prev, salt, payload)
            write("frame", fields | dict(frame=whole))
        for value in (b"", b"value", bytes(i % 251 for i in range(9000))):
            key, sealed = row(secret, store, vat, 7, b"name", value, salt)
            fields = dict(root=secret, store=store, vat=vat, space=7, name=b"name", value=value, salt=salt)
            fields |= dict(key=key, sealed=sealed, digest=prf(secret, store, 5, key + sealed[:33] + sealed[-16:]))
            tally_key = name(secret, store, 4, vat) + name(secret, store, 2, struct.pack("<Q", 7)) + bytes(16)
            write("row", fields | dict(tally_key=tally_key))
        fields = dict(root=secret, store=store, key_file=bytes(range(200, 232)), salt=salt)
        write("keyslots", fields | dict(keyslots=keyslots(secret, store, fields["key_file"], salt)))
    for secret in (root, b""):
        fields = dict(root=secret, store=store, vat=vat, key_file=bytes(range(200, 232)), epoch=5)
        fields |= dict(incarnation=incarnation, turn=300, created=1700000000000000, label=b"a vat")
        rows = [(7, b"name", b"value"), (7, b"", bytes(700)), (1 << 40, bytes(range(256)), b"")]
        slots = keyslots(secret, store, fields["key_file"], salt)
        head = dict(turn=fields["turn"], created=fields["created"], label=fields["label"])
        census = (3, sum(len(key) + len(value) for _, key, value in rows))
        whole = image(secret, store, vat, slots, 5, incarnation, head, [rows[:2], rows[2:]], census)
        write("image", fields | dict(rows=census[0], bytes=census[1], image=whole))
    fields = dict(root=root, store=store, passphrase="correct horse battery staple", salt=salt)
    for memory, passes, lanes in ((64, 1, 1), (1024, 2, 2), (65536, 3, 1)):
        fields |= dict(memory_kib=memory, passes=passes, lanes=lanes)
        made = passphrase_keyslots(root, store, fields["passphrase"].encode(), salt, memory, passes, lanes)
        write("passphrase_keyslots", fields | dict(keyslots=made))
    fields = dict(root=root, store=store, recipient_key=bytes(range(32, 64)), ephemeral_key=bytes(range(128, 160)))
    recipient, made = recipient_keyslots(root, store, fields["recipient_key"], fields["ephemeral_key"])
    write("recipient_keyslots", fields | dict(recipient=recipient, keyslots=made))


main()
