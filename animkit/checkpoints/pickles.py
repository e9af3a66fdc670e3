"""Reads what a torch pickle asks for without doing it: no import, no call, no tensor.

A pickle is a program. This reader runs it with a harmless stand-in for all that it imports. So it learns the tensors' shapes,
and whether the file's storages can really hold them, before torch (with weights_only=True) takes any memory.
"""
from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from animkit.errors import AnimkitError

CONVERT = (
    "If you trust where it comes from, convert it once, in a throw-away environment without network or secrets:\n "
    " python -c \"import sys, torch; from safetensors.torch import save_file; d = torch.load(sys.argv[1],"
    " map_location='cpu', weights_only=False); d = d.get('state_dict', d); save_file({k: v.clone().contiguous() for k,"
    " v in d.items() if torch.is_tensor(v)}, sys.argv[2])\" IN.ckpt OUT.safetensors\nand open the .safetensors file"
    " here."
)
MAGIC = 0x1950A86A20F9469CFC6C
LARGEST = 2**63  # a pickle's integers may have megabytes of digits, and products of such take hours
STORAGES = {
    name: torch.empty(0, dtype=dtype).element_size()
    for name, dtype in {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
        "ComplexFloatStorage": torch.complex64,
    }.items()
}


@dataclass(frozen=True)
class _Storage:
    itemsize: int
    numel: int


class _StorageType:
    def __init__(self, itemsize: int):
        self.itemsize = itemsize


def _tensor(storage, offset, size, stride, *_rest):
    """In place of torch._utils._rebuild_tensor_v2: only checks that the view lies inside its storage."""
    if not isinstance(storage, _Storage) or len(size) != len(stride) or len(size) > 16:
        raise ValueError("a tensor without a storage")
    if any(type(n) is not int or not 0 <= n < LARGEST for n in (offset, *size, *stride)):
        raise ValueError("a tensor with a size that is no natural number")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride)) if all(size) else -1
    # the second: with a stride of 0 one number fills a tensor of any size, which would take memory once it is used
    if last >= storage.numel or math.prod(size) > storage.numel:
        raise ValueError(f"a tensor of shape {tuple(size)} in a storage of {storage.numel} numbers")
    return None


def _nothing(*_args):
    return None


class _Bounded:
    """A stream whose read(n) never takes memory for more than the file has left, whatever n the pickle claims."""

    def __init__(self, stream: BinaryIO, size: int):
        self.stream, self.size, self.readline = stream, size, stream.readline

    def read(self, n: int) -> bytes:
        if n > self.size - self.stream.tell():
            raise EOFError(f"{n:,} bytes are claimed beyond its end")
        return self.stream.read(n)


class _Reader(pickle._Unpickler):
    """Python's own unpickler, with nothing to call, and only the instructions that torch.save writes."""

    dispatch = {code: function for code, function in pickle._Unpickler.dispatch.items() if code not in {
        # no persistent ids as text, no classes by name, no extensions, no buffers from outside
        pickle.PERSID[0], pickle.INST[0], pickle.OBJ[0], pickle.NEWOBJ_EX[0], pickle.EXT1[0], pickle.EXT2[0],
        pickle.EXT4[0], pickle.NEXT_BUFFER[0], pickle.READONLY_BUFFER[0], pickle.BYTEARRAY8[0], pickle.FROZENSET[0],
        pickle.ADDITEMS[0]}}

    def __init__(self, stream: BinaryIO, size: int, outline: Outline):
        super().__init__(_Bounded(stream, size), encoding="utf-8")
        self.outline = outline

    def find_class(self, module: str, name: str):
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _StorageType(STORAGES[name])
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return _StorageType(1)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_tensor_v3"):
            return _tensor
        if (module, name) in (("torch._utils", "_rebuild_parameter"), ("torch", "Size"), ("torch", "device"),
                              ("_codecs", "encode")):
            return _nothing
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return name
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, saved: tuple):
        kind, storage, key, _location, numel, *view = saved
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise ValueError("a persistent object that is no storage")
        if type(numel) is not int or not 0 <= numel < LARGEST:
            raise ValueError("a storage whose size is no natural number")
        if not isinstance(key, (str, int)):
            raise ValueError("a storage whose name is not text")
        self.outline.ask(str(key), numel * storage.itemsize)
        if view and view[0] is not None:
            _key, offset, length = view[0]
            if type(offset) is not int or type(length) is not int or not 0 <= offset <= offset + length <= numel:
                raise ValueError("a view outside its storage")
            numel = length
        return _Storage(storage.itemsize, numel)

    def load_reduce(self):
        arguments = self.stack.pop()
        function = self.stack[-1]
        if function is OrderedDict:
            if arguments not in ((), ([],)):  # the second is how Python 2 wrote an empty one
                raise ValueError("an OrderedDict with contents in its making")
            self.stack[-1] = OrderedDict()
        elif function in (_tensor, _nothing):
            self.stack[-1] = function(*arguments)
        else:
            raise ValueError("a call of something that is no tensor")
    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self):
        raise ValueError("an object of a class")
    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_build(self):  # a state dict carries its `_metadata` like this; it is not needed
        self.stack.pop()
        if not isinstance(self.stack[-1], (OrderedDict, type(None))):
            raise ValueError("an object with a state")
    dispatch[pickle.BUILD[0]] = load_build

    def _set(self, table, key, value):
        # A nested tuple as a key can take for ever to hash: names and numbers only.
        if not isinstance(table, dict) or not isinstance(key, (str, int, float, bytes, type(None))):
            raise ValueError("a table whose names are not text")
        table[key] = value

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], key, value)
    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self):
        items = self.pop_mark()
        for i in range(0, len(items), 2):
            self._set(self.stack[-1], items[i], items[i + 1])
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self):
        items, table = self.pop_mark(), {}
        for i in range(0, len(items), 2):
            self._set(table, items[i], items[i + 1])
        self.append(table)
    dispatch[pickle.DICT[0]] = load_dict

    def load_appends(self):
        items = self.pop_mark()
        if not isinstance(self.stack[-1], list):
            raise ValueError("an append to what is no list")
        self.stack[-1].extend(items)
    dispatch[pickle.APPENDS[0]] = load_appends

    def load_append(self):
        item = self.stack.pop()
        if not isinstance(self.stack[-1], list):
            raise ValueError("an append to what is no list")
        self.stack[-1].append(item)
    dispatch[pickle.APPEND[0]] = load_append


class _Refused(Exception):
    """The pickle wants to import this name."""


@dataclass
class Outline:
    """The storages that a pickle asks for, in bytes; available: those in the file (None: only their sum is checked, later)."""

    available: dict[str, int] | None = None
    storages: dict[str, int] = field(default_factory=dict)

    def ask(self, key: str, nbytes: int) -> None:
        if self.available is not None and nbytes > self.available.get(key, -1):
            have = f"has {self.available[key]:,}" if key in self.available else "is not there"
            raise ValueError(f"storage {key} should have {nbytes:,} bytes and {have}")
        self.storages[key] = max(nbytes, self.storages.get(key, 0))

    @classmethod
    def legacy(cls, path: Path, stream: BinaryIO, size: int) -> Outline:
        outline = cls()
        if _run(path, _Reader(stream, size, outline)) != MAGIC:
            raise AnimkitError(
                f"{path}: this is a plain pickle, not a torch file: it could run code, so it is not opened. {CONVERT}"
            )
        for _ in range(4):  # protocol version, system, the object, the order of its storages
            _run(path, _Reader(stream, size, outline))
        return outline


def read_outline(path: Path, stream: BinaryIO, size: int, available: dict[str, int]) -> Outline:
    """Checks the pickle in `stream` against the storages that the file has. Raises AnimkitError; runs nothing of it."""
    outline = Outline(available)
    _run(path, _Reader(stream, size, outline))
    return outline


def _run(path: Path, reader: _Reader):
    try:
        return reader.load()
    except _Refused as refused:
        raise AnimkitError(
            f"{path}: its pickle asks to import `{refused}`, which weights do not need and which can run "
            f"anything, so it is not opened. {CONVERT}"
        ) from None
    except RecursionError:
        raise AnimkitError(
            f"{path}: its pickle is nested without end: the file is damaged or made to do harm."
        ) from None
    except MemoryError:
        raise AnimkitError(f"{path}: its pickle asks for more memory than there is: the file is damaged.") from None
    except Exception as error:  # a damaged pickle leads to any kind of error: all end in this sentence
        what = str(error) or type(error).__name__
        raise AnimkitError(f"{path}: its pickle is cut short or damaged ({what[:160]}); download it again.") from None
