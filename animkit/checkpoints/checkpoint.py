"""What open_checkpoint returns: what a file is, its weights, and the part of a model that they make."""
from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from animkit.checkpoints.files import short
from animkit.checkpoints.settings import check_sizes
from animkit.errors import AnimkitError

# what diffusers, PEFT and animkit call the one weights file of a folder
IN_FOLDER = ("diffusion_pytorch_model", "pytorch_lora_weights", "adapter_model", "model", "pytorch_model")


def named_by_folder(path: Path) -> bool:
    """Whether a weights file has a usual name (IN_FOLDER), so that only its folder's name says what it is."""
    return path.name.split(".")[0] in IN_FOLDER


@dataclass(eq=False)  # by identity, so that {checkpoint: alpha} works
class Checkpoint:
    """A recognised file. `weights`: its tensors under the file's own names, without wrappers, read lazily, in its dtype."""

    path: Path
    weights: dict[str, Tensor]
    kind: str  # "motion module", "MotionLoRA", "domain adapter", "LoRA", "base model", "UNet", "VAE", "ControlNet"
    version: str        # "v1", "v2", "v3", "sdxl", "lcm"; "sd1", "sd2", "sdxl"; "rank 64"
    format: str         # whose names: "reference", "diffusers", "PEFT", "kohya", "latent diffusion", "animkit"
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    strict: bool = True
    _given: set[int] = field(default_factory=set, repr=False)  # addresses of tensors that a model already has

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    @property
    def name(self) -> str:
        """The part's name once inserted, if no other is given: the file's, without its ending. If that is a usual name
        (IN_FOLDER), the folder's; in the hub's cache, the model's."""
        folder = Path(os.path.abspath(self.path)).parent  # not resolve(): in the hub's cache every file is a link
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            folder = Path(folder.parent.parent.name.split("--")[-1])  # models--ORG--NAME/snapshots/HASH
        own = folder.name if named_by_folder(self.path) else self.path.stem
        return own.replace(".", "_") or "part"

    @property
    def parameters(self) -> int:
        """How many learned numbers the weights hold; sinusoidal positions and a LoRA's alphas are not learned."""
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
        """The part that these weights make, ready for VideoUNet.insert; AnimkitError if it does not fit that UNet.

        Where the dtype is the model's, it holds this checkpoint's own tensors: after training it, open the file again for
        the original ones.
        """
        raise AnimkitError(f"{self.path}: a {self.kind} is not inserted into a UNet by itself.")

    def _hand_out(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors themselves the first time, which saves memory; copies later, so that two models never share."""
        handed = {name: t.clone() if t.data_ptr() in self._given else t for name, t in weights.items()}
        self._given |= {tensor.data_ptr() for tensor in weights.values()}
        return handed

    def _say_left_out(self, what: str) -> None:
        """Warn that a UNet alone takes only its own part of a file."""
        warnings.warn(f"{self.path.name}: {what} not used by a UNet alone; insert it into an Animator to have it too.",
                      stacklevel=4)


def misfit(path: Path, where: str, missing: Iterable[str] = (), left_over: Iterable[str] = (),
           misshapen: Iterable[str] = (), advice: str = "was it made for another model?",
           noun: str = "tensor") -> AnimkitError:
    """The one error of all-or-nothing loading: it names the first ten tensors (or layers) of each sort."""
    parts = []
    for names, what in ((missing, "missing"), (left_over, "left over"), (misshapen, "of another shape")):
        names = list(names)
        if names:
            parts.append(f"{len(names)} {noun}{'s' * (len(names) != 1)} {what}: {first_ten(names)}")
    return AnimkitError(f"{path}: does not fit {where}; {'; '.join(parts)}. Nothing was loaded; {advice}")


def first_ten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f", and {len(names) - 10} more" if len(names) > 10 else "")


def check_numbers(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raises AnimkitError if a weight is not of floating-point numbers, or is empty."""
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            kind = str(tensor.dtype).removeprefix("torch.") if tensor.numel() else "no numbers"
            raise AnimkitError(f"{path}: tensor {name} is of {kind}, and weights are floating-point numbers: the file"
                               " is damaged or quantised; take the model's half-precision file.")


def check_fit(
    path: Path, module: nn.Module, state: Mapping[str, Tensor], advice: str = "was it made for another model?"
) -> None:
    """Raises AnimkitError unless state has exactly the module's tensors, in name and shape."""
    own = module.state_dict()
    wrong = [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
             for k in own if k in state and own[k].shape != state[k].shape]
    missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
    if missing or extra or wrong:
        raise misfit(path, type(module).__name__, missing, extra, wrong, advice)


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load state, which fits, into module without a second copy: the module takes these very tensors."""
    module.load_state_dict(state, assign=True)
    # assign=True keeps the file's dtype, and requires_grad as the parameters had it before
    module.requires_grad_(True).eval()


def make_module(
    path: Path,
    part: str,
    model: type,
    config: Any,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    beside: bool = False,
) -> nn.Module:
    """The part, built without memory and then filled with the file's tensors, which are cast one at a time if another
    dtype is asked for. beside: the config comes from a file beside the weights, so its sizes are checked first."""
    from accelerate import init_empty_weights

    check_numbers(path, state)
    if beside:
        check_sizes(path, config, state)
    with torch.device("meta"):  # shapes alone: what does not fit is refused before any memory is taken
        shapes = _construct(path, part, model, config)
    if any(name.startswith("text_model.") for name in shapes.state_dict()):  # the prefix depends on the version of transformers
        state = {
            name if name.startswith("text_projection") else f"text_model.{name}": tensor
            for name, tensor in state.items()
        }
    check_fit(path, shapes, state, "its structure is not that of Stable Diffusion 1.x, 2.x or XL.")
    with init_empty_weights():  # again, for buffers that are in no file: CLIP's position_ids
        module = _construct(path, part, model, config)
    fill(module, {name: tensor.to(dtype or tensor.dtype) for name, tensor in state.items()})
    return module


def _construct(path: Path, part: str, model: type, config: Any) -> nn.Module:
    try:
        return model.from_config(config) if hasattr(model, "from_config") else model(config)
    except Exception as error:  # libraries raise many kinds of errors for settings that contradict each other
        raise AnimkitError(f"{path}: no {part} can be made by its config ({short(error)}); fetch both again.") from None
