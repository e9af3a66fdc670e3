"""One function for every weights file: open_checkpoint says what it is; its result goes into VideoUNet or Animator."""
from animkit.checkpoints.door import open_checkpoint
from animkit.checkpoints.save import save_checkpoint

__all__ = ["open_checkpoint", "save_checkpoint"]
