"""The training data of a stage: from the settings' `data` to batches, from a batch to latents and text."""
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from animkit.data.batches import Batches
from animkit.data.cache import cache_latents, cache_text, encode
from animkit.data.images import Images
from animkit.data.streams import StreamClips
from animkit.data.tables import image_table, video_table, webvid_table
from animkit.data.video_clips import VideoClips
from animkit.data.world_clips import WorldClips
from animkit.errors import AnimkitError
from animkit.prompts import encode_text
from animkit.training.config import DataConfig, WorldConfig
from animkit.training.draws import rank_and_world


class Source:
    """batch(k, generator) for `fit`; tensors(batch) -> (z, text); `empty`: the embedding of ""; `captions`: some."""

    def __init__(self, pipe: Any, clips: Any, data: DataConfig, seed: int, cache: Path, quiet: bool):
        self.pipe, self.size, self.skipped = pipe, (data.size, data.size), getattr(clips, "skipped", None)
        self.clips = clips  # kept: when it is deleted, it names the videos that it skipped
        if data.cache and not isinstance(clips, StreamClips):
            threads = 1 if isinstance(clips, WorldClips) else data.workers  # the world has processes of its own
            latents = cache_latents(pipe.vae, clips, cache, workers=threads, quiet=quiet)
            texts = cache_text(pipe.tokenizer, pipe.text_encoder, latents.captions, cache, quiet=quiet)
            self.batch: Callable = Batches(latents.with_text(texts), data.batch, seed)
            self.count, self.empty, self.captions = len(latents), texts.empty, list(dict.fromkeys(latents.captions))
            if self.skipped is not None and rank_and_world()[0] == 0:
                clips.note_left_out(latents.indices)
        else:
            stream = isinstance(clips, StreamClips)
            self.batch = clips if stream else Batches(clips, data.batch, seed, data.workers)
            self.count, self.empty = None if stream else len(clips), self._text([""])[0].cpu()
            self.captions = clips(0)["caption"] if stream else clips.table.select_columns("caption")[:8]["caption"]

    @torch.no_grad()
    def tensors(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Latents b c f h w and text b n d: those of the cache, or made now."""
        if "latents" in batch:
            return batch["latents"], batch["text"]
        clips = batch["video"] if "video" in batch else batch["image"].unsqueeze(2)  # an image is a clip of one frame
        return torch.stack([encode(self.pipe.vae, clip) for clip in clips]), self._text(batch["caption"])

    @torch.no_grad()
    def _text(self, captions: list[str]) -> Tensor:
        return encode_text(self.pipe, captions, "", False, self.size, self.pipe.unet.device)[0].float()


def videos(data: DataConfig, seed: int, shot: dict) -> Any:
    """Clips of the settings' source; shot: {} or shot, amount and camera (how a shot type is made)."""
    if data.source == "world":
        return _world(data, data.frames, shot)
    _not_of_the_world(data)
    if shot.get("camera") == "scene":
        raise AnimkitError(f"camera: scene moves the camera of the cartoon world; clips from {data.source} get their "
                           "shot type by moving crops: set camera: crop.")
    recipe = dict(size=data.size, frames=data.frames, stride=data.stride, crop=data.crop, flip=data.flip,
                  **{name: value for name, value in shot.items() if name != "camera"})
    if data.videos and not data.source.endswith(".csv"):
        raise AnimkitError(f"data.videos is where the videos of a WebVid .csv lie; {data.source} has its own: leave it out.")
    if data.source.endswith(".tar"):
        if data.count is not None:
            raise AnimkitError(f"data.count does not work with a stream ({data.source}): give fewer shards instead.")
        return StreamClips(data.source, data.batch, seed=seed, workers=data.workers, **recipe)
    table = _exists(data, webvid_table if data.source.endswith(".csv") else video_table)
    folder = Path(data.videos) if data.videos else Path(data.source).parent
    if data.source.endswith(".csv") and not folder.is_dir():
        raise AnimkitError(f"data.videos: there is no folder {folder} with the videos of {data.source}.")
    return VideoClips(table, videos=folder, seed=seed, **recipe)


def images(data: DataConfig, seed: int) -> Any:
    """Captioned images of the settings' source; of the cartoon world, stills."""
    for name in ("frames", "stride"):
        if getattr(data, name) != getattr(DataConfig, name):
            raise AnimkitError(f"data.{name} is of clips, and a look is learned from stills: leave it out.")
    if data.source == "world":
        return _world(data, 1, {})
    _not_of_the_world(data)
    if data.videos or data.source.endswith((".csv", ".tar")):
        raise AnimkitError(f"data.source: a look is learned from a folder of captioned images, not from {data.source}.")
    return Images(_exists(data, image_table), size=data.size, crop=data.crop, flip=data.flip, seed=seed)


def _world(data: DataConfig, frames: int, shot: dict) -> WorldClips:
    if data.count is None:
        raise AnimkitError("data.count: the cartoon world has no end; say how many clips to draw.")
    unused = [name for name, used in {"videos": data.videos, "stride": data.stride != DataConfig.stride,
                                      "flip": data.flip, "crop": data.crop != "centre",
                                      "cache: false": not data.cache}.items() if used]
    if unused:
        raise AnimkitError(f"data.{unused[0]} does nothing in the cartoon world: leave it out, or name another "
                           "source.")
    w = data.world
    return WorldClips(data.count, workers=data.workers, size=data.size, frames=frames, looks=w.looks, web=w.web,
                      moving=w.moving, moves=w.moves, seed=w.seed, **shot)


def _not_of_the_world(data: DataConfig) -> None:
    if data.world != WorldConfig():
        raise AnimkitError(f"data.world says how the cartoon world draws, but data.source is {data.source}: leave one out "
                           "(on the command line: --set data.world=null).")


def _exists(data: DataConfig, table: Callable) -> Any:
    if not Path(data.source).exists():
        raise AnimkitError(f"data.source: there is no file or folder {data.source}; give a folder, a WebVid .csv, .tar "
                           "shards, or world.")
    rows = table(data.source)
    if data.count is None or data.count >= len(rows):
        return rows
    if rank_and_world()[0] == 0:
        print(f"data.count: the first {data.count:,} of {len(rows):,} are taken; null takes all", file=sys.stderr)
    return rows.select(range(data.count))
