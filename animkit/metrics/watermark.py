"""How much of the web videos' watermark a clip shows (5.3): 100 as the training videos, 0 as clean pictures.

    r(clip) = corr(H mean_i x_i, H m)         x: luminance of the frames, m: the mark, H: detail as fine as the mark
    score   = 100 (r - mean r(clean)) / (mean r(web) - mean r(clean))

Three steps keep the scene out of it. The mean over frames keeps what stands still and blurs what moves. H takes away a
Gaussian blur (wide areas), then divides by the local contrast (so that one strong edge counts no more than a faint
mark). Scenery may still correlate by chance (a horizon beside the mark's bars): so the clean pictures' r is subtracted.
"""
import numpy as np

from ..errors import AnimkitError
from .frames import grey, pixels

WIDTH = 0.05  # of the blur, in picture sides: a little wider than the mark's strokes
FAINT = 0.02  # contrast, in parts of white, below which nothing is amplified


def fine(picture: np.ndarray) -> np.ndarray:
    """H: a picture h w (0 to 1) less its blur, divided by the local contrast of what is left."""
    import cv2

    sigma = WIDTH * picture.shape[0]
    high = picture - cv2.GaussianBlur(picture, (0, 0), sigma)
    contrast = np.sqrt(cv2.GaussianBlur(high * high, (0, 0), sigma))
    return high / (contrast + FAINT)


def mark_correlation(clip, mark: np.ndarray | None = None) -> float:
    """r above, -1 to 1, of a clip (Clip or f h w 3, uint8) with a mark h w (None: the cartoon world's own).

    A picture without any fine detail has r = 0. Raises AnimkitError for frames that are not the mark's size.
    """
    frames = pixels(clip)
    if mark is None:
        from ..world import watermark
        if frames.shape[1] != frames.shape[2]:
            raise AnimkitError(f"The cartoon world's mark is square; these frames are {frames.shape[2]} x "
                               f"{frames.shape[1]}: give the mark that they may show.")
        mark = watermark(frames.shape[1])
    mark = np.asarray(mark, np.float32)
    if mark.shape != frames.shape[1:3]:
        raise AnimkitError(f"The mark is h w, {frames.shape[1:3]} as the frames are; got {mark.shape}.")
    seen, known = fine(grey(frames).mean(0, dtype=np.float32) / 255), fine(mark)
    seen, known = seen - seen.mean(), known - known.mean()
    scale = float(np.sqrt((seen ** 2).sum() * (known ** 2).sum()))
    return float((seen * known).sum()) / scale if scale > 1e-6 else 0.0


def watermark_score(clips, web, clean, mark: np.ndarray | None = None) -> np.ndarray:
    """A number for each of n clips: 100 where it correlates with the mark as web videos do on average, 0 as clean ones.

    web, clean: lists of some tens of clips, best of the same scenes. Single clips scatter by +-30 and more: report the
    mean of many with its interval (intervals.bootstrap). Raises AnimkitError if web does not exceed clean.
    """
    if not len(web) or not len(clean):
        raise AnimkitError(f"The watermark's scale wants web and clean clips; got {len(web)} and {len(clean)}.")
    full, none = (float(np.mean([mark_correlation(clip, mark) for clip in known])) for known in (web, clean))
    if full - none < 0.05:
        raise AnimkitError(f"The web videos correlate with the mark no more than the clean ones ({full:.2f} and "
                           f"{none:.2f}): exchange the two, or give the mark that they show.")
    return np.array([100 * (mark_correlation(clip, mark) - none) / (full - none) for clip in clips])
