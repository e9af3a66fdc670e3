"""VideoClips: clips for training from a folder of videos or a WebVid table."""
import hashlib
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from datasets import Dataset

from animkit.data import camera
from animkit.data.tables import video_path, video_table, webvid_table
from animkit.data.video import BadVideo, Skipped, read_frames, resize_and_crop, to_float
from animkit.errors import AnimkitError


@dataclass(frozen=True)
class ClipRecipe:
    """How a clip is cut out of a video. Raises AnimkitError for settings that make no sense or contradict each other."""
    size: int | tuple[int, int] = 256                 # side, or (height, width), in pixels
    frames: int = 16
    stride: int = 4                                   # every fourth frame of the video (the paper's training)
    start: Literal["random", "first"] = "random"      # where in the video
    crop: Literal["centre", "random"] = "centre"
    shot: str | None = None                           # a shot type of `camera`, made by moving the crop (4.3)
    amount: float | tuple[float, float] = 0.3         # of that move; (low, high): drawn between these for each clip
    flip: bool = False                                # mirror half of the clips; captions, pans, rolls depend on left and right
    dtype: torch.dtype = torch.float32                # in -1 .. 1; or torch.uint8, in 0 .. 255

    def __post_init__(self):
        for name, choices in (("start", ("random", "first")), ("crop", ("centre", "random")),
                              ("dtype", (torch.float32, torch.uint8))):
            if getattr(self, name) not in choices:
                raise AnimkitError(f"{name} is {' or '.join(map(str, choices))}, not {getattr(self, name)!r}")
        if self.frames < 1 or self.stride < 1 or min(self.height_width) < 1:
            raise AnimkitError("frames, stride and size must be at least 1, "
                               f"got {self.frames}, {self.stride} and {self.size}")
        if self.shot:
            shot = camera.shot_name(self.shot)
            if self.flip and shot.split()[0] in ("pan", "roll"):
                raise AnimkitError(f"flip=True would turn half of the clips of {shot!r} into "
                                   f"{camera.OPPOSITE[shot]!r}: leave it off")
            if self.crop == "random":
                raise AnimkitError(f"crop='random' and shot={shot!r} both place the crop: choose one")

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    def cut(self, source: str | Path | bytes, rng: np.random.Generator) -> torch.Tensor:
        """A clip c f h w from a video file or its bytes; rng is used in a fixed order. Raises BadVideo."""
        video = read_frames(source, self.frames, self.stride, rng if self.start == "random" else None)
        if self.shot:
            amount = float(rng.uniform(*self.amount)) if isinstance(self.amount, (tuple, list)) else self.amount
            height, width = self.height_width
            path = camera.crop_path(self.shot, self.frames, amount, width / height)
            video = camera.apply(video, path, (height, width))
        else:
            video = resize_and_crop(video, self.height_width, rng if self.crop == "random" else None)
        if self.flip and rng.random() < 0.5:
            video = video.flip(-1)
        return video if self.dtype == torch.uint8 else to_float(video)


class VideoClips:
    """Clips for training from videos: clips[i] is {"video": c f h w, "caption": str, "index": int}.

    source: a folder of videos, a WebVid CSV (its videos are in the folder `videos`, or beside it), or a Dataset with
    the columns `video` (paths) and `caption`, or those of webvid_table.
    recipe: the settings of ClipRecipe: size, frames, stride, start, crop, shot, amount, flip, dtype.

    get(i, epoch) depends on the settings and (seed, epoch, i) alone. A video that cannot be used is replaced by the next
    usable one, counted, and named at the end (`skipped`). Raises AnimkitError when these are over a tenth of the
    videos.
    """

    def __init__(self, source: str | Path | Dataset, *, videos: str | Path | None = None, seed: int = 0, **recipe):
        self.recipe, self.seed = ClipRecipe(**recipe), seed
        if isinstance(source, Dataset):
            self.table, self.videos = source, Path(videos or ".")
            columns = set(source.column_names)
            if not ({"video", "caption"} <= columns or {"videoid", "page_dir", "caption"} <= columns):
                raise AnimkitError("a Dataset of clips needs the columns video and caption; "
                                   f"this one has {', '.join(source.column_names)}")
        elif str(source).endswith(".csv"):
            self.table, self.videos = webvid_table(source), Path(videos or Path(source).parent)
            if not self.videos.is_dir():
                raise AnimkitError(f"no such folder of videos: {self.videos}")
        else:
            self.table, self.videos = video_table(source), None
        self.skipped = Skipped(len(self.table))
        weakref.finalize(self, self.skipped.report)  # at the end of the run, or of this object

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.get(index)

    def get(self, index: int, epoch: int = 0) -> dict:
        """Clip `index` in this epoch; if its video is bad, the clip of the next usable video."""
        for step in range(len(self)):
            clip = self.try_get((index + step) % len(self), epoch)
            if clip is not None:
                return clip
        raise AnimkitError(f"none of the videos can be used. {self.skipped}")

    def try_get(self, index: int, epoch: int = 0) -> dict | None:
        """Clip `index`; if its video is bad, None, and `skipped` notes it."""
        row = self.table[index]
        path = video_path(row, self.videos)
        try:
            video = self.recipe.cut(path, np.random.default_rng([self.seed, epoch, index]))
        except BadVideo as why:
            return self.skipped.note(str(path), str(why))
        self.skipped.note(str(path))
        return {"video": video, "caption": row["caption"], "index": index}

    def note_left_out(self, usable: Iterable[int]) -> None:
        """A cache, maybe of an earlier run, has only the clips `usable`: note the others, so that this run names them too."""
        self.skipped.tried = len(self)
        for index in sorted(set(range(len(self))) - set(usable)):
            self.try_get(index)

    def fingerprint(self) -> str:
        """A hash of the files (name, length, time of change), captions and settings: equal if the clips are equal."""
        digest = hashlib.sha256(repr((self.recipe, self.seed)).encode())
        for row in self.table:
            path = video_path(row, self.videos)
            stat = path.stat() if path.exists() else None
            digest.update(repr((path.name, stat and (stat.st_size, stat.st_mtime_ns), row["caption"])).encode())
        return digest.hexdigest()
