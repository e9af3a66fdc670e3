"""Small test videos written with PyAV; every frame's brightness says which frame it is."""
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest


def frame(number: int, size=(32, 48), tint=0) -> np.ndarray:
    """Frame `number`: brightness 10 * number, the left half darker by `tint`."""
    picture = np.full((*size, 3), 10 * number % 256, np.uint8)
    picture[:, :size[1] // 2] -= np.uint8(min(tint, int(picture.max())))
    return picture


def write_video(path: Path, frames: int, size=(32, 48), tint=0, codec="libx264") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options={"crf": "5", "g": "6"})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        container.start_encoding()  # so that a video without frames is a file with a header
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number, size, tint), format="rgb24")))
        if frames:
            container.mux(stream.encode())
    return path


def numbers(video) -> list[int]:
    """Which frames these are: video c f h w, uint8 or -1 .. 1."""
    bright = video.float() if video.dtype.is_floating_point is False else (video + 1) * 127.5
    return [round(v / 10) for v in bright.mean(dim=(0, 2, 3)).tolist()]


@pytest.fixture(scope="session")
def videos():
    return SimpleNamespace(write=write_video, numbers=numbers)
