"""Captioned images, for a look: the paper's personalised models are trained on such folders."""
import hashlib
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from datasets import Dataset

from animkit.data.tables import image_table
from animkit.data.video import resize_and_crop, to_float, to_rgb
from animkit.errors import AnimkitError

UNREADABLE = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)  # what Pillow raises on files it cannot or will not read


class Images:
    """Captioned images resized and cropped: images[i] is {"image": c h w in -1 .. 1, "caption": str, "index": int}.

    source: a folder (see `tables.image_table`) or a Dataset with `image` and `caption`. size: side, or
    (height, width), in pixels. Transparent parts become white.
    crop: "centre" or "random". flip: mirror half of the images; off by default, since captions may say left or right.
    get(i, epoch) depends on the settings and (seed, epoch, i) alone. Raises AnimkitError, which names the image, for one
    that cannot be read.
    """

    def __init__(self, source: str | Path | Dataset, *, size: int | tuple[int, int] = 512, crop: str = "centre",
                 flip: bool = False, seed: int = 0):
        if crop not in ("centre", "random"):
            raise AnimkitError(f"crop is centre or random, got {crop!r}")
        self.table = source if isinstance(source, Dataset) else image_table(source)
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.crop, self.flip, self.seed = crop, flip, seed

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.get(index)

    def get(self, index: int, epoch: int = 0) -> dict:
        """Image `index` with the crop and flip of this epoch."""
        try:
            row = self.table[index]
            pixels = torch.from_numpy(np.array(to_rgb(row["image"]))).permute(2, 0, 1)  # h w c -> c h w
        except UNREADABLE as error:
            raise AnimkitError(f"image {self._name(index)} cannot be read ({error}): mend it or take it out") from None
        rng = np.random.default_rng([self.seed, epoch, index])
        pixels = resize_and_crop(pixels[:, None], self.size, rng if self.crop == "random" else None)[:, 0]
        if self.flip and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        return {"image": to_float(pixels), "caption": row["caption"], "index": index}

    def _name(self, index: int) -> str:
        return self._encoded()[index]["image"]["path"] or f"number {index}"

    def _encoded(self) -> Dataset:
        from datasets import Image
        return self.table.cast_column("image", Image(decode=False))

    def fingerprint(self) -> str:
        """A hash of the images' bytes, captions and settings: equal where the images are equal."""
        digest = hashlib.sha256(repr((self.size, self.crop, self.flip, self.seed, "to_rgb")).encode())
        for row in self._encoded():
            data = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
            digest.update(hashlib.sha256(data).digest() + row["caption"].encode())
        return digest.hexdigest()
