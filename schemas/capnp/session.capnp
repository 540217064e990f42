@0xd3a7f1c25b9e4086;
# What two peers say to each other before any call: the first frame of every stream, in both directions.

struct Hello {
  # The channel itself proves both keys, so nothing here is about who the peer is.

  version @0 :UInt16;
  # Version of the session protocol. A peer that cannot speak it closes with `session.version`.

  epoch @1 :UInt64;
  # How many times this identity was taken over by a start or a move. A session of a higher epoch
  # supersedes every older one. 0: the peer is not a vat (a finder, a command line, a location server).

  incarnation @2 :Data;
  # 16 random bytes drawn when the process started: tells a reconnect from a restart.

  program @3 :Text;
  # Name and version of the program, for the peer's diagnostics only. At most 64 bytes.

  resumes @4 :Data;
  # The token of the session that this one takes the place of, 16 bytes; empty: of none. Both ends derive it
  # from the keys of the connection that the old session ran over. It says "I have lost that one, end your
  # half of it"; no capability comes back by it. One that the peer does not know is ignored.
}
