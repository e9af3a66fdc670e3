"""web_video(scene): what WebVid gives instead of a clean picture: soft, low in contrast, compressed, and with a watermark."""

import io

import numpy as np
from PIL import Image, ImageFilter

from .render import Footage, render
from .scene import Scene
from .sdf import box, segment, union


def watermark(size: int) -> np.ndarray:
    """The mark, h w, 0 to 1: two white bars about the word "kit", across the middle of the picture."""
    x, y = np.meshgrid((np.arange(size) + 0.5) * 2 / size - 1, 1 - (np.arange(size) + 0.5) * 2 / size)
    s = 0.045
    k = union(
        segment(x, y, -0.42, -0.2, -0.42, 0.24, s),
        segment(x, y, -0.42, -0.02, -0.16, 0.16, s),
        segment(x, y, -0.3, 0.02, -0.14, -0.2, s),
    )
    i = union(segment(x, y, 0.06, -0.2, 0.06, 0.08, s), segment(x, y, 0.06, 0.22, 0.06, 0.23, s))
    t = union(segment(x, y, 0.34, -0.2, 0.34, 0.24, s), segment(x, y, 0.2, 0.1, 0.48, 0.1, s))
    d = union(k, i, t, box(x, y, 0, 0.4, 0.62, 0.03), box(x, y, 0, -0.36, 0.62, 0.03))
    return np.clip(0.5 - d * size / 2, 0, 1).astype(np.float32)


def degrade(rgb: np.ndarray, mark: float = 0.45, quality: int = 40) -> np.ndarray:
    """Pictures (f h w 3, 0 to 1) as a stock-footage site shows them; mark: strength of the watermark, quality: of the JPEG."""
    size = rgb.shape[1]
    m = watermark(size)[None, ..., None] * mark
    out = []
    for frame in (0.5 + (rgb - 0.5) * 0.72 + 0.03) * (1 - m) + 0.95 * m:
        picture = Image.fromarray((np.clip(frame, 0, 1) * 255).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(size / 64 * 0.55)
        )
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file), np.float32) / 255)
    return np.stack(out)


def web_video(scene: Scene, frames: int = 16, size: int = 64, **how) -> Footage:
    """render(scene), degraded; mask, depth, flow and camera stay exact."""
    footage = render(scene, frames, size)
    footage.rgb = degrade(footage.rgb, **how)
    return footage
