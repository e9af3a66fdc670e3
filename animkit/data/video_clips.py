"""VideoClips: clips for training out of a folder of videos or a WebVid table."""
import hashlib
import weakref
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from datasets import Dataset

from animkit.data import camera
from animkit.data.tables import video_table, webvid_table
from animkit.data.video import BadVideo, Skipped, read_frames, resize_and_crop, to_float
from animkit.errors import AnimkitError


class VideoClips:
    """Clips of `frames` frames at a stride, resized and cropped: clips[i] is {"video": c f h w, "caption": str, "index": int}.

    source: a folder of videos, a WebVid CSV (then `videos` is its folder), or a Dataset with `video` (paths) and `caption`.
    size: side, or (height, width), in pixels. start: "random" place in the video or "first" frame. crop: "centre" or "random".
    shot: a shot type of `camera`, made by moving the crop (4.3), by `amount` or an amount drawn between (low, high).
    flip: mirror half of the clips. Off unless asked for: captions ("to the left"), pans and rolls depend on left and right.
    dtype: torch.float32 (-1 .. 1) or torch.uint8.

    What get(i, epoch) gives is a function of (seed, epoch, i) alone. A video that cannot be used gives way to the next one that
    can, is counted and is named at the end (`skipped`). Raises AnimkitError when these are over a tenth of the videos.
    """

    def __init__(self, source: str | Path | Dataset, *, videos: str | Path | None = None, size: int | tuple[int, int] = 256,
                 frames: int = 16, stride: int = 4, start: Literal["random", "first"] = "random",
                 crop: Literal["centre", "random"] = "centre", shot: str | None = None,
                 amount: float | tuple[float, float] = 0.3, flip: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0):
        shot = camera.shot_name(shot) if shot else None
        if frames < 1 or stride < 1:
            raise AnimkitError(f"frames and stride must be at least 1, got {frames} and {stride}")
        if start not in ("random", "first") or crop not in ("centre", "random") or dtype not in (torch.float32, torch.uint8):
            raise AnimkitError(f"start is random or first, crop is centre or random, dtype is float32 or uint8; got {start}, {crop}, {dtype}")
        if flip and shot and shot.split()[0] in ("pan", "roll"):
            raise AnimkitError(f"flip=True would turn half of the clips of {shot!r} into {camera.OPPOSITE[shot]!r}: leave it off")
        if shot and crop == "random":
            raise AnimkitError(f"crop='random' and shot={shot!r} both place the crop: choose one")
        self.table = source if isinstance(source, Dataset) else (
            webvid_table(source, videos or Path(source).parent) if str(source).endswith(".csv") else video_table(source))
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.frames, self.stride, self.start, self.crop, self.shot = frames, stride, start, crop, shot
        self.amount, self.flip, self.dtype, self.seed = amount, flip, dtype, seed
        self.skipped = Skipped(len(self.table))
        weakref.finalize(self, self.skipped.report)  # at the end of the run, or of this object

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.get(index)

    def get(self, index: int, epoch: int = 0) -> dict:
        """Clip `index` as it is in this epoch; where its video is bad, that of the next usable one."""
        for step in range(len(self)):
            clip = self.try_get((index + step) % len(self), epoch)
            if clip is not None:
                return clip
        raise AnimkitError(f"none of the videos can be used. {self.skipped}")

    def try_get(self, index: int, epoch: int = 0) -> dict | None:
        """Clip `index`, or None (and noted) where its video is bad."""
        row = self.table[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            video = read_frames(row["video"], self.frames, self.stride, rng if self.start == "random" else None)
        except BadVideo as why:
            self.skipped.note(row["video"], str(why))
            return None
        self.skipped.note(row["video"])
        return {"video": self._picture(video, rng), "caption": row["caption"], "index": index}

    def _picture(self, video: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Full frames uint8 c f h w -> what this set of clips gives; draws from rng in a fixed order."""
        if self.shot:
            amount = self.amount if isinstance(self.amount, (int, float)) else float(rng.uniform(*self.amount))
            path = camera.crop_path(self.shot, self.frames, amount, aspect=self.size[1] / self.size[0])
            video = camera.apply(video, path, self.size)
        else:
            video = resize_and_crop(video, self.size, rng if self.crop == "random" else None)
        if self.flip and rng.random() < 0.5:
            video = video.flip(-1)
        return video if self.dtype == torch.uint8 else to_float(video)

    def fingerprint(self) -> str:
        """A hash of the files (name, length, time of change), captions and settings: equal where the clips are equal."""
        settings = (self.size, self.frames, self.stride, self.start, self.crop, self.shot, self.amount, self.flip, self.seed)
        digest = hashlib.sha256(repr(settings).encode())
        for row in self.table:
            path = Path(row["video"])
            stat = path.stat() if path.exists() else None
            digest.update(repr((path.name, stat and (stat.st_size, stat.st_mtime_ns), row["caption"])).encode())
        return digest.hexdigest()
