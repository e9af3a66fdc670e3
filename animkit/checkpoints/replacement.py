"""A personalised model with all weights of its own (a full fine-tune), as a part that is inserted, scaled and removed:

    W + sum_k alpha_k (W_k - W)        alpha = 1 is the personalised model itself, exactly; 0 the base, exactly
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from animkit.checkpoints.checkpoint import check_numbers, misfit
from animkit.errors import AnimkitError


class Replacement(nn.Module):
    """Weights that replace a model's own; `attach` as in animkit.lora.LoRA. They are data, not parameters."""

    def __init__(self, path: Path, state: Mapping[str, Tensor]):
        super().__init__()
        self.path, self.state = path, dict(state)

    def attach(self, root: nn.Module, *_others: nn.Module, alpha: float = 1.0) -> ReplacementAtWork:
        """Set these weights on `root`, all or nothing. Raises AnimkitError if a name or a shape differs."""
        return ReplacementAtWork(root, self.pairs(root), alpha)

    def pairs(self, root: nn.Module) -> dict[str, tuple[nn.Parameter, Tensor]]:
        """Each parameter of `root`, by name, with the weight for its place. Raises AnimkitError as attach does."""
        check_numbers(self.path, self.state)
        own = {name.replace(".base_layer", ""): p for name, p in root.named_parameters() if ".lora_" not in name}
        wrong = [f"{n} {tuple(self.state[n].shape)} for {tuple(own[n].shape)}"
                 for n in own if n in self.state and own[n].shape != self.state[n].shape]
        missing, extra = [n for n in own if n not in self.state], [n for n in self.state if n not in own]
        if missing or extra or wrong:
            raise misfit(self.path, f"this {type(root).__name__}", missing, extra, wrong)
        return {name: (own[name], tensor) for name, tensor in self.state.items()}


class ReplacementAtWork:
    """A replacement on its model: `alpha` is live, `remove()` gives every parameter its own tensor back."""

    def __init__(self, root: nn.Module, pairs: Mapping[str, tuple[nn.Parameter, Tensor]], alpha: float):
        self.root, self.pairs = root, dict(pairs)
        self.alpha = alpha

    @property
    def alpha(self) -> float:
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._check_unfused()
        self._alpha = float(value)
        for name, (parameter, tensor) in self.pairs.items():
            # of the root, so that a copy has its own: name -> (the parameter's own tensor, {replacement: (tensor, alpha)})
            own, at_work = self.root.__dict__.setdefault("_replaced", {}).setdefault(name, (parameter.data, {}))
            at_work[self] = (tensor, self._alpha)
            _mix(parameter, own, at_work)

    def remove(self) -> None:
        self._check_unfused()
        for name, (parameter, _) in self.pairs.items():
            own, at_work = self.root._replaced[name]
            at_work.pop(self, None)
            _mix(parameter, own, at_work)
            if not at_work:
                del self.root._replaced[name]
        if self.pairs and not self.root._replaced:
            del self.root._replaced
        self.pairs = {}

    def _check_unfused(self) -> None:
        if any(hasattr(layer, "_fused") for layer in self.root.modules()):
            raise AnimkitError(
                "a LoRA is fused into the weights that are to be replaced: unfuse() it first, or its original is lost"
            )


@torch.no_grad()
def _mix(parameter: nn.Parameter, own: Tensor, replacements: Mapping[ReplacementAtWork, tuple[Tensor, float]]) -> None:
    at_work = [(tensor, alpha) for tensor, alpha in replacements.values() if alpha != 0]
    if not at_work:
        mixed = own
    elif len(at_work) == 1 and at_work[0][1] == 1:
        mixed = at_work[0][0]
    else:
        base = own.to(torch.float32)
        mixed = base + sum(alpha * (tensor.to(base.device, torch.float32) - base) for tensor, alpha in at_work)
    # .data, so that the parameter itself (and what refers to it) stays the same object
    parameter.data = mixed.to(device=parameter.device, dtype=parameter.dtype)
