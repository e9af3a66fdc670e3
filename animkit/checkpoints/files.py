"""Reads weights files from sources that cannot be trusted: the sizes in them are checked before any memory is taken.

safetensors files and torch's zip files are mapped into memory, not read: a tensor costs nothing until it is used,
keeps the file's dtype, and a write to it never reaches the file.
"""
from __future__ import annotations

import json
import math
import struct
import zipfile
from pathlib import Path

import torch

from animkit.checkpoints.pickles import CONVERT, Outline, read_outline
from animkit.errors import AnimkitError

# Bytes per element of the dtypes that torch can hold; safetensors has others (F4, F6) that torch lacks.
ITEMSIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
            "U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "C64": 8}
MAX_HEADER = 100_000_000  # the safetensors format's own limit
AGAIN = "download it again and compare its size with the source's"


def read_file(path: str | Path) -> tuple[dict, dict[str, str]]:
    """(contents, metadata) of a `.safetensors`, `.ckpt`, `.pt`, `.pth` or `.bin` file; its bytes tell the format, not its name.

    contents: what the file holds; tensors are read lazily, in the file's dtype. Raises AnimkitError for any other file.
    """
    path = Path(path)
    if not path.exists():
        raise AnimkitError(f"{path}: there is no such file; check the path.")
    if not path.is_file():
        raise AnimkitError(f"{path}: this is not a regular file; give the path of a weights file.")
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            head = f.read(1024)
        _refuse_what_is_not_weights(path, head, size)
        if _looks_like_safetensors(head):
            return _read_safetensors(path, size)
        if head[:2] == b"PK":
            return _read_zip(path, size), {}
        if head[:1] == b"\x80":
            return _read_legacy(path, size), {}
    except OSError as error:
        raise AnimkitError(
            f"{path}: the file cannot be read ({error.strerror or error}); check its permissions."
        ) from error
    kind = "a text file" if _is_text(head) else "neither safetensors nor a torch file"
    raise AnimkitError(f"{path}: this is {kind} (it begins with {head[:16]!r}), not weights; {AGAIN}.")


def _refuse_what_is_not_weights(path: Path, head: bytes, size: int) -> None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if size == 0:
        raise AnimkitError(f"{path}: the file is empty (0 bytes): a download that never began; fetch it again.")
    if head.startswith(b"version https://git-lfs"):
        raise AnimkitError(f"{path}: this is a git-lfs pointer of {size} bytes, not the weights themselves; run "
                           "`git lfs install && git lfs pull` in its repository, or download the file from the site.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise AnimkitError(
            f"{path}: this is an HTML page saved in place of the weights (a log-in or consent page); open the "
            "link in a browser, accept its terms, and download the file itself."
        )
    if head.startswith(b"GGUF"):
        raise AnimkitError(
            f"{path}: this is a GGUF file (quantised for llama.cpp-like programs), which animkit does not read; "
            "take the model's .safetensors file."
        )
    if head[257:262] == b"ustar":
        raise AnimkitError(
            f"{path}: this is a tar archive (torch before 0.4, or a packed folder), which is never unpacked here; "
            "unpack it yourself, or save its weights as .safetensors."
        )
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"7z\xbc\xaf", "7-Zip"), (b"Rar!", "RAR"), (b"\xfd7zXZ", "xz")):
        if head.startswith(magic):
            raise AnimkitError(f"{path}: this is a {name} archive, not weights; unpack it first.")


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "replace").removesuffix("\ufffd")  # the last letter may be cut
    return all((letter.isprintable() and letter != "\ufffd") or letter in "\t\r\n" for letter in text)


def _looks_like_safetensors(head: bytes) -> bool:
    return len(head) >= 8 and (head[8:9] == b"{" or (struct.unpack("<Q", head[:8])[0] <= MAX_HEADER
                                                     and head[:1] != b"\x80" and head[5:8] == b"\0\0\0"))


# ---------------------------------------------------------------------------------------------------- safetensors
def check_safetensors_header(path: Path, size: int) -> dict:
    """The JSON header, once its length, every dtype, shape and offset are checked against the file's size."""
    with open(path, "rb") as f:
        length = struct.unpack("<Q", f.read(8))[0]
        if length > MAX_HEADER or length < 2:
            raise AnimkitError(
                f"{path}: its safetensors header claims {length:,} bytes (the format allows 100,000,000): "
                f"the file is damaged; {AGAIN}."
            )
        if 8 + length > size:
            raise AnimkitError(
                f"{path}: the file is cut short: its header needs {8 + length:,} bytes and only {size:,} "
                f"are there; {AGAIN}."
            )
        raw = f.read(length)
    try:
        header = json.loads(raw)
        if not isinstance(header, dict):
            raise ValueError("not a table")
        end = 0
        for name, entry in header.items():
            if name == "__metadata__":
                if not all(isinstance(v, str) for v in entry.values()):
                    raise ValueError("metadata is not text")
                continue
            dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [*shape, first, last]
            # before they are multiplied: a product of a million such numbers would take hours
            if len(shape) > 64 or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
                raise ValueError(f"{name[:80]} has a size that is no natural number")
            if dtype not in ITEMSIZE:
                raise AnimkitError(
                    f"{path}: tensor {name} has dtype {dtype!r}, which torch cannot hold; take the model's "
                    "half-precision file."
                )
            if math.prod(shape) * ITEMSIZE[dtype] != last - first:
                raise ValueError(f"{name} of shape {shape} in {dtype} does not fill its {last - first} bytes")
            end = max(end, last)
    except AnimkitError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AnimkitError(f"{path}: its safetensors header is damaged ({error}); {AGAIN}.") from None
    there = size - 8 - length
    if end > there:
        raise AnimkitError(
            f"{path}: the file is cut short: its tensors need {8 + length + end:,} bytes and only {size:,} "
            f"are there; {AGAIN}."
        )
    return header


def _read_safetensors(path: Path, size: int) -> tuple[dict, dict[str, str]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = check_safetensors_header(path, size)
    try:
        return load_file(path), header.get("__metadata__", {})
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise AnimkitError(f"{path}: safetensors refuses the file ({short(error)}); {AGAIN}.") from None


# ------------------------------------------------------------------------------------------------------- pickles
def _read_zip(path: Path, size: int) -> dict:
    """torch.save's format since 1.6: a zip, uncompressed, with one pickle and one record per storage."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch would allocate the sizes that the central directory states.
            for entry in entries:
                if entry.header_offset + entry.compress_size > size or (
                        entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size):
                    raise AnimkitError(f"{path}: the file is cut short or damaged: record {entry.filename!r} claims "
                                       f"{entry.file_size:,} bytes of a file of {size:,}; {AGAIN}.")
            names = [entry.filename.lower() for entry in entries]  # torch ignores upper and lower case
            if len(set(names)) < len(names) or sum(name.split("/")[-1] == "data.pkl" for name in names) > 1:
                raise AnimkitError(f"{path}: it has two records of one name, so that the one looked at need not be the "
                                   f"one that is loaded: the file is damaged or made to do harm; {AGAIN}.")
            pickles = [e for e in entries if e.filename.split("/")[-1] == "data.pkl"]
            if not pickles:
                names = ", ".join(e.filename for e in entries[:3])
                raise AnimkitError(
                    f"{path}: this is a zip archive ({names}, ...), not a torch file; unpack it and give the "
                    "weights inside."
                )
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                raise AnimkitError(
                    f"{path}: its records are compressed, which torch.save never does: someone has re-packed "
                    "it; ask for the original file, or save it as .safetensors."
                )
            prefix = pickles[0].filename[:-len("data.pkl")]
            if any(e.filename == prefix + "constants.pkl" for e in entries):
                raise AnimkitError(
                    f"{path}: this is a TorchScript program, not a state dict; it holds code, which is never "
                    "run here: ask for the plain weights."
                )
            storages = {e.filename[len(prefix + "data/"):]: e.file_size for e in entries
                        if e.filename.startswith(prefix + "data/")}
            with archive.open(pickles[0]) as stream:
                read_outline(path, stream, pickles[0].file_size, storages)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, struct.error, ValueError,
            OverflowError, RuntimeError) as error:
        if isinstance(error, AnimkitError):
            raise
        raise AnimkitError(f"{path}: the file is cut short or damaged ({short(error)}); {AGAIN}.") from None
    return _torch_load(path, mmap=True)


def _read_legacy(path: Path, size: int) -> dict:
    """torch.save's format before 1.6: five pickles in a row, then the storages."""
    with open(path, "rb") as stream:
        outline = Outline.legacy(path, stream, size)
        claimed, there = sum(outline.storages.values()), size - stream.tell()
    if claimed > there:
        raise AnimkitError(
            f"{path}: the file is cut short: its tensors need {claimed:,} bytes and only {max(there, 0):,} are "
            f"left in it; {AGAIN}."
        )
    return _torch_load(path, mmap=False)


def _torch_load(path: Path, mmap: bool) -> dict:
    import pickle
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    # the outline has passed, so torch is stricter than our check: torch decides
    except pickle.UnpicklingError as error:
        raise AnimkitError(f"{path}: torch will not read it as plain weights ({short(error)}). {CONVERT}") from None
    except Exception as error:  # damaged bytes make torch raise any kind of error
        raise AnimkitError(f"{path}: the file is damaged ({short(error)}); {AGAIN}.") from None


def short(error: BaseException) -> str:
    """The first line of an error's message, at most 160 characters; its type if there is no message."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 160 else line[:157] + "..."
