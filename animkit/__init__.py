"""animkit: understand, retrain and measure AnimateDiff (arXiv 2307.04725).

    import animkit as ak
    clip = ak.Animator("miniature")("a red balloon over the sea, rising", seed=0)
"""
from importlib import import_module

__version__ = "0.1.0"

# Public name -> the module that holds it; imported on first use, so that `import animkit` is quick.
_PUBLIC = {
    "AnimkitError": "animkit.errors",
    "Animator": "animkit.animator",
    "Clip": "animkit.show.clip",
    "filmstrip": "animkit.show.filmstrip",
    "side_by_side": "animkit.show.filmstrip",
    "inflate": "animkit.inflation",
    "VideoUNet": "animkit.inflation",
    "MotionModule": "animkit.motion_module",
    "MotionModules": "animkit.motion_module",
    "record_attention": "animkit.motion_module",
    "LoRA": "animkit.lora",
    "depth_pictures": "animkit.control",
    "open_checkpoint": "animkit.checkpoints",
    "save_checkpoint": "animkit.checkpoints",
    "new_domain_adapter": "animkit.domain_adapter",
    "new_motion_lora": "animkit.motion_lora",
    "VideoClips": "animkit.data.video_clips",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'animkit' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
