"""Single videos: frames from a file or its bytes, and a count of the videos that cannot be used."""
import io
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from animkit.errors import AnimkitError


class BadVideo(Exception):
    """One video cannot be used, and why. Code that reads many videos notes it and continues."""


def read_frames(source: str | Path | bytes, frames: int, stride: int,
                rng: np.random.Generator | None = None) -> torch.Tensor:
    """`frames` frames of a video, every `stride`-th: uint8 c f h w. rng draws where they start; without it, at the first.

    Raises BadVideo for a video that cannot be decoded, has no frames, or fewer than (frames - 1) * stride + 1.
    """
    span = (frames - 1) * stride + 1
    if not isinstance(source, bytes) and not Path(source).exists():
        raise BadVideo("no such file")
    reason = ""
    for read in (_decord, _pyav):  # decord refuses some valid videos (widths of 48, 72, 96 ...: its issue 336)
        try:
            length, get = read(source)
            if length >= span:
                start = 0 if rng is None else int(rng.integers(length - span + 1))
                video = get(range(start, start + span, stride))  # f h w c
                return torch.from_numpy(video).permute(3, 0, 1, 2)
            reason = f"{length} frames, {span} needed ({frames} at stride {stride})" if length else "no frames"
            break
        except Exception as error:  # decoders raise any kind of error on damaged files, and little else runs here
            reason = f"unreadable ({(str(error).strip() or type(error).__name__).splitlines()[0][:120]})"
    raise BadVideo(reason)


def _decord(source):
    """(number of frames, function from frame numbers to uint8 f h w c)."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1)
    return len(reader), lambda numbers: reader.get_batch(list(numbers)).asnumpy()


def _pyav(source):
    """The same by PyAV, for where decord fails or is missing. It must decode a whole video to know its length, and decodes
    it once more for the frames, of which it keeps no others: all of a long video's are larger than memory."""
    import av

    def pictures() -> Iterator[Any]:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
            stream = next(iter(container.streams.video), None)  # a recording that stopped at once has none
            yield from container.decode(stream) if stream else ()

    def get(numbers: range) -> np.ndarray:
        return np.stack([np.rot90(f.to_ndarray(format="rgb24"), round(f.rotation / 90))  # turned upright, anticlockwise
                         for n, f in enumerate(islice(pictures(), numbers[-1] + 1)) if n in numbers])

    return sum(1 for _ in pictures()), get


def resize_and_crop(video: torch.Tensor, size: tuple[int, int], rng: np.random.Generator | None = None) -> torch.Tensor:
    """c f h w -> c f `size`: resized (antialiased) until it just covers `size`, then cut at the centre or where rng says."""
    h, w = video.shape[-2:]
    scale = max(size[0] / h, size[1] / w)
    h, w = max(size[0], round(h * scale)), max(size[1], round(w * scale))
    if (h, w) != tuple(video.shape[-2:]):
        video = F.interpolate(video.transpose(0, 1), (h, w), mode="bilinear", antialias=True).transpose(0, 1)
    top, left = ((h - size[0]) // 2, (w - size[1]) // 2) if rng is None else (
        int(rng.integers(h - size[0] + 1)), int(rng.integers(w - size[1] + 1)))
    return video[..., top:top + size[0], left:left + size[1]].contiguous()


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in 8-bit RGB: 16-bit grey is scaled (Pillow would clip it), transparency is put on white."""
    if image.mode.startswith("I"):  # 0 .. 65535
        image = PIL.Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def to_float(video: torch.Tensor) -> torch.Tensor:
    """uint8 0 .. 255 -> float32 -1 .. 1."""
    return video.float() / 127.5 - 1


SOME = 20  # names in an error


class Skipped:
    """Counts the videos that cannot be used; stops the run when they are over a tenth. Threads may share it.

    With up to 10,000 videos it is a tenth of all. With more it is a tenth of those tried, counted as 10,000 at least: a
    large bad set stops the run early, a few bad videos that lie together do not. A stream knows the number of its videos
    (`known`) only after the first epoch; until then it is a tenth of those tried, counted as 100 at least.
    """
    share = 0.1

    def __init__(self, total: int | None = None):
        self.total, self.tried, self.told, self.why, self._lock = total, 0, 0, {}, threading.Lock()

    def note(self, name: str, why: str | None = None) -> None:
        """Video `name` was tried; `why` it is bad, or None. Raises AnimkitError with the list when too many are."""
        with self._lock:
            self.tried += 1
            if why is not None and name not in self.why:
                self.why[name] = why
                self._judge()

    def known(self, total: int) -> None:
        """The number of all videos is now known: judge by it, even if it is small."""
        with self._lock:
            self.total = total
            self._judge()

    def _judge(self) -> None:
        among = max(self.tried, 100) if self.total is None else min(self.total, max(self.tried, 10_000))
        if len(self.why) > self.share * among:
            names = sorted(self.why)
            if len(names) > SOME:  # all of them first, the error below them: among thousands of lines nobody would find it
                self.report()
            more = [f"  and {len(names) - SOME} more, all named above"] if len(names) > SOME else []
            reasons = ", ".join(f"{count} {why}" for why, count in Counter(self.why.values()).most_common(3))
            raise AnimkitError(f"over {self.share:.0%} of the videos cannot be used ({reasons}), so this run stops. " + "\n".join(
                [self._count(), *(f"  {name}: {self.why[name]}" for name in names[:SOME]), *more]))

    def __len__(self) -> int:
        return len(self.why)

    def __str__(self) -> str:
        return "\n".join([self._count(), *(f"  {name}: {why}" for name, why in sorted(self.why.items()))])

    def _count(self) -> str:
        tried = self.tried if self.total is None else min(self.tried, self.total)  # later epochs try the same again
        return f"{len(self.why)} of {tried} videos tried cannot be used and were skipped:"

    def report(self) -> None:
        """Name the skipped videos on stderr, if there are any that it did not name yet."""
        if len(self.why) > self.told:
            print(self, file=sys.stderr)
            self.told = len(self.why)
