@0xe1f0a7c36b2d9845;

interface Poll {
  # One question, and the votes for each answer.
  vote @0 (choice :Text) -> (votes :UInt64);
  # Counts one vote for `choice`, and tells how many it has now.

  standing @1 () -> (choices :List(Choice));

  struct Choice {
    name @0 :Text;
    votes @1 :UInt64;
  }

  followUp @2 (question :Text) -> (poll :Poll);
  # The poll about a question that came up here. It is made when somebody first asks for it.

  readOut @3 (listener :Listener) -> (choices :UInt32);
  # Tells a listener of the caller's every choice with its votes, the next one when it has taken the last.

  interface Listener {
    choice @0 (choice :Choice) -> ();
  }
}
