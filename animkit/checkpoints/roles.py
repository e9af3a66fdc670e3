"""Files given by role (motion module, domain adapter, looks, MotionLoRAs), opened and checked for that role."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from animkit.base import find_checkpoint
from animkit.checkpoints.checkpoint import Checkpoint
from animkit.checkpoints.door import open_checkpoint
from animkit.errors import AnimkitError
from animkit.insertion import checked_alpha

# role -> (the kinds of file that can take it, what to call it), in the order of insertion: MotionLoRAs need motion modules
ROLES = {"motion": (("motion module",), "a motion module"),
         "adapter": (("domain adapter", "LoRA"), "a domain adapter"),
         "looks": (("LoRA", "domain adapter", "base model", "UNet"), "a look"),
         "motion_loras": (("MotionLoRA",), "a MotionLoRA")}


def open_roles(strict: bool = True, **given: Any) -> dict[str, tuple[Checkpoint, float]]:
    """{name: (checkpoint, alpha)} in the order of insertion.

    Each role: a path, a list of paths, {path: alpha}, or None. Raises AnimkitError for a file in the wrong role.
    """
    parts = []
    for role, (kinds, what) in ROLES.items():
        for path, alpha in _with_alpha(role, given.get(role)):
            checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(find_checkpoint(path), strict=strict)
            if checkpoint.kind not in kinds:
                raise AnimkitError(f"{checkpoint.path}: given as {what} ({role}=), but it is a {checkpoint.kind}.")
            parts.append((checkpoint, checked_alpha(alpha, checkpoint.name)))
    if sum(checkpoint.kind == "motion module" for checkpoint, _ in parts) > 1:
        raise AnimkitError("motion= takes one motion module; several do not add up, unlike LoRAs.")
    if parts and any(c.kind == "MotionLoRA" for c, _ in parts) and parts[0][0].kind != "motion module":
        raise AnimkitError("motion_loras= act on a motion module and there is none; give one as motion=.")
    named: dict[str, tuple[Checkpoint, float]] = {}
    for checkpoint, alpha in parts:  # files of the same name, in two folders: ink, ink-2
        own = checkpoint.name
        named[next(n for i in count(1) if (n := own if i == 1 else f"{own}-{i}") not in named)] = checkpoint, alpha
    return named


def _with_alpha(role: str, given: Any) -> list[tuple[Any, float]]:
    if given is None:
        return []
    alone = isinstance(given, (str, Path, Checkpoint)) or not isinstance(given, Iterable)
    pairs = list(given.items()) if isinstance(given, Mapping) else [(p, 1.0) for p in ([given] if alone else given)]
    for path, _ in pairs:
        if not isinstance(path, (str, Path, Checkpoint)):
            raise AnimkitError(f"{role}= takes a file's path, a list of them or {{path: alpha}}, not {path!r:.80}; "
                               "what you hold already goes into animator.insert().")
    return pairs
