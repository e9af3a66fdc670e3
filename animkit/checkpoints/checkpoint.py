"""What open_checkpoint returns: what a file is, its weights, and the part of a model that they make."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from animkit.errors import AnimkitError


@dataclass
class Checkpoint:
    """A recognised file. `weights`: its tensors under the file's own names, wrappers taken off, lazily read, in the
    file's dtype."""

    path: Path
    weights: dict[str, Tensor]
    kind: str  # "motion module", "MotionLoRA", "domain adapter", "LoRA", "base model", "UNet", "VAE", "ControlNet"
    version: str        # "v1", "v2", "v3", "sdxl", "lcm"; "sd1", "sd2", "sdxl"; "rank 64"
    format: str         # whose names: "reference", "diffusers", "PEFT", "kohya", "latent diffusion", "animkit"
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    strict: bool = True
    _given: bool = field(default=False, repr=False)

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    @property
    def name(self) -> str:
        """What the part is called once inserted, unless another name is asked for: the file's own, without its
        ending."""
        return self.path.stem.replace(".", "_")

    @property
    def parameters(self) -> int:
        """How many learned numbers the weights hold: sinusoidal positions and a LoRA's alphas are none."""
        return sum(
            tensor.numel() for name, tensor in self.weights.items() if not name.endswith((".pe", ".alpha", ".scale"))
        )

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in self.weights.values()}))

    def describe(self) -> str:
        """One line: what the file is, in whose naming, how many tensors and numbers, in which dtype."""
        size = sum(tensor.nbytes for tensor in self.weights.values())
        return (f"{self.path.name}: {self.kind} {self.version}, {self.format} naming, {len(self.weights)} tensors, "
                f"{self.parameters:,} parameters, {'/'.join(self.dtypes)}, {size / 1e6:,.1f} MB")

    def build(self, video_unet: nn.Module | None = None) -> nn.Module:
        """The part that these weights make, ready for VideoUNet.insert; AnimkitError if it does not fit that UNet."""
        raise AnimkitError(f"{self.path}: a {self.kind} is not inserted into a UNet by itself.")

    def _hand_out(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors themselves the first time, so that nothing is held twice; copies later, so that two models never
        share."""
        first, self._given = not self._given, True
        return {name: tensor if first else tensor.clone() for name, tensor in weights.items()}


def misfit(path: Path, where: str, missing: Iterable[str] = (), left_over: Iterable[str] = (),
           misshapen: Iterable[str] = (), advice: str = "was it made for another model?") -> AnimkitError:
    """The one error of all-or-nothing loading: it names the first ten tensors of each sort."""
    parts = []
    for names, what in ((missing, "missing"), (left_over, "left over"), (misshapen, "of another shape")):
        names = list(names)
        if names:
            more = f", and {len(names) - 10} more" if len(names) > 10 else ""
            parts.append(f"{len(names)} tensors {what}: {', '.join(names[:10])}{more}")
    return AnimkitError(f"{path}: does not fit {where}; {'; '.join(parts)}. Nothing was loaded; {advice}")


def fit(
    path: Path,
    module: nn.Module,
    state: Mapping[str, Tensor],
    advice: str = "was it made for another model?",
    names: Mapping[str, str] | None = None,
) -> None:
    """Loads state into module, all or nothing, without a second copy: the module takes the tensors over as they are.

    names: module's name of a tensor -> the file's, for the message.
    """
    own, names = module.state_dict(), names or {}
    wrong = [f"{names.get(k, k)} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
             for k in own if k in state and own[k].shape != state[k].shape]
    missing, extra = [names.get(k, k) for k in own if k not in state], [names.get(k, k) for k in state if k not in own]
    if missing or extra or wrong:
        raise misfit(path, type(module).__name__, missing, extra, wrong, advice)
    module.load_state_dict(state, assign=True)
    # assign=True makes parameters that want gradients of whatever stood there; integers and floats alike keep the
    # file's dtype
    module.requires_grad_(True).eval()


def make_module(
    path: Path, part: str, model: type, config: Any, state: Mapping[str, Tensor], dtype: torch.dtype | None
) -> nn.Module:
    """The part on no memory of its own, then the file's tensors in their places, cast one at a time if another dtype
    is asked."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        module = model.from_config(config) if hasattr(model, "from_config") else model(config)
    if any(name.startswith("text_model.") for name in module.state_dict()):  # transformers has it with and without
        state = {
            name if name.startswith("text_projection") else f"text_model.{name}": tensor
            for name, tensor in state.items()
        }
    fit(path, module, {name: tensor.to(dtype or tensor.dtype) for name, tensor in state.items()},
        advice="its structure is not that of Stable Diffusion 1.x, 2.x or XL.")
    return module
