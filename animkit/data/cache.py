"""Latents and text embeddings computed once: base, VAE and text encoder are frozen, so every epoch would give the same.

A cache is one safetensors file in fp16, memory-mapped when it is read. Its name contains a hash of all that it depends
on (videos, settings, weights), so a stale cache is never used. It is written under another name and then renamed, so
an incomplete cache is never used either. Latents take hours for a large set: the next call goes on from where a killed
one was.
"""
import hashlib
import io
import json
import os
import struct
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm

from animkit.errors import AnimkitError
from animkit.files import write_atomically
from animkit.prompts import as_read

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class LatentCache:
    """Latents read from a cache, for `Batches`: get(i, epoch) is {"latents": c f h w, "caption": str, "index": int}.

    After with_text(texts) each item also has "text" n d. Clips whose video could not be used are left out; `index` is
    the clip's place in the source.
    """

    def __init__(self, path: str | Path):
        with _opened(path) as file:
            self.latents = file.get_tensor("latents")  # rows c f h w, fp16; memory-mapped: pages are read when touched
            rows, self.captions = file.get_tensor("rows").tolist(), _from_bytes(file.get_tensor("captions"))
        self.path, self.texts = Path(path), None
        self._rows: dict[int, list[int]] = {}  # index of a clip -> rows of its views that could be read
        for row, (index, _) in enumerate(rows):
            self._rows.setdefault(index, []).append(row)
        self.indices = sorted(self._rows)

    def __len__(self) -> int:
        return len(self.indices)

    def with_text(self, texts: "TextCache") -> "LatentCache":
        self.texts = texts
        return self

    def get(self, i: int, epoch: int = 0) -> dict:
        """Clip i; each epoch takes the next of its cached views, in turn."""
        index = self.indices[i]
        row = self._rows[index][epoch % len(self._rows[index])]
        item = {"latents": self.latents[row].float(), "caption": self.captions[row], "index": index}
        return item | ({"text": self.texts[self.captions[row]]} if self.texts else {})


class TextCache:
    """Text embeddings read from a cache: texts["a balloon"] is n d; texts.empty is that of "", for dropped captions."""

    def __init__(self, path: str | Path):
        with _opened(path) as file:
            self.text = file.get_tensor("text")  # b n d, fp16, memory-mapped
            self._row = {caption: row for row, caption in enumerate(_from_bytes(file.get_tensor("captions")))}
        self.path = Path(path)

    def __getitem__(self, caption: str) -> Tensor:
        if caption not in self._row:
            raise AnimkitError(f"no text embedding of {caption!r} in {self.path}: call cache_text with it")
        return self.text[self._row[caption]].float()

    @property
    def empty(self) -> Tensor:
        return self[""]


def cache_latents(vae: nn.Module, clips: Any, folder: str | Path, *, views: int = 1, frames_at_once: int = 16,
                  workers: int = 1, quiet: bool = False) -> LatentCache:
    """Latents of clips, (mode of the encoder's posterior - shift) * scale, computed unless `folder` has them already.

    clips: VideoClips, Images, TensorClips, or anything with len(), get(i, epoch) and fingerprint(). views: how many
    random windows and crops of each clip to take. workers > 1: threads read the next clips ahead. A call that was killed
    or interrupted leaves latents-*.part and .rows, and the same call goes on from them; one that finds another process
    at it waits, and takes its cache. (Where files cannot be locked, each call begins anew.) Raises AnimkitError for latents
    that are not finite or differ in size, no usable clip, a full disk, a damaged cache.
    """
    # without the decoder: training it further does not change the latents
    key = _digest(clips.fingerprint(), views, fingerprint_of(vae, without=("decoder.", "post_quant_conv.")))
    path = Path(folder) / f"latents-{key}.safetensors"
    if not path.exists():
        _make(path, vae, clips, views, frames_at_once, workers, quiet)
    return LatentCache(path)


def cache_text(tokenizer: Any, text_encoder: nn.Module, captions: Sequence[str], folder: str | Path, *,
               at_once: int = 64, quiet: bool = False) -> TextCache:
    """The text encoder's last hidden states of the captions and of "", computed unless `folder` has them already."""
    captions = sorted({"", *captions})
    length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)  # some tokenizers state no limit
    ids = tokenizer([as_read(caption, tokenizer) for caption in captions], padding="max_length", max_length=length,
                    truncation=True, return_tensors="pt").input_ids  # b n
    key = _digest(captions, hashlib.sha256(ids.numpy().tobytes()).hexdigest(), fingerprint_of(text_encoder))
    path = Path(folder) / f"text-{key}.safetensors"
    if not path.exists():
        write_atomically(path, lambda temporary: _write_text(temporary, text_encoder, ids, captions, at_once, quiet))
    return TextCache(path)


@torch.no_grad()
def _write_text(path: str, text_encoder: nn.Module, ids: Tensor, captions: list[str], at_once: int, quiet: bool) -> None:
    """Writes each part as soon as it is computed: the embeddings of a large set's captions are larger than memory."""
    device, said = next(text_encoder.parameters()).device, _to_bytes(captions)
    with open(path, "wb") as file:
        file.seek(_HEADER)
        for part in tqdm(ids.split(at_once), desc="text embeddings", disable=quiet):
            text = text_encoder(part.to(device))[0].cpu().half().contiguous()  # b n d
            _finite(text, "the text embeddings")
            file.write(text.numpy().tobytes())
        file.write(said.numpy().tobytes())
        file.seek(0)
        file.write(_header(text=("F16", [*ids.shape, text.shape[-1]], 2), captions=("U8", [len(said)], 1)))


@torch.no_grad()
def encode(vae: nn.Module, video: Tensor, frames_at_once: int = 16) -> Tensor:
    """One clip c f h w in -1 .. 1 (or uint8) -> latents c f h w: the mode of the posterior, in the base's scale."""
    video = video.float() / 127.5 - 1 if video.dtype == torch.uint8 else video
    first = next(vae.parameters())
    frames = video.transpose(0, 1).to(first.device, first.dtype)  # f c h w
    z = torch.cat([vae.encode(part).latent_dist.mode() for part in frames.split(frames_at_once)])
    return ((z.float() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor).transpose(0, 1)


def fingerprint_of(module: nn.Module, without: tuple[str, ...] = ()) -> str:
    """A hash of a model's config and weights, in whatever folder they are; without: prefixes of names to leave out."""
    config = getattr(module, "config", {})
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)  # transformers', or diffusers'
    config = {name: value for name, value in config.items() if not name.startswith("_")}  # such as _name_or_path, its folder
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(without):
            continue
        digest.update(name.encode() + str(tensor.dtype).encode() + str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _make(path: Path, *how) -> None:
    """Write the latents in a file beside `path`, then rename it; `how`: the arguments of _write_latents after its files."""
    part, journal = path.with_suffix(".part"), path.with_suffix(".rows")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _sole(part, unless=path) as file:
            if file is None:
                return
            try:
                with open(journal, "ab+") as lines:
                    _write_latents(file, lines, *how)
            except AnimkitError:  # these clips cannot be cached: the same call would end in the same way
                journal.unlink()
                part.unlink()
                raise
            os.replace(part, path)
            journal.unlink()
    except _NoLocks:  # then each process writes a file of its own, from the first clip on
        def alone(temporary: str) -> None:
            with open(temporary, "wb+") as file:
                _write_latents(file, io.BytesIO(), *how)
        write_atomically(path, alone)
    except OSError as error:
        raise AnimkitError(f"could not write {path}: {error.strerror or error}; the latents made so far are kept beside it, "
                           "and the same call goes on from them") from error


class _NoLocks(Exception):
    """Files cannot be locked here: on Windows, and on some file systems of clusters."""


@contextmanager
def _sole(part: Path, unless: Path) -> Iterator[IO[bytes] | None]:
    """`part`, made if absent, open for this process alone: waits for one that has it. None if that one made `unless`."""
    if fcntl is None:
        raise _NoLocks
    while True:
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the file is closed or the process ends
            except BlockingIOError:
                print(f"another process is making {unless}: waiting for it", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise _NoLocks from error
            if unless.exists():
                part.unlink(missing_ok=True)
                yield None
                return
            if part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat()):  # else the other one removed it
                yield file
                return


_HEADER = 1024  # bytes reserved for the header, which is known only when all rows are written; spaces fill it up


def _write_latents(file: IO[bytes], journal: IO[bytes], vae, clips, views: int, frames_at_once: int, workers: int,
                   quiet: bool) -> None:
    """Writes each row as soon as it is computed, so that a set larger than memory can be cached, and nothing is lost.

    The safetensors format: the header's length in 8 bytes, a JSON header (it may end in spaces), the tensors' bytes without gaps.
    The journal has a line for each view of a clip: index, view, caption, shape and checksum of its latents; the last three
    are null if it cannot be used.
    """
    tried = _written(file, journal)
    shape = next((tuple(shape) for *_, shape, _ in tried if shape), None)
    done = {(index, view) for index, view, *_ in tried}
    bar = tqdm(_every(clips, views, workers, done), total=len(clips) * views, initial=len(done), desc="latents", unit="clip",
               disable=quiet)
    for index, view, item in bar:
        said = [index, view, None, None, None]
        if item is not None:
            video = item["video"] if "video" in item else item["image"][:, None]  # an image is a clip of one frame
            z = encode(vae, video, frames_at_once).cpu().half().contiguous()
            _finite(z, f"the latents of clip {index} ({item.get('caption', '')!r})")
            if shape not in (None, tuple(z.shape)):
                raise AnimkitError(f"clip {index} has latents {tuple(z.shape)}, those before it {shape}: "
                                   "give all clips one size")
            shape = tuple(z.shape)
            file.write(row := z.numpy().tobytes())
            file.flush()
            said[2:] = item.get("caption", ""), shape, zlib.crc32(row)
        journal.write(json.dumps(said).encode() + b"\n")
        journal.flush()
        tried.append(said)
    rows, captions = [said[:2] for said in tried if said[3]], [said[2] for said in tried if said[3]]
    if not rows:
        raise AnimkitError("there is no clip to cache: the source is empty or none of it can be used")
    extra = {"rows": torch.tensor(rows, dtype=torch.int64), "captions": _to_bytes(captions)}
    for tensor in extra.values():
        file.write(tensor.numpy().tobytes())
    file.seek(0)
    file.write(_header(latents=("F16", [len(rows), *shape], 2), rows=("I64", [len(rows), 2], 8),
                       captions=("U8", [len(extra["captions"])], 1)))


def _header(**tensors: tuple[str, list[int], int]) -> bytes:
    """The start of a safetensors file whose tensors follow each other: (its dtype's name, shape, bytes of a number) of each."""
    header, place = {}, 0
    for name, (dtype, dims, width) in tensors.items():
        end = place + width * torch.Size(dims).numel()
        header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [place, end]}
        place = end
    return struct.pack("<Q", _HEADER - 8) + json.dumps(header).encode().ljust(_HEADER - 8)


def _written(file: IO[bytes], journal: IO[bytes]) -> list[list]:
    """The lines of the journal whose latents are whole in the file; both are cut off after them, to be continued."""
    tried, lines = [], 0
    file.truncate(max(_HEADER, file.seek(0, os.SEEK_END)))
    end = file.seek(_HEADER)
    journal.seek(0)
    for line in journal:
        try:
            said = json.loads(line)
            if said[3]:
                row = file.read(2 * torch.Size(said[3]).numel())
                if zlib.crc32(row) != said[4]:
                    break
        except ValueError:  # the process was killed in the middle of this line
            break
        if not line.endswith(b"\n"):
            break
        tried.append(said)
        lines, end = lines + len(line), file.tell()
    journal.truncate(lines)
    file.truncate(end)
    file.seek(end)
    return tried


def _every(clips, views: int, workers: int, done: set[tuple[int, int]]) -> Iterator[tuple[int, int, dict | None]]:
    get = getattr(clips, "try_get", clips.get)  # with try_get a bad video is left out, not replaced by its neighbour
    rows = ((index, view) for view in range(views) for index in range(len(clips)) if (index, view) not in done)
    if workers == 1:
        yield from ((*row, get(*row)) for row in rows)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque((row, pool.submit(get, *row)) for row in islice(rows, 2 * workers))  # few: clips are large
        try:
            while ahead:
                row, clip = ahead.popleft()
                found = clip.result()
                ahead.extend((row, pool.submit(get, *row)) for row in islice(rows, 1))
                yield *row, found
        finally:
            pool.shutdown(cancel_futures=True)


def _opened(path: str | Path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise AnimkitError(f"the cache {path} is damaged ({error}): delete it, and it will be made again") from error


def _finite(tensor: Tensor, what: str) -> None:
    if not tensor.isfinite().all():
        raise AnimkitError(f"{what} are not finite in float16: check the weights and run the model in float32")


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _to_bytes(captions: list[str]) -> Tensor:
    """Captions as a tensor: those of a large set are more than a safetensors header may hold."""
    return torch.frombuffer(bytearray(json.dumps(captions).encode()), dtype=torch.uint8)


def _from_bytes(tensor: Tensor) -> list[str]:
    return json.loads(tensor.numpy().tobytes())
