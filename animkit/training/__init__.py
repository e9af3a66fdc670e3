"""Training: one loop (`fit`), resumable and on accelerate, and three losses that read like the paper's formulas."""
from importlib import import_module

# Public name -> the module that holds it; imported on first use, since accelerate takes its time.
_PUBLIC = {
    "fit": "loop", "LoopConfig": "loop", "History": "history", "EMA": "ema", "LiveCurve": "live",
    "domain_adapter_loss": "losses", "motion_module_loss": "losses", "motion_lora_loss": "losses",
    "denoising_loss": "losses", "load_config": "config", "randn": "draws", "rand": "draws", "randint": "draws",
    "shard": "draws", "train_domain_adapter": "stages", "train_motion_module": "stages", "train_motion_lora": "stages",
    "train_look": "stages",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"animkit.training.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'animkit.training' has no attribute {name!r}")
