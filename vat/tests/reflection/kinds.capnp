@0xc1f3a27d90b4e658;
# One of every kind of thing that the schema language has, for the tests of reflection.

enum Color { red @0; green @1; blue @2; }

struct Point {
  x @0 :Int32;
  y @1 :Int32 = -1;
}

struct Empty {}

struct Tree {
  label @0 :Text;
  children @1 :List(Tree);
  only @2 :Tree;
}

struct Box(T) { value @0 :T; }

struct Scalars {
  void @0 :Void;
  bool @1 :Bool;
  int8 @2 :Int8;
  int16 @3 :Int16;
  int32 @4 :Int32;
  int64 @5 :Int64;
  uint8 @6 :UInt8;
  uint16 @7 :UInt16;
  uint32 @8 :UInt32;
  uint64 @9 :UInt64;
  float32 @10 :Float32;
  float64 @11 :Float64;
  color @12 :Color;
}

struct Defaults {
  bool @0 :Bool = true;
  int8 @1 :Int8 = -8;
  int16 @2 :Int16 = -1600;
  int32 @3 :Int32 = -320000;
  int64 @4 :Int64 = -9223372036854775808;
  uint8 @5 :UInt8 = 200;
  uint16 @6 :UInt16 = 60000;
  uint32 @7 :UInt32 = 4000000000;
  uint64 @8 :UInt64 = 18446744073709551615;
  float32 @9 :Float32 = 0.1;
  float64 @10 :Float64 = -inf;
  color @11 :Color = blue;
  text @12 :Text = "né à Paris";
  data @13 :Data = 0x"00 ff 10";
  point @14 :Point = (x = 7);
  numbers @15 :List(UInt16) = [1, 2, 65535];
  points @16 :List(Point) = [(x = 1, y = 2), (x = 3)];
}

struct Lists {
  voids @0 :List(Void);
  bools @1 :List(Bool);
  int8s @2 :List(Int8);
  int16s @3 :List(Int16);
  int32s @4 :List(Int32);
  int64s @5 :List(Int64);
  uint8s @6 :List(UInt8);
  uint16s @7 :List(UInt16);
  uint32s @8 :List(UInt32);
  uint64s @9 :List(UInt64);
  float32s @10 :List(Float32);
  float64s @11 :List(Float64);
  texts @12 :List(Text);
  datas @13 :List(Data);
  colors @14 :List(Color);
  points @15 :List(Point);
  empties @16 :List(Empty);
  deep @17 :List(List(List(Int8)));
  pointLists @18 :List(List(Point));
}

struct Unions {
  before @0 :UInt8;
  union {
    nothing @1 :Void;
    number @2 :UInt32 = 5;
    words @3 :List(Text);
    pair :group { left @4 :Int16; right @5 :Text; }
  }
  shape :union {
    round :group { radius @6 :Float64 = 1; }
    square :group {
      side @7 :Float64;
      fill :union { none @8 :Void; solid @9 :Color; }
    }
    free @10 :List(Point);
  }
  plain :group { a @11 :Bool = true; b @12 :Data; }
}

struct Kinds {
  scalars @0 :Scalars;
  defaults @1 :Defaults;
  lists @2 :Lists;
  unions @3 :Unions;
  tree @4 :Tree;
}

struct Opaque {
  any @0 :AnyPointer;
  capability @1 :Capability;
  listener @2 :Listener;
  listeners @3 :List(Listener);
  box @4 :Box(Text);
}

struct Matryoshka {
  # Its default contains itself.
  name @0 :Text;
  inner @1 :Matryoshka = (name = "doll");
}

interface Listener { tick @0 (value :UInt64) -> (); }

interface Root { ping @0 (text :Text = "hello") -> (text :Text); }
interface Left extends(Root) { left @0 () -> (); same @1 () -> (fromLeft :Bool); }
interface Right extends(Root) { right @0 () -> (); same @1 () -> (fromRight :Bool); }

interface Everything extends(Left, Right) {
  echo @0 Kinds -> Kinds;
  union @1 Unions -> ();
  subscribe @2 (listener :Listener) -> (opaque :Opaque);
  generic @3 [T] (value :T) -> (value :T, box :Box(T));
  stream @4 (chunk :Data) -> stream;
  scalars @5 (flag :Bool = true, int :Int16, big :UInt64 = 9007199254740993, float :Float32, color :Color = green,
              text :Text, data :Data, numbers :List(Int8) = [1, -1], point :Point = (x = 2), void :Void) -> ();
  matryoshka @6 () -> (doll :Matryoshka);
}

# What capnp's own compiler makes of all this, to compare with.

const sample :Kinds = (
  scalars = (bool = true, int8 = -128, int16 = -32768, int32 = -2147483648, int64 = -9223372036854775808,
    uint8 = 255, uint16 = 65535, uint32 = 4294967295, uint64 = 18446744073709551615,
    float32 = 0.1, float64 = 1e300, color = green),
  defaults = (bool = false, int8 = 0, int16 = 1, int32 = 2, int64 = 9007199254740992, uint8 = 4, uint16 = 5, uint32 = 6,
    uint64 = 9007199254740993, float32 = inf, float64 = 2.5, color = red, text = "x", data = 0x"68 69",
    point = (y = 3), numbers = [], points = [()]),
  lists = (voids = [void, void], bools = [true, false, true, true, false, false, true, false, true], int8s = [-1, 2],
    int16s = [-3, 4], int32s = [5], int64s = [-6], uint8s = [7, 8, 9], uint16s = [10], uint32s = [11, 12],
    uint64s = [13], float32s = [0.5, -inf], float64s = [1.25], texts = ["a", "", "long enough for two words"],
    datas = [0x"01", 0x"02 03"], colors = [blue, red], points = [(x = 1), (y = 2)], empties = [(), (), ()],
    deep = [[], [[1], [2, 3]]], pointLists = [[(x = 4, y = 5)], []]),
  unions = (before = 9, pair = (left = -2, right = "r"), shape = (square = (side = 2, fill = (solid = blue))),
    plain = (a = false, b = 0x"ff")),
  tree = (label = "root", children = [(label = "leaf", children = []), (only = (label = "inner"))])
);

const untouched :Kinds = (scalars = (), defaults = (), lists = (), unions = ());
