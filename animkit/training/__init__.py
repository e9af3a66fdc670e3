"""Training: one loop (`fit`), resumable and on accelerate, and three losses that read like the paper's formulas."""
from animkit.training.draws import randint, randn, shard
from animkit.training.ema import EMA
from animkit.training.history import History
from animkit.training.loop import LoopConfig, fit

__all__ = ["EMA", "History", "LoopConfig", "fit", "randint", "randn", "shard"]
