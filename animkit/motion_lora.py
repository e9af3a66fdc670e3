"""Section 4.3: MotionLoRA learns one shot type (zoom, pan, tilt, roll) from a few dozen clips.

    Q = W_Q z + alpha * A B^T z      and K, V, output likewise, in the motion module's temporal self-attentions

The letters are the paper's, as in domain_adapter.py. Several MotionLoRAs add up, each with its own alpha: shot types combine.
"""
from animkit.errors import AnimkitError
from animkit.inflation import VideoUNet
from animkit.lora import LoRA
from animkit.motion_module import MotionModules

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def is_target(path: str) -> bool:
    """Every projection of both temporal self-attentions."""
    return ".attention_blocks." in path and path.endswith(tuple(f".{projection}" for projection in PROJECTIONS))


def new_motion_lora(modules: MotionModules | VideoUNet, rank: int = 64, seed: int = 0) -> LoRA:
    """A fresh MotionLoRA (4.3) for motion modules, or for those of a VideoUNet; the release has rank 64. Then:
    video_unet.insert(lora). AnimkitError if there are no motion modules."""
    modules = getattr(modules, "motion", modules)
    if modules is None:
        raise AnimkitError("there is no motion module to make a MotionLoRA for: insert one first")
    return LoRA.for_module(modules, is_target, rank, seed=seed)
