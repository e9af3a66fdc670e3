"""Clips streamed out of WebDataset shards (tar files): for sets too large for the disk."""
import glob
import json
import re
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from datasets import IterableDataset, Video
from datasets.distributed import split_dataset_by_node
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from animkit.data.batches import collate
from animkit.data.tables import VIDEOS
from animkit.data.video import BadVideo, Skipped
from animkit.data.video_clips import ClipRecipe
from animkit.errors import AnimkitError
from animkit.training.draws import rank_and_world, seed_at


class _Undecoded(WebDataset):
    """The shards of `datasets`, with captions as bytes: one that cannot be read then spoils its own sample, not the stream."""
    DECODERS: dict = {}


def open_shards(shards: str | list[str], *, seed: int = 0, shuffle: int = 100,
                rank: int = 0, world: int = 1) -> IterableDataset:
    """Samples of WebDataset shards as a stream: `video` (encoded bytes: nothing is decoded), `caption`, `key`, `shard`.

    shards: tar files or addresses, as a list, a glob pattern, or with a range such as clips-{000..127}.tar. A sample is
    a video with a caption of the same name: .txt, or .json with "caption" or "text" (what cannot be read as one stays
    bytes). shuffle: the shards come in random order, and a buffer of so many (encoded) samples is drawn from; 0: in order.
    Process `rank` of `world` gets its share, split again among the workers of a torch DataLoader: together they get every
    sample exactly once. If the number of shards is a multiple of `world`, each shard is read by one process alone. Raises
    AnimkitError for shards that are absent or damaged, or have no video or no caption.
    """
    patterns = [shards] if isinstance(shards, (str, Path)) else shards
    files = [file for pattern in patterns for file in _expanded(str(pattern))]
    try:
        as_they_are = [file if "://" in file else glob.escape(file) for file in files]  # datasets takes each for a pattern
        stream = _Undecoded(data_files={"train": as_they_are}).as_streaming_dataset(split="train")
        columns = list(stream.features)
    except Exception as error:  # datasets, tarfile and the file systems below all have errors of their own
        raise AnimkitError(f"the shards {shards} cannot be read: {error}") from error
    video = next((c for c in columns if "." + c.lower() in VIDEOS), None)
    caption = next((c for c in ("txt", "json") if c in columns), None)
    if video is None or caption is None:
        raise AnimkitError(f"the samples of {shards} need a video ({', '.join(VIDEOS)}) and a caption (.txt or .json); "
                           f"they have {', '.join(c for c in columns if not c.startswith('__'))}")

    def plain(sample: dict) -> dict:
        text = sample[caption]
        if text is not None:
            try:
                text = text.decode("utf-8-sig") if caption == "txt" else json.loads(text)
            except (ValueError, RecursionError):  # not UTF-8, or no JSON
                pass
        if isinstance(text, dict):
            both = [text.get(name) for name in ("caption", "text")]
            text = next((t for t in both if t), next((t for t in both if t is not None), None))  # "" if neither says more
        return {"video": (sample[video] or {}).get("bytes"), "caption": text,
                "key": sample["__key__"], "shard": sample["__url__"]}

    columns = [video, caption, "__key__", "__url__"]  # what else is in a sample, such as sound, would be decoded
    stream = stream.select_columns(columns).cast_column(video, Video(decode=False))
    if shuffle:
        stream = stream.shuffle(seed=seed, buffer_size=shuffle)
    return split_dataset_by_node(stream, rank, world).map(plain, remove_columns=columns)


class StreamClips:
    """The batch(k, generator) of `training.loop.fit` over WebDataset shards; settings as for open_shards and ClipRecipe.

    Batch k is a function of the settings, (seed, k) and the process. A run that starts at k > 0 skips the samples before
    it without decoding them. A video that cannot be used is replaced by a later one, counted, and named at the end.
    Raises AnimkitError when these are over a tenth.
    """

    def __init__(self, shards: str | list[str], batch: int, *, seed: int = 0, shuffle: int = 100, workers: int = 1,
                 **recipe):
        self.recipe = ClipRecipe(**recipe)
        self.shards, self.batch, self.seed, self.shuffle = shards, batch, seed, shuffle
        self.skipped = Skipped()
        self._samples, self._ahead, self._place = None, deque(), 0  # _place: the first of _ahead
        self._pool = ThreadPoolExecutor(workers) if workers > 1 else None
        weakref.finalize(self, self.skipped.report)

    def __call__(self, k: int, generator: torch.Generator | None = None) -> dict:
        if self._samples is None or k * self.batch < self._place:
            self._samples, self._place = _endless(self.shards, self.seed, self.shuffle, self.skipped), 0
            self._ahead.clear()
        for _ in range(k * self.batch - self._place):
            self._look(0)
            self._ahead.popleft()
        self._look(self.batch - 1)
        clips = list((self._pool.map if self._pool else map)(self._clip, [self._ahead[i] for i in range(self.batch)]))
        clips, extra = [c for c in clips if c is not None], self.batch
        while len(clips) < self.batch:  # replace bad ones by samples ahead, which also stay in batch k + 1
            clip = self._clip(self._look(extra))
            clips += [clip] if clip is not None else []
            extra += 1
        for _ in range(self.batch):
            self._ahead.popleft()
        self._place = (k + 1) * self.batch
        return collate(clips)

    def _look(self, i: int) -> tuple[int, dict]:
        """The i-th sample ahead, with its epoch."""
        while len(self._ahead) <= i:
            self._ahead.append(next(self._samples))
        return self._ahead[i]

    def _clip(self, sample: tuple[int, dict]) -> dict | None:
        epoch, sample = sample
        name = f"{sample['shard']}: {sample['key']}"
        rng = np.random.default_rng([self.seed, epoch, seed_at(sample["key"])])
        try:
            if sample["video"] is None or sample["caption"] is None:
                raise BadVideo("no video" if sample["video"] is None else "no caption")
            if not isinstance(sample["caption"], str):
                raise BadVideo("caption is no UTF-8 or no JSON" if isinstance(sample["caption"], bytes) else "caption is no text")
            video = self.recipe.cut(sample["video"], rng)
        except BadVideo as why:
            return self.skipped.note(name, str(why))
        self.skipped.note(name)
        return {"video": video, "caption": sample["caption"], "key": sample["key"]}


def _endless(shards: str | list[str], seed: int, shuffle: int, skipped: Skipped) -> Iterator[tuple[int, dict]]:
    """(epoch, sample), without end. Not a method of StreamClips: that would make a reference cycle, which only the garbage
    collector ends. It may run while a thread starts; then the threads that `datasets` ends here would wait for ever."""
    rank, world = rank_and_world()  # here, not in __init__: the training loop sets up the processes later
    stream = open_shards(shards, seed=seed, shuffle=shuffle, rank=rank, world=world)
    epoch = 0
    while True:
        stream.set_epoch(epoch)
        count, sample = 0, None
        try:
            for count, sample in enumerate(stream, start=1):
                yield epoch, sample
        except AnimkitError:
            raise
        except Exception as error:
            at = f"after {sample['key']} of {sample['shard']}" if sample else f"at the start of {shards}"
            raise AnimkitError(f"the shards cannot be read on, {at}: {error}; mend what comes there, or leave that shard out"
                               ) from error
        if not count:
            raise AnimkitError(f"process {rank} of {world} gets no sample out of {shards}: use fewer processes")
        skipped.known(count)
        epoch += 1


def _expanded(pattern: str) -> list[str]:
    """clips-{000..127}.tar and clips-*.tar -> the files; an address (with ://) is kept as it is."""
    numbers = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if numbers:
        first, last = numbers.groups()
        return [file for n in range(int(first), int(last) + 1)
                for file in _expanded(pattern.replace(numbers[0], str(n).zfill(len(first)), 1))]
    if "://" in pattern:
        return [pattern]
    path = Path(pattern)
    files = [path] if path.exists() else glob.glob(pattern) or path.parent.glob(path.name)  # a folder may be called "clips [2024]"
    if not (found := sorted(map(str, files))):
        raise AnimkitError(f"no such shard: {pattern}")
    return found
