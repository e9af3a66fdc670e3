"""Low-rank adaptation, once for the domain adapter (4.1), MotionLoRA (4.3) and personalised looks:

    y = W x + alpha * scale * B A x,     A: in -> rank, B: rank -> out, B = 0 when fresh      (Hu et al. 2021)

alpha is the paper's; it can change at any time and lie outside 0 to 1. `scale` belongs to the weights: "alpha / rank"
in kohya and PEFT (their alpha is another number), 1 in the AnimateDiff release. Forward hooks add to the outputs of the
base's layers: its weights stay as they are (except after fuse()), and several LoRAs on one layer add up.
"""
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from animkit.errors import AnimkitError
from animkit.files import set_submodule


class LowRank(nn.Module):
    """scale * B A x for one layer: down (A) rank in, up (B) out rank; a convolution's end in its kernel sizes."""

    def __init__(self, down: Tensor, up: Tensor, scale: float = 1.0):
        super().__init__()
        self.down, self.up = nn.Module(), nn.Module()  # so that the weights are named down.weight and up.weight
        self.down.weight, self.up.weight = nn.Parameter(down), nn.Parameter(up)
        self.register_buffer("scale", torch.tensor(float(scale)), persistent=scale != 1)

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        if self.down.weight.device != x.device:  # its model was moved without it (offloading, .to())
            self.to(x.device)
        x = x.to(self.down.weight.dtype)
        if self.down.weight.ndim == 4:
            x = F.conv2d(x, self.down.weight, None, layer.stride, layer.padding, layer.dilation)
            return self.scale * F.conv2d(x, self.up.weight)
        return self.scale * F.linear(F.linear(x, self.down.weight), self.up.weight)

    def delta(self) -> Tensor:
        """scale * B A, in the shape of the layer's weight (4 dimensions for a convolution)."""
        product = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return self.scale * product.reshape(self.up.weight.shape[0], *self.down.weight.shape[1:])


class LoRA(nn.Module):
    """A and B of every adapted layer, by the layer's path.

    In its state dict: <path>.down.weight (A, rank in), <path>.up.weight (B, out rank), and <path>.scale where not 1.
    """

    def __init__(self, layers: Mapping[str, LowRank]):
        super().__init__()
        if not layers:
            raise AnimkitError("a LoRA needs at least one layer; none was given")
        for path, layer in layers.items():
            set_submodule(self, path, layer)
        self.paths = tuple(layers)

    @classmethod
    def for_module(cls, module: nn.Module, targets: Callable[[str], bool] | Iterable[str], rank: int, *, seed: int = 0,
                   scale: float = 1.0, kinds: tuple[type[nn.Module], ...] = (nn.Linear,)) -> "LoRA":
        """A fresh LoRA (no effect yet). targets: a function that accepts paths, or the names that paths may end in.

        kinds: nn.Linear, nn.Conv2d (A has the convolution's kernel, B is 1 x 1: kohya's LoCon) or both.
        """
        if rank < 1:
            raise AnimkitError(f"a LoRA's rank must be at least 1, not {rank}")
        if not isinstance(module, nn.Module):
            raise AnimkitError(f"a LoRA is made for a model, not for {module!r}; of an animator, pass animator.video_unet")
        names = () if callable(targets) else tuple(targets)
        wanted = targets if callable(targets) else lambda path: any(f".{path}".endswith(f".{name}") for name in names)
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for path, layer in module.named_modules():
            path = path.replace(".base_layer", "")  # PEFT wraps a layer: take the one inside, under its old path
            if isinstance(layer, kinds) and ".lora_" not in path and wanted(path):
                if getattr(layer, "groups", 1) != 1:
                    raise AnimkitError(f"{path} is a convolution in {layer.groups} groups, to which a LoRA here cannot "
                                       "add: leave it out of the targets.")
                out, *fan_in = layer.weight.shape  # in; for a convolution: in, height, width
                down = (torch.rand(rank, *fan_in, generator=generator) * 2 - 1) / math.sqrt(math.prod(fan_in))
                layers[path] = LowRank(down, torch.zeros(out, rank, *[1 for _ in fan_in[1:]]), scale)
        if not layers:
            said = " or ".join(kind.__name__ for kind in kinds)
            raise AnimkitError(f"no {said} layer of {type(module).__name__} matches the LoRA's targets"
                               + (f" {', '.join(names)}" if names else "") + ": check the names with named_modules()")
        return cls(layers)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], scale: float | Mapping[str, float] = 1.0) -> "LoRA":
        """A LoRA with these weights; scale (one, or one per path) multiplies <path>.scale, if there is one."""
        paths = [key.removesuffix(".down.weight") for key in state if key.endswith(".down.weight")]
        known = {f"{path}.{end}" for path in paths for end in ("down.weight", "up.weight", "scale")}
        odd = [k for k in state if k not in known] + [f"{p}.up.weight" for p in paths if f"{p}.up.weight" not in state]
        if odd:
            raise AnimkitError(f"{odd[0]} breaks the rule that a LoRA's weights come in pairs <path>.down.weight and "
                               "<path>.up.weight: open other formats with open_checkpoint")
        layers = {}
        for path in paths:
            down, up = state[f"{path}.down.weight"], state[f"{path}.up.weight"]
            if down.shape[0] != up.shape[1]:
                raise AnimkitError(f"{path}.down.weight has rank {down.shape[0]} and its up.weight {up.shape[1]}: the "
                                   "file is damaged, fetch or make it again")
            factor = float(state.get(f"{path}.scale", 1.0)) * (scale[path] if isinstance(scale, Mapping) else scale)
            layers[path] = LowRank(down.clone(), up.clone(), factor)
        return cls(layers)

    def __getitem__(self, path: str) -> LowRank:
        return self.get_submodule(path)

    @property
    def rank(self) -> int:
        return max(self[path].down.weight.shape[0] for path in self.paths)

    def select(self, wanted: Callable[[str], bool]) -> "LoRA":
        """The same weights on fewer layers, e.g. a v2 MotionLoRA without its middle block for a v3 module."""
        return LoRA({path: self[path] for path in self.paths if wanted(path)})

    def attach(self, *roots: nn.Module, alpha: float = 1.0) -> "Attachment":
        """Let this LoRA act on a module (or several: a path is looked up in each); AnimkitError if it does not fit."""
        return Attachment(self, self.layers_in(*roots), alpha)

    def layers_in(self, *roots: nn.Module) -> dict[str, nn.Module]:
        """The layer under each path, in the first root that has it; AnimkitError if one is missing or does not fit."""
        return {path: self._layer(path, roots) for path in self.paths}

    def _layer(self, path: str, roots: tuple[nn.Module, ...]) -> nn.Module:
        for root in roots:
            try:
                layer = root.get_submodule(path)
            except AttributeError:
                continue
            layer = getattr(layer, "base_layer", layer)
            if isinstance(layer, NonDynamicallyQuantizableLinear):  # torch reads its weight and never calls it
                raise AnimkitError(f"{path} is inside torch's MultiheadAttention, which never calls it as a layer: a "
                                   "LoRA would do nothing there; leave it out, with targets or with lora.select")
            attention = root.get_submodule(path.rpartition(".")[0])
            if type(getattr(attention, "processor", None)).__name__.startswith("Fused"):
                raise AnimkitError(f"{path} is fused with its neighbours into one layer, and never called itself: a LoRA "
                                   "would do nothing there; call unet.unfuse_qkv_projections() first")
            if not torch.is_tensor(getattr(layer, "weight", None)):
                raise AnimkitError(f"{path} is a {type(layer).__name__}, which has no weight that a LoRA could add to: the "
                                   "LoRA was made for another model")
            shape, down, up = tuple(layer.weight.shape), self[path].down.weight, self[path].up.weight
            if shape != (up.shape[0], *down.shape[1:]):
                raise AnimkitError(f"this LoRA was made for another base: {path} has shape {shape}, the LoRA is for "
                                   f"{(up.shape[0], *down.shape[1:])}; choose one for this base")
            return layer
        missing = [p for p in self.paths if not any(_has(root, p) for root in roots)]
        raise AnimkitError(f"{len(missing)} of the LoRA's {len(self.paths)} layers are not in the model, the first is "
                           f"{path}; choose one made for this model, or keep some of its layers with lora.select")


def _has(root: nn.Module, path: str) -> bool:
    try:
        return root.get_submodule(path) is not None
    except AttributeError:
        return False


class Attachment:
    """A LoRA at work on a module. `alpha` is read at every call; `remove()` leaves no trace; `fuse()` is optional."""

    def __init__(self, lora: LoRA, layers: Mapping[str, nn.Module], alpha: float):
        self.lora, self.layers, self.fused = lora, dict(layers), False
        self._alpha = float(alpha)
        self._handles = [layer.register_forward_hook(partial(self._add, lora[path]), with_kwargs=True)
                         for path, layer in layers.items()]

    def _add(self, low_rank: LowRank, layer: nn.Module, args: tuple, named: dict, y: Tensor) -> Tensor:
        if self.fused or self._alpha == 0:
            return y
        x = args[0] if args else named["input"]
        return y + (self._alpha * low_rank(x, layer)).to(y.dtype)  # W x + alpha * B A x

    @property
    def alpha(self) -> float:
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        if self.fused:
            raise AnimkitError("this LoRA is fused into the weights with its alpha: unfuse() it before changing alpha")
        self._alpha = float(value)

    def remove(self) -> None:
        """Take the LoRA off; the module is then as before, bit for bit."""
        self.unfuse()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def fuse(self) -> None:
        """W <- W + alpha * scale * B A, in the same tensors: saves the LoRA's time if alpha does not change."""
        if not self.fused:
            deltas = {path: (self._alpha * self.lora[path].delta()).detach().to(layer.weight.device)
                      for path, layer in self.layers.items()}
            self.fused = True
            for path, layer in self.layers.items():
                if not hasattr(layer, "_fused"):
                    layer._fused = (layer.weight.detach().clone(), {})
                layer._fused[1][self] = deltas[path]
                _write(layer)

    def unfuse(self) -> None:
        """Undo fuse() exactly: the weight becomes the kept original plus what else is fused; nothing is subtracted."""
        if self.fused:
            self.fused = False
            for layer in self.layers.values():
                del layer._fused[1][self]
                _write(layer)
                if not layer._fused[1]:
                    del layer._fused


@torch.no_grad()
def _write(layer: nn.Module) -> None:
    weight, deltas = layer._fused  # its own weight, {attachment: what it added}; on the layer, so that copies have theirs
    layer.weight.copy_(sum(deltas.values(), weight.to(torch.float32)) if deltas else weight)
