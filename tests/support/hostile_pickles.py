"""Pickles that are not tensors: every way to run code, to take memory or time, or to lie, by name.

`canary` is a file that whatever is run would make.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

PROTO, STOP = b"\x80\x02", b"."
NAMES = (
    "os.system", "posix.system", "nt.system", "subprocess.Popen", "subprocess.check_output", "builtins.eval",
    "builtins.exec", "builtins.open", "builtins.getattr", "builtins.__import__", "builtins.breakpoint",
    "__builtin__.eval", "__main__.main", "importlib.import_module", "runpy.run_path", "pickle.loads", "marshal.loads",
    "types.FunctionType", "functools.partial", "operator.attrgetter", "operator.methodcaller", "copyreg._reconstructor",
    "codecs.decode", "_codecs.encode", "ctypes.CDLL", "socket.socket", "shutil.rmtree", "webbrowser.open", "pty.spawn",
    "pathlib.Path", "torch.load", "torch.hub.load", "torch.jit.load", "torch.serialization.load", "torch.Tensor",
    "torch._utils._import_dotted_name", "torch._utils._rebuild_tensor_v2.__globals__", "torch._utils.sys.modules",
    "torch.storage._load_from_bytes", "numpy.load", "numpy.core.multiarray._reconstruct", "numpy.ndarray",
    "numpy.testing._private.utils.runstring", "collections.OrderedDict.__init__", "collections.defaultdict",
    "moecli.checkpoint.pickles._Machine", "os.path.join", "sys.exit", "torch.\x1b[2JFloatStorage", "torch.\u202e",
)  # fmt: skip


def pickles(canary: Path) -> Iterator[tuple[str, bytes]]:
    """A name and the bytes of each."""
    command = text(f"touch {canary}")
    for name in NAMES:
        yield f"calls {name!a}", program(called(name, command))
    system, args = named("os.system"), command + b"\x85"
    module, function = b"os", b"system"
    yield "STACK_GLOBAL", program(b"\x8c\x02os\x8c\x06system\x93" + args + b"R")
    yield "STACK_GLOBAL of remembered words", program(b"\x8c\x02os\x940\x8c\x06system\x93" + args + b"R")
    yield "INST", program(b"(" + command + b"i" + module + b"\n" + function + b"\n")
    yield "OBJ", program(b"(" + system + command + b"o")
    yield "NEWOBJ", program(system + args + b"\x81")
    yield "NEWOBJ_EX", program(b"\x8c\x02os\x8c\x06system\x93" + args + b"}\x92")
    yield "NEWOBJ_EX of what is allowed", program(named("collections.OrderedDict") + b")}\x92")
    for name, code in {"EXT1": b"\x82\x01", "EXT2": b"\x83\x01\x00", "EXT4": b"\x84\x01\x00\x00\x00"}.items():
        yield name, program(code + args + b"R")
    yield "a name alone", program(system)
    yield "in a tensor's arguments", entry(tensor(size=called("os.system", command)))
    yield "as a storage", entry(tensor(storage=called("os.system", command)))
    yield "as a storage's class", entry(tensor(storage_class=system))
    yield "as a storage's key", entry(tensor(key=called("os.system", command)))
    yield "as hooks", entry(tensor(hooks=called("os.system", command)))
    yield "as a key", program(b"}" + called("os.system", command) + b"Ns")
    yield "as metadata", program(ordered() + b"}" + text("_metadata") + called("os.system", command) + b"sb")
    yield "before what is returned", program(called("os.system", command) + b"0" + ordered())
    yield "a state that sets itself", program(named("collections.OrderedDict") + b"}" + args + b"b")
    yield "a method of a dict", program(ordered() + text("__class__") + b"\x86R")
    yield "calls a call", program(named("torch._utils._rebuild_tensor_v2") + b")R)R")
    yield "calls a text", program(text("os.system") + args + b"R")
    yield "arguments that are no tuple", program(named("collections.OrderedDict") + b"]R")
    yield "a dict of arguments", program(named("collections.OrderedDict") + b"](K\x01K\x02ee\x85R")
    yield "persistent by text", program(b"Pos.system\n")
    yield "persistent of persistent", entry(tensor(storage=b"NQQQQ"))
    yield "a deep persistent", program(b"N" + b"Q" * 10**5)
    for name, code in {
        "POP": b"N0", "DUP": b"N2", "POP_MARK": b"(1N", "INT": b"I1\n", "LONG": b"L1L\n", "FLOAT": b"F1.0\n",
        "STRING": b"S'a'\n", "BINSTRING": b"T\1\0\0\0a", "SHORT_BINSTRING": b"U\1a", "UNICODE": b"Va\n",
        "PUT": b"Np0\n", "GET": b"Nq\0g0\n", "LIST": b"(l", "DICT": b"(d", "EMPTY_SET": b"\x8f",
        "ADDITEMS": b"\x8f(K\1\x90", "FROZENSET": b"(K\1\x91", "BYTEARRAY8": b"\x96\1" + bytes(7) + b"a",
        "NEXT_BUFFER": b"\x97", "READONLY_BUFFER": b"N\x98", "LONG4": b"\x8b\1\0\0\0a", "no opcode": b"\xff",
        "BINUNICODE8": b"\x8d\1" + bytes(7) + b"a",
    }.items():  # fmt: skip
        yield name, program(code)
    yield "protocol 0", b"(dp0\n."
    yield "protocol 255", b"\x80\xff}."
    for name, code in {
        "bytes of 2^60": b"\x8e" + struct.pack("<Q", 2**60), "bytes of 4 GiB": b"B\xff\xff\xff\xff",
        "a text of 4 GiB": b"X\xff\xff\xff\xff", "a text of 16 KiB": text("x" * 2**14),
        "a number of 255 bytes": b"\x8a\xff" + bytes(255), "a name without end": b"c" + b"x" * 10**5,
        "a text that is none": b"X\2\0\0\0\xff\xfe",
    }.items():  # fmt: skip
        yield name, program(code)
    yield "a frame of 2^60", PROTO + b"\x95" + struct.pack("<Q", 2**60) + b"cos\nsystem\n)R."
    yield "a million marks", program(b"(" * 10**6)
    yield "a million empty tuples", program(b")" * 10**6)
    yield "tuples a million deep", program(b")" + b"\x85" * 10**6)
    yield "lists a million deep", program(b"]" * 5000 + b"a" * 4999)
    yield "dicts that never end", program(b"}" * 10**6)
    yield "doubling", program(b"]q\x00" + b"]q\x01(h\x00h\x00eq\x00" * 10**5)
    yield "a memo without end", program(b"N" + b"\x94" * 10**6)
    yield "a memo far away", program(b"N" + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - n) for n in range(10**5)))
    yield "many texts", program(b"](" + text("x" * 4000) * 5000 + b"e")
    yield "many wide texts", program(b"](" + (text("x" * 900 + "\U0001f600") + b"a]") * 20000 + b"e")
    yield "many numbers", program(b"]" + b"K\x01a" * 400_000)
    yield "a list in itself", program(b"]q\0h\0a")
    yield "a dict in itself", program(b"}q\0" + text("a") + b"h\0s")
    yield "a call in itself", program(named("torch._utils._rebuild_tensor_v2") + b")Rq\0h\0b")
    yield "wrapped in itself", program(b"}q\0" + text("model") + b"h\0s")
    yield "nothing", b""
    yield "no end", PROTO + b"}"
    yield "an end at once", PROTO + STOP
    yield "two values", program(b"}}")
    yield "a mark at its end", program(b"(")
    yield "more behind its end", program(b"}") + b"cos\nsystem\n)R."
    yield "a value that is not there", program(b"\x86")
    yield "a mark that is not there", program(b"t")
    yield "a mark taken for a value", program(b"(\x85")
    yield "a memory that is not there", program(b"h\x05")
    yield "appends to a dict", program(b"}Na")
    yield "appends to a call", program(b"](" + named("torch.FloatStorage") + b"eNa")
    yield "sets items of a list", program(b"]NNs")
    yield "an odd number of items", program(b"}(" + text("a") + b"u")
    yield "a key twice", program(b"}(" + text("a") + b"N" + text("a") + b"Nu")
    yield "a key that has no hash", program(b"}]Ns")
    yield "a deep key", program(b"}" + b")" + b"\x85" * 10**5 + b"Ns")
    for name, changes in {
        "a negative length": {"size": b"J\xff\xff\xff\xff\x85"}, "a length of 2^62": {"size": number(2**62) + b"\x85"},
        "a length that is no number": {"size": b"G" + bytes(8) + b"\x85"},
        "a length that is true": {"size": b"\x88\x85"},
        "a hundred axes": {"size": b"(" + b"K\1" * 100 + b"t", "strides": b"(" + b"K\1" * 100 + b"t"},
        "a negative offset": {"offset": b"J\xf0\xff\xff\xff"}, "an offset outside": {"offset": b"K\x7f"},
        "an offset of 2^62": {"offset": number(2**62)}, "an offset that is a tensor": {"offset": ordered()},
        "more than it has": {"size": b"K\x7f\x85"}, "a negative stride": {"strides": b"J\xff\xff\xff\xff\x85"},
        "a stride of 0": {"strides": b"K\0\x85"}, "fewer strides": {"strides": b")"},
        "a storage that is missing": {"key": text("1")}, "a storage outside": {"key": text("../../../../etc/passwd")},
        "a storage that is no name": {"key": b"K\0"}, "a storage of 2^62 numbers": {"count": number(2**62)},
        "a storage of -4 numbers": {"count": b"J\xfc\xff\xff\xff"}, "a storage of one more": {"count": b"K\5"},
        "a storage of another dtype": {"storage_class": named("torch.DoubleStorage")},
        "a storage that is a function": {"storage_class": named("torch._utils._rebuild_parameter")},
        "strides that are a list": {"strides": b"](K\1e"},
    }.items():  # fmt: skip
        yield name, entry(tensor(**changes))
    again = tensor()
    for _ in range(2000):
        again = named("torch._utils._rebuild_parameter") + b"(" + again + b"\x89" + ordered() + b"tR"
        if len(again) > 60_000:
            break
    yield "a parameter of a parameter", entry(again)
    yield "a tensor without arguments", entry(named("torch._utils._rebuild_tensor_v2") + b")R")
    yield "a tensor of another kind", entry(named("torch._utils._rebuild_tensor_v3") + b"(" + tensor() + b"tR")


def program(code: bytes) -> bytes:
    return PROTO + code + STOP


def entry(value: bytes) -> bytes:
    """A state dict of one."""
    return program(b"}" + text("a") + value + b"s")


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def named(name: str) -> bytes:
    module, _, word = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + word.encode() + b"\n"


def called(name: str, argument: bytes) -> bytes:
    return named(name) + argument + b"\x85R"


def ordered() -> bytes:
    return named("collections.OrderedDict") + b")R"


def tensor(
    *, storage: bytes | None = None, storage_class: bytes = b"ctorch\nFloatStorage\n", key: bytes | None = None,
    count: bytes = b"K\x04", offset: bytes = b"K\x00", size: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85",
    hooks: bytes | None = None,
) -> bytes:  # fmt: skip
    """Four numbers of float32, as torch writes them, but for what is given."""
    about = b"(" + text("storage") + storage_class + (key or text("0")) + text("cpu") + count + b"tQ"
    rest = offset + size + strides + b"\x89" + (hooks or ordered())
    return named("torch._utils._rebuild_tensor_v2") + b"(" + (storage or about) + rest + b"tR"
