"""A clip: the frames that an animator drew, with what is needed to watch them, keep them and make them again."""
from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import shutil
import tempfile
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Iterator

import av
import numpy as np
import PIL.Image
from av.video.reformatter import ColorRange, Colorspace
from PIL.PngImagePlugin import PngInfo

from animkit.errors import AnimkitError
from animkit.files import write_atomically

SEEN_AT = 256  # pixels; a smaller clip is enlarged by whole numbers to at least this before it becomes a film


class Clip:
    """Frames `array` (f h w 3, uint8) shown at `fps` frames a second; `prompt` and `settings` make it again.

    Plays at the end of a notebook cell. `clip[0]` is a PIL image, `clip[4:8]` or `clip[[0, 5]]` a Clip; `clip[:, 8:24]`
    and `np.asarray(clip)` are arrays.
    Raises AnimkitError when the frames are not f h w 3 uint8, or fps is not positive.
    """

    crf = 16  # of H.264 films: the eye sees no loss; 28 makes files a third as large, for a page with many

    def __init__(self, frames: Any, fps: float = 8, prompt: str = "", settings: dict | None = None):
        if not isinstance(frames, np.ndarray):
            pictures = [np.asarray(f) for f in (frames if np.iterable(frames) else [frames])]
            if len(shapes := {picture.shape for picture in pictures}) > 1:
                raise AnimkitError(f"A clip's frames have one shape; these have {', '.join(map(str, sorted(shapes)))}.")
            frames = np.stack(pictures) if pictures else np.empty((0, 0, 0, 3), np.uint8)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
            raise AnimkitError(f"A clip's frames are uint8 of shape (frames, height, width, 3) and at least one; these "
                               f"are {frames.dtype} of shape {frames.shape}: give RGB without alpha, 0 to 255, the colours last.")
        if not isinstance(fps, Real) or not 0 < fps < math.inf:
            raise AnimkitError(f"A clip's fps is a number above 0; got {fps!r}.")
        fps = fps if isinstance(fps, int) else float(fps)  # libraries do not take numpy's numbers
        self.array, self.fps, self.prompt, self.settings = frames, fps, prompt, dict(settings or {})

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: Any) -> PIL.Image.Image | Clip | np.ndarray:
        if isinstance(index, tuple) or index is None or index is Ellipsis:
            return self.array[index]
        if isinstance(index, Integral):
            return PIL.Image.fromarray(self.array[index])
        if not len(self.array[index]):
            raise AnimkitError(f"No frame of {len(self)} is left by the index {index}.")
        kept = np.array(self.settings.get("frames_kept", range(len(self))))[index]  # a part knows which part it is
        return Clip(self.array[index], self.fps, self.prompt, {**self.settings, "frames_kept": kept.tolist()})

    def __iter__(self) -> Iterator[PIL.Image.Image]:
        return (PIL.Image.fromarray(frame) for frame in self.array)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)

    # ---- keeping

    def save(self, path: str | os.PathLike, scale: int | None = None) -> Path:
        """Write `.mp4`, `.gif`, `.webp` or, for a path without suffix or ending in /, a folder of PNG frames.

        scale enlarges every pixel to scale x scale (nearest neighbour). None: films of small clips grow to at least
        256 px, PNG frames stay as they are; `Clip.load` undoes it. The file holds the prompt and settings, and appears
        only when whole.
        Raises AnimkitError for another suffix, a scale below 1, or a folder that holds anything but a clip's frames.
        """
        text, path = os.fspath(path), Path(path)
        if scale is not None and (scale != int(scale) or scale < 1):
            raise AnimkitError(f"scale is a whole number of at least 1; got {scale}.")
        suffix = "" if text.endswith(("/", os.sep)) else path.suffix.lower()
        if not suffix:
            return self._save_frames(path, int(scale or 1))
        if suffix not in _FILMS:
            raise AnimkitError(f"Cannot save a clip as '{path.name}': the suffix is one of {', '.join(_FILMS)}, or "
                               f"none for a folder of PNG frames.")
        if suffix == ".gif" and self.fps > 100:
            raise AnimkitError(f"A GIF counts in hundredths of a second, and this clip shows {self.fps:g} frames in one second: "
                               "save it as .mp4 or .webp, or show it more slowly, Clip(clip, fps=25).")
        content = self.encode(suffix, scale)
        return write_atomically(path, lambda beside: Path(beside).write_bytes(content))

    def encode(self, suffix: str, scale: int | None = None) -> bytes:
        """The clip as the bytes of a film: `.mp4` (H.264, yuv420p), `.gif` or `.webp` (lossless)."""
        scale = int(scale or self.enlargement)
        how = {"crf": self.crf} if suffix == ".mp4" else {}
        return _FILMS[suffix](enlarge(self.array, scale), self.fps, self._note(scale), **how)

    @property
    def enlargement(self) -> int:
        """The whole number by which a small clip grows to be seen at 256 px or more."""
        return max(1, math.ceil(SEEN_AT / max(self.array.shape[1:3])))

    def _note(self, scale: int) -> str:
        note = {"prompt": self.prompt, "fps": self.fps, "scale": scale, "size": self.array.shape[1:3],
                "frames": len(self), "settings": self.settings}
        return "animkit " + json.dumps(note, default=_plain)  # ASCII: all that GIF comments and PNG text are sure to know

    def _save_frames(self, folder: Path, scale: int) -> Path:
        if folder.exists() and (not folder.is_dir() or not all(_is_ours(file) for file in folder.iterdir())):
            raise AnimkitError(f"'{folder}' is there already and is not a folder of a clip's frames: choose another "
                               f"name.")
        info, shown, folder = PngInfo(), folder, folder.resolve()  # resolved: a link to a folder stays one
        info.add_text("comment", self._note(scale))
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        except OSError as error:
            raise AnimkitError(f"could not write {folder}: {error.strerror}.") from error
        old = beside.with_name(f"{beside.name}.old")
        try:
            os.chmod(beside, 0o755)  # mkdtemp makes it private
            for i, frame in enumerate(enlarge(self.array, scale)):
                PIL.Image.fromarray(frame).save(beside / f"frame_{i:04d}.png", pnginfo=info)
            if folder.exists():  # the old frames go only when the new ones have their place
                os.replace(folder, old)
            os.replace(beside, folder)
        except OSError as error:
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            raise AnimkitError(f"could not write {folder}: {error.strerror or error}.") from error
        finally:
            for left in (beside, old):
                shutil.rmtree(left, ignore_errors=True)
        return shown

    @classmethod
    def load(cls, path: str | os.PathLike, fps: float | None = None) -> Clip:
        """Read a film (anything PyAV reads), a GIF, a WebP, or a folder of pictures in the order of their names.

        A film that a Clip saved comes back at its own size, with prompt and settings; one that another program has
        resized or cut since, at its present size. Transparent parts become white. fps overrides the file's.
        Raises AnimkitError when there is nothing there, or it cannot be read.
        """
        path = Path(path)
        if not path.exists():
            raise AnimkitError(f"There is no clip at '{path}'.")
        try:
            if path.is_dir():
                read = _read_folder
            else:
                read = _read_pillow if path.suffix.lower() in (".gif", ".webp", ".png") else _read_video
            frames, own_fps, note = read(path)
        except (OSError, ValueError, av.FFmpegError) as error:
            raise AnimkitError(f"'{path}' could not be read as a clip: {error}") from error
        if not len(frames):
            raise AnimkitError(f"'{path}' holds no frames.")
        if note:
            (h, w), k = note["size"], note["scale"]
            if frames.shape[1] - h * k in (0, 1) and frames.shape[2] - w * k in (0, 1):  # else it has been resized since
                frames = frames[:, k // 2:h * k:k, k // 2:w * k:k]  # the middle of each enlarged pixel, less the edge added
        note = note or {"prompt": path.stem, "settings": {}}
        return cls(np.ascontiguousarray(frames), fps or note.get("fps") or own_fps, note["prompt"], note["settings"])

    # ---- showing

    @property
    def alt(self) -> str:
        """The description for someone who cannot see the clip."""
        return f"Clip of {len(self)} frames at {self.fps:g} frames a second: {self.prompt or 'no prompt'}"

    def __repr__(self) -> str:
        _, h, w, _ = self.array.shape
        seed = f", seed {self.settings['seed']}" if "seed" in self.settings else ""
        return f"Clip: {len(self)} frames of {w} x {h} pixels at {self.fps:g} frames a second, {self.prompt!r}{seed}"

    def _repr_html_(self) -> str:
        from animkit.show.filmstrip import filmstrip
        n = min(8, max(3, 2400 // (self.array.shape[2] * self.enlargement)))  # as many as fit across a page
        stills = filmstrip(self, n)
        stills.lossy = self.enlargement == 1  # frames of full size, where no pixel was enlarged
        return f"<figure>{self._film()}{stills._img()}</figure>"

    def _film(self) -> str:
        # A bare src= on <video> survives the cleaning of an untrusted notebook; <source> and scripts do not, and of the
        # two names for a screen reader only title=. No autoplay: motion starts when the reader asks for it.
        alt, k = html.escape(self.alt, quote=True), self.enlargement
        _, h, w, _ = self.array.shape
        film = base64.b64encode(self.encode(".mp4")).decode()
        return (f'<video controls loop muted playsinline width="{w * k}" height="{h * k}" style="max-width: 100%; height: auto" '
                f'aria-label="{alt}" title="{alt}" src="data:video/mp4;base64,{film}">{alt}</video>'
                f"<figcaption>{html.escape(self._caption())}</figcaption>")

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    def _caption(self) -> str:
        said = [f"{key} {self.settings[key]}" for key in ("seed", "steps", "guidance") if key in self.settings]
        return ", ".join([f"“{self.prompt}”" if self.prompt else f"{len(self)} frames", *said])


# ---- pixels and files


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Every pixel of ... h w c becomes scale x scale equal pixels."""
    return frames if scale == 1 else frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _mp4(frames: np.ndarray, fps: float, note: str, crf: int) -> bytes:
    _, h, w, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")  # yuv420p wants even sizes
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as film:
        film.metadata["comment"] = note
        stream = film.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        # Name the colour matrix that is used (ITU-R BT.601, 16..235): players guess differently where it is not named.
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            film.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601)))
        film.mux(stream.encode())
    return buffer.getvalue()


def _gif(frames: np.ndarray, fps: float, note: str) -> bytes:
    # One palette for the whole film: a palette per frame flickers.
    f, h, w, _ = frames.shape
    palette = PIL.Image.fromarray(frames.reshape(f * h, w, 3)).quantize(256)
    pictures = [PIL.Image.fromarray(x).quantize(palette=palette, dither=PIL.Image.Dither.NONE) for x in frames]
    return _pillow(pictures, "GIF", fps, comment=note.encode())


def _webp(frames: np.ndarray, fps: float, note: str) -> bytes:
    return _pillow([PIL.Image.fromarray(x) for x in frames], "WEBP", fps, lossless=True, xmp=note.encode())


def _pillow(pictures: list[PIL.Image.Image], format: str, fps: float, **options) -> bytes:
    buffer = io.BytesIO()
    pictures[0].save(buffer, format, save_all=True, append_images=pictures[1:], duration=_milliseconds(format, fps),
                     loop=0, **options)
    return buffer.getvalue()


def _milliseconds(format: str, fps: float) -> int:
    """How long a file of this format shows each frame: a GIF counts in hundredths of a second."""
    return round(100 / fps) * 10 if format == "GIF" else max(1, round(1000 / fps))


_FILMS = {".mp4": _mp4, ".gif": _gif, ".webp": _webp}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)  # numpy's numbers stay numbers


def _is_ours(file: Path) -> bool:
    """Whether this is a frame that a clip saved; others name theirs frame_0001.png too, and those must not go."""
    try:
        with PIL.Image.open(file) as picture:
            return file.match("frame_*.png") and _read_note(picture.info.get("comment", "")) is not None
    except (OSError, ValueError):
        return False


def _read_note(text: str | bytes) -> dict | None:
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return json.loads(text.removeprefix("animkit ")) if text.startswith("animkit {") else None


def _read_video(path: Path) -> tuple[np.ndarray, float, dict | None]:
    with av.open(str(path)) as film:
        if not film.streams.video:
            raise ValueError("it holds no pictures")
        frames = [np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # as a phone was held
                  for frame in film.decode(video=0)]
        fps = float(film.streams.video[0].average_rate or 8)
        return np.array(frames), fps, _read_note(film.metadata.get("comment", ""))


def _read_pillow(path: Path) -> tuple[np.ndarray, float, dict | None]:
    from animkit.data.video import to_rgb

    with PIL.Image.open(path) as film:
        note = _read_note(film.info.get("comment") or film.info.get("xmp") or "")
        frames, shown = [], []
        for i in range(getattr(film, "n_frames", 1)):
            film.seek(i)
            frames.append(np.asarray(to_rgb(film)))
            shown.append(film.info.get("duration") or 125)  # milliseconds
        each = _milliseconds(film.format, note["fps"]) if note else min(shown)
    fps = note["fps"] if note else 1000 / each
    if len(frames) == 1 and note:  # a WebP of equal frames is a still, which has no duration
        return np.repeat(frames, note.get("frames", 1), axis=0), fps, note
    # Both formats write equal neighbours once, for longer: give each frame its own place again.
    return np.repeat(np.stack(frames), [max(1, round(ms / each)) for ms in shown], axis=0), fps, note


def _read_folder(path: Path) -> tuple[np.ndarray, float, dict | None]:
    from animkit.data.video import to_rgb

    files = sorted(f for f in path.iterdir() if f.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    frames, note = [], None
    for file in files:
        with PIL.Image.open(file) as picture:
            note = note if frames else _read_note(picture.info.get("comment", ""))
            frames.append(np.asarray(to_rgb(picture)))
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError("its pictures differ in size")
    return np.array(frames), 8, note
