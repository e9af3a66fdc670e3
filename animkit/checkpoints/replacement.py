"""A personalised model with all weights of its own (a full fine-tune), as a part that is inserted, scaled and removed:

    W + sum_k alpha_k (W_k - W)        alpha = 1 is the personalised model itself, exactly; 0 the base, exactly
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from animkit.checkpoints.checkpoint import check_numbers, misfit
from animkit.errors import AnimkitError
from animkit import lora as low_rank

# parameter -> (its own tensor, {key of a replacement at work: (tensor, alpha)}). Keys, not the replacements: these refer
# to their model, and so an entry would keep its own parameter alive.
_REPLACED = WeakIdKeyDictionary()


class Replacement(nn.Module):
    """Weights that replace a model's own; `attach` as in animkit.lora.LoRA. They are data, not parameters."""

    def __init__(self, path: Path, state: Mapping[str, Tensor]):
        super().__init__()
        self.path, self.state = path, dict(state)

    def attach(self, root: nn.Module, *_others: nn.Module, alpha: float = 1.0) -> ReplacementAtWork:
        """Set these weights on `root`, all or nothing. Raises AnimkitError if a name or a shape differs."""
        return ReplacementAtWork(root, self.pairs(root), alpha)

    def pairs(self, root: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter of `root` with the weight that is to take its place. Raises AnimkitError as attach does."""
        check_numbers(self.path, self.state)
        own = {name.replace(".base_layer", ""): p for name, p in root.named_parameters() if ".lora_" not in name}
        wrong = [f"{n} {tuple(self.state[n].shape)} for {tuple(own[n].shape)}"
                 for n in own if n in self.state and own[n].shape != self.state[n].shape]
        missing, extra = [n for n in own if n not in self.state], [n for n in self.state if n not in own]
        if missing or extra or wrong:
            raise misfit(self.path, f"this {type(root).__name__}", missing, extra, wrong)
        return [(own[name], tensor) for name, tensor in self.state.items()]


class ReplacementAtWork:
    """A replacement on its model: `alpha` is live, `remove()` gives every parameter its own tensor back."""

    def __init__(self, root: nn.Module, pairs: list[tuple[nn.Parameter, Tensor]], alpha: float):
        self.root, self.pairs, self._key = root, pairs, object()
        self.alpha = alpha

    @property
    def alpha(self) -> float:
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._check_unfused()
        self._alpha = float(value)
        for parameter, tensor in self.pairs:
            _REPLACED.setdefault(parameter, (parameter.data, {}))[1][self._key] = (tensor, self._alpha)
            _mix(parameter)

    def remove(self) -> None:
        self._check_unfused()
        for parameter, _ in self.pairs:
            _REPLACED[parameter][1].pop(self._key, None)
            _mix(parameter)
            if not _REPLACED[parameter][1]:
                del _REPLACED[parameter]
        self.pairs = []

    def _check_unfused(self) -> None:
        if any(layer in low_rank._FUSED for layer in self.root.modules()):
            raise AnimkitError(
                "a LoRA is fused into the weights that are to be replaced: unfuse() it first, or its original is lost"
            )


@torch.no_grad()
def _mix(parameter: nn.Parameter) -> None:
    own, others = _REPLACED[parameter]
    at_work = [(tensor, alpha) for tensor, alpha in others.values() if alpha != 0]
    if not at_work:
        mixed = own
    elif len(at_work) == 1 and at_work[0][1] == 1:
        mixed = at_work[0][0]
    else:
        base = own.to(torch.float32)
        mixed = base + sum(alpha * (tensor.to(base.device, torch.float32) - base) for tensor, alpha in at_work)
    # .data, so that the parameter itself (and what refers to it) stays the same object
    parameter.data = mixed.to(device=parameter.device, dtype=parameter.dtype)
