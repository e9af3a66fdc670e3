"""A clip without its camera's move (4.3): what is left moves by itself, so that an object's motion can be judged.

    steady_k(p) = frame_k(A_k A_m^-1 p)      A_k the camera's similarity from frame 0 to k, m the middle frame

A place that the camera does not see in frame k takes its mean over the frames that see it: nothing changes there.
"""
import numpy as np

from ..errors import AnimkitError
from .camera import CameraPath, camera_path
from .frames import pixels


def stabilised(clip, path: CameraPath | None = None) -> np.ndarray:
    """The clip (Clip or f h w 3, uint8) as its middle frame's camera would have seen it; path: known, or estimated.

    Raises AnimkitError under 2 frames, or for a path of another length.
    """
    import cv2

    frames = pixels(clip, least=2)
    path = camera_path(frames) if path is None else path
    f, h, w, _ = frames.shape
    if any(len(of) != f for of in path[:4]):  # zoom, x, y, angle
        raise AnimkitError(f"The path of {f} frames has as many zooms, x, y and angles; got "
                           f"{', '.join(str(len(of)) for of in path[:4])}.")
    unit, matrices = min(h, w) / 2, [_matrix(path, k) for k in range(f)]
    to_units = np.array([[1 / unit, 0, -(w - 1) / 2 / unit], [0, -1 / unit, (h - 1) / 2 / unit], [0, 0, 1]])
    steady, seen = [], []
    for frame, matrix in zip(frames, matrices):
        there = np.linalg.inv(to_units) @ matrix @ np.linalg.inv(matrices[f // 2]) @ to_units  # pixel -> pixel
        how = {"dsize": (w, h), "flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP}
        steady.append(cv2.warpAffine(frame, there[:2], borderMode=cv2.BORDER_REPLICATE, **how))
        seen.append(cv2.warpAffine(np.ones((h, w), np.float32), there[:2], **how) > 0.99)
    steady, seen = np.stack(steady).astype(np.float32), np.stack(seen)[..., None]
    known = np.maximum(seen.sum(0), 1)
    mean = np.where(seen.any(0), (steady * seen).sum(0) / known, steady.mean(0))
    return (np.where(seen, steady, mean) + 0.5).clip(0, 255).astype(np.uint8)


def _matrix(path: CameraPath, k: int) -> np.ndarray:
    """A_k, 3 3: z R(angle) (p - c)."""
    turn = path.zoom[k] * np.array([[np.cos(path.angle[k]), -np.sin(path.angle[k])],
                                    [np.sin(path.angle[k]), np.cos(path.angle[k])]])
    centre = np.array([path.x[k], path.y[k]])
    return np.vstack([np.column_stack([turn, -turn @ centre]), [0, 0, 1]])
