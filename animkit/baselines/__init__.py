"""The methods that the paper compares with (5.2), and two that bound the comparison; each is called as an Animator is.

    from animkit import baselines
    for name, method in baselines.methods(animator, tune_on=(clip, "a red ball by the sea, bouncing")).items():
        clip = method("a blue cat by the sea, bouncing", seed=0)
"""
from typing import Any

from .baseline import Baseline
from .text2video_zero import Text2VideoZero
from .trivial import IndependentFrames, RepeatedStill
from .tune_a_video import TuneAVideo

__all__ = ["Baseline", "IndependentFrames", "RepeatedStill", "Text2VideoZero", "TuneAVideo", "methods"]


def methods(animator: Any = "miniature", tune_on: tuple[Any, str] | None = None, **tuning) -> dict[str, Baseline]:
    """Name -> method, all on one animator's base and looks; Tune-a-Video only if there is a (clip, caption) to tune on.

    tuning: further arguments of TuneAVideo (steps, lr, seed, folder). The animator itself, the paper's method, is not
    among them. Raises AnimkitError as they do.
    """
    made: list[Baseline] = [Text2VideoZero(animator)]
    if tune_on is not None:
        made.append(TuneAVideo(made[0], *tune_on, **tuning))
    made += [IndependentFrames(made[0]), RepeatedStill(made[0])]
    return {method.method: method for method in made}
