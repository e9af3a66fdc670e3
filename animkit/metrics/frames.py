"""What every metric takes: a clip's frames, checked."""
import numpy as np

from ..errors import AnimkitError


def pixels(clip, least: int = 1) -> np.ndarray:
    """Frames f h w 3, uint8, of a Clip, an array or a list of pictures; AnimkitError for anything else or too few."""
    if not hasattr(clip, "__array__"):
        clip = list(clip) if np.iterable(clip) else [clip]
        if len({np.shape(picture) for picture in clip}) > 1:
            raise AnimkitError("The frames of this clip differ in size: bring them to one size first.")
        clip = np.stack([np.asarray(picture) for picture in clip]) if clip else np.empty(0)
    frames = np.asarray(clip)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise AnimkitError(f"A metric takes a clip's frames as uint8 of shape (frames, height, width, 3); these are "
                           f"{frames.dtype} of shape {frames.shape}.")
    if len(frames) < least:
        raise AnimkitError(f"This metric needs {least} frames at least; the clip has {len(frames)}.")
    return frames


def stacked(clips) -> np.ndarray:
    """Clips n f h w 3, uint8, for a judge that sees them at once; AnimkitError for none, or where they differ in shape."""
    clips = [pixels(clip) for clip in clips]
    if len(shapes := {clip.shape[:3] for clip in clips}) != 1:
        said = ", ".join(f"{f} frames of {w} x {h}" for f, h, w in sorted(shapes))
        raise AnimkitError(f"A judge takes one clip at least, and all of one length and size; these have {said or 'none'}.")
    return np.stack(clips)


def grey(frames: np.ndarray) -> np.ndarray:
    """Luminance f h w, uint8 (ITU-R BT.601, as OpenCV has it), of frames f h w 3."""
    import cv2

    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in np.ascontiguousarray(frames)])
