@0xb8e4c90d17f3a562;
# The location service: what a location server offers to everyone who dials it.
#
# Records are BEP44 signed packets (`signature 64 | timestamp 8 | dns`) and verify themselves, so neither
# side trusts the other: the server checks what it is given, the client checks what it is told.

interface LocationService {
  register @0 (id :Data, packet :Data, expected :Expected, admission :Admission) -> (outcome :Outcome);
  # Stores the packet for `id`, or renews the lease of a bit-identical one. Anyone may forward a packet:
  # only the vat can have signed it. The answer is sent only after the record is durable. An id that the server does not
  # know may need an admission: first offer it without one, the refusal says which.

  lookup @1 (id :Data, hops :UInt8) -> (answer :Answer);
  # What the server knows of exactly this 32-byte id. There is no call that lists ids. What it does not know it may
  # ask other servers for. `hops` is over how many servers the question has come, 0 if a finder asks: a server asks on
  # with one more, and after two it answers from what it holds.

  lookupMany @2 (ids :List(Data), hops :UInt8) -> (answers :List(Answer));
  # One answer per id, in the same order. At most 256 ids.

  now @3 () -> (time :UInt64, address :Text);
  # The server's clock in microseconds since 1970, and the address from which it sees this caller.

  watch @4 (id :Data, watcher :Watcher) -> (watch :Watch);
  # Tells `watcher` what is known of exactly this id: at once, and whenever that changes, until `watch` is dropped.

  renew @5 (order :Order) -> (outcome :Outcome);
  # Begins the lease of the caller's own record anew, if the current one is of this order, and is `unexpected`
  # otherwise. The session proves whose record it is, so nothing is signed, sent or checked again.

  dialBack @6 (port :UInt16, over :DialBackOver) -> (result :DialBack);
  # Dials the caller at the address from which the server sees it, at this port, and from another port than this
  # session's: what gets through, everybody's packets get through. A few times a minute at most.

  learn @7 (records :List(Known)) -> ();
  # Records that have been registered with the caller, another server. They are judged as all are, their leases go on
  # from where they are, and they are not passed on any further. At most 64 records.
}

struct Known {
  # What a server knows of an id.
  id @0 :Data;
  answer @1 :Answer;
}

interface Watcher {
  # Whoever waits for a vat.

  changed @0 (answer :Answer);
  # What is known now. The next call comes after this one has been answered; of changes in between only the last is
  # told.
}

interface Watch {
  # Watching goes on until this is dropped. Has no methods.
}

enum DialBackOver {
  # What is tried at the port.

  quic @0;
  # Whether somebody answers who proves the caller's key.

  tcp @1;
  # Whether somebody accepts a connection. Nothing is said on it.
}

struct DialBack {
  address @0 :Text;
  # Where the caller was dialled.

  over @3 :DialBackOver;
  # What was tried. A server that does not know what it was asked for tries QUIC.

  union {
    reached @1 :Void;
    # Somebody answered there and proved the caller's key.

    failed @2 :Refusal;
    # Nobody did.
  }
}

struct Expected {
  # Compare-and-swap: the order of the record that the caller believes to be current.
  union {
    anything @0 :Void;
    # No expectation.

    absent @1 :Void;
    # There must be no record, live or expired.

    order @2 :Order;
    # The current record must have exactly this order.
  }
}

struct Admission {
  # What an id that the server does not know yet has to show where not everybody is taken at once. Ids that it knows
  # need none, and are never asked for one.
  union {
    none @0 :Void;

    work @1 :UInt64;
    # The nonce that solves the task of a refusal `vls.work`.

    invite @2 :Data;
    # The 16 bytes of an invite, which the operator of the server has given away. A secret.
  }
}

struct Work {
  # A task: a nonce is to be found with which the SHA-256 of `"vls work v1" | five zero bytes | challenge | id | nonce`,
  # the nonce as eight bytes in big endian, begins with so many zero bits.
  challenge @0 :Data;
  # 16 bytes, made for this id, good for some minutes.

  bits @1 :UInt8;
}

struct Order {
  # The full order of a record: (epoch, timestamp, bytes). The digest stands for the bytes.
  epoch @0 :UInt64;
  timestamp @1 :UInt64;
  digest @2 :Data;
  # SHA-256 of the packet.
}

struct Outcome {
  union {
    stored @0 :Lease;
    # A higher record than any before.

    refreshed @1 :Lease;
    # Bit-identical to the current record: its lease begins anew.

    stale @2 :Data;
    # Refused: the server holds this higher packet, or its high-water mark is higher (then empty).

    conflict @3 :Data;
    # Refused: same order, different bytes. The packet that the server holds; it keeps both as evidence.

    unexpected @4 :Data;
    # Refused: the current record is not the expected one. The packet that the server holds; empty if none.

    refused @5 :Refusal;
    # Refused for what the packet is, or for how many came.
  }
}

struct Lease {
  seconds @0 :UInt32;
  # How long the record will be answered without a renewal.
}

struct Refusal {
  code @0 :Text;
  # A stable error code, such as `record.future`.

  message @1 :Text;

  serverTime @2 :UInt64;
  # The server's clock in microseconds since 1970, so that a peer with a wrong clock can tell.

  retryAfter @3 :UInt32;
  # Seconds after which it is worth trying again; 0: never with this packet.

  work @4 :Work;
  # Of `vls.work`: what is to be done. Whoever has done it need not wait.
}

struct Answer {
  packet @0 :Data;
  # The current packet; empty if the server knows none.

  age @1 :UInt32;
  # Seconds since the vat last registered or renewed it.

  expired @2 :Bool;
  # The lease has ended. Such a packet says where the vat was, and still proves which (epoch, turn) it had
  # reached, but is no statement of where it is.

  elapsed @3 :UInt64;
  # The age in microseconds.

  left @4 :UInt64;
  # Microseconds until the lease ends; 0 if it has ended, or if the server does not tell. A server that learns the record
  # from this one answers it for no longer.
}
