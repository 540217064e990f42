@0xf0c1a86e2d4b7935;
# What a vat offers: to everyone who dials it (Vat), and to its owner on the same machine (Owner).

interface Vat {
  # The bootstrap capability of every session. It gives no authority: whoever knows no secret reaches no object.

  restore @0 (secret :Data) -> (capability :Capability, interfaceId :UInt64);
  # Exchanges the 32-byte secret of a sturdyref for the object that it was granted for.
  # A secret that was never granted, was revoked or has expired: `ref.denied`, always the same answer.

  schema @1 (interfaceId :UInt64) -> (request :Data);
  # A CodeGeneratorRequest (capnp/schema.capnp) that describes the interface with everything it mentions,
  # so that a caller can form calls at run time. Interfaces are not secret; objects are.

  transfer @2 (content :Capability) -> (token :Data);
  # For a `Content` of this vat: 32 bytes, for which its own come on a stream of this session's connection, once, from any
  # offset, if they are shown soon. `bulk.unavailable` where a session has one stream only.
}

interface Owner {
  # Offered only on the vat's local socket, whose peer the kernel proves to be the same user.

  status @0 () -> (status :Status);
  share @1 (label :Text, expires :UInt64, parent :UInt64, object :Capability) -> (secret :Data);
  # A new grant of `object`, which must be one of this vat, such as the one that `root` gives; null is refused. `expires` in seconds since 1970; 0: never.
  # `parent`: the number of the grant with which it shall die; 0: none.

  grants @2 () -> (grants :List(Grant));
  revoke @3 (number :UInt64) -> ();
  root @4 () -> (capability :Capability, interfaceId :UInt64);
  # The vat's root object itself, without a sturdyref.

  vat @5 () -> (vat :Vat);
  sleep @6 () -> ();
  # Publishes a dormant record and ends the process, as Ctrl-C does.

  export @7 (path :Text, holder :Holder, progress :Progress) -> (turn :UInt64, epoch :UInt64, amount :Amount);
  # Writes an image of the vat into a new file, sealed for `holder`, durably.

  verify @8 (progress :Progress) -> (amount :Amount, turn :UInt64);
  # Reads everything that the checkpoint holds as of some turn from now on, to see that it is whole.

  metrics @9 () -> (text :Text);
  # What there is to monitor, in the text form of Prometheus.
}

struct Holder {
  # For whom an image is sealed.
  union {
    recipient @0 :Text;
    # `vatkey:…`
    passphrase @1 :Text;
  }
}

struct Amount {
  rows @0 :UInt64;
  bytes @1 :UInt64;
}

interface Progress {
  # Told how far a long piece of work is, now and then.
  advanced @0 (amount :Amount) -> ();
}

struct Status {
  id @0 :Data;
  object @1 :Text;
  epoch @2 :UInt64;
  turn @3 :UInt64;
  durableTurn @4 :UInt64;
  processId @5 :UInt32;
  addresses @6 :List(Text);
  registrations @7 :List(Registration);
  journalBytes @8 :UInt64;
  baseBytes @9 :UInt64;
  sessions @10 :UInt32;
  objects @11 :UInt64;
  grants @12 :UInt64;
  startedAt @13 :UInt64;
  # Seconds since 1970.
  lastBackup @14 :UInt64;
  # Seconds since 1970; 0: there is none.
  lastBackupFile @15 :Text;
  backupCode @16 :Text;
  # Why the last backup was not made: an error code, empty if it was; and the words to it.
  backupMessage @17 :Text;
  foldedTurn @18 :UInt64;
  # The base has everything up to this turn.
  lastFold @19 :UInt64;
  # Seconds since 1970; 0: not since the vat woke.
  outside @20 :Outside;
}

struct Outside {
  # Whether others can dial the vat, as a location server found out that dialled it.
  server @0 :Text;
  # The entry that was asked; empty: none has answered yet.

  address @1 :Text;
  # Where it dialled.

  code @2 :Text;
  # Why nobody answered there; empty if the vat did.

  message @3 :Text;
}

struct Registration {
  # How one search path entry stands.
  entry @0 :Text;
  lastSuccess @1 :UInt64;
  # Seconds since 1970; 0: never.

  code @2 :Text;
  # Why the last attempt failed; empty if it succeeded.

  message @3 :Text;
}

struct Grant {
  number @0 :UInt64;
  label @1 :Text;
  createdAt @2 :UInt64;
  expires @3 :UInt64;
  hash @4 :Text;
  # The first six characters of the secret's hash, as logs show it.

  parent @5 :UInt64;
  # The number of the grant with which it dies; 0: none.

  object @6 :UInt64;
  # The number of the object that it grants.

  kind @7 :Text;
  # The kind of that object.
}
