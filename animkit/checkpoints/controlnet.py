"""ControlNets on disk (5.4): in diffusers' naming, or in the original one, alone or beside a whole Stable Diffusion."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from animkit.checkpoints.architecture import count, or_damaged, own_settings, unet_config, version_by_text
from animkit.checkpoints.checkpoint import Checkpoint, make_module
from animkit.checkpoints.original_naming import controlnet_state
from animkit.errors import AnimkitError


class ControlNetCheckpoint(Checkpoint):
    """A ControlNet, in diffusers' or the original naming."""

    def build(self, video_unet: nn.Module | None = None) -> nn.Module:
        if video_unet is not None:
            raise AnimkitError(
                f"{self.path}: a ControlNet stands beside the UNet, not in it: insert it into an Animator, or make it "
                "with .controlnet() and give its output to the video UNet, as down_block_additional_residuals and "
                "mid_block_additional_residual."
            )
        return self.controlnet()

    def controlnet(self, dtype: torch.dtype | None = None) -> nn.Module:
        """A diffusers ControlNetModel with these weights (5.4), in the file's dtype or in `dtype`."""
        from diffusers import ControlNetModel

        state = controlnet_state(self.path, self.weights)
        own = own_settings(self.config)
        config = own or or_damaged(self.path, "ControlNet", controlnet_config, state)
        return make_module(
            self.path, "ControlNet", ControlNetModel, config, self._hand_out(state), dtype, bool(own)
        )


def controlnet_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """ControlNetModel's config, read off its weights."""
    hints = range(count(state, "controlnet_cond_embedding.blocks."))
    widths = [state[f"controlnet_cond_embedding.blocks.{i}.weight"].shape[0] for i in hints if i % 2 == 1]
    first = state["controlnet_cond_embedding.conv_in.weight"]
    return {
        **unet_config(state),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if count(state, "mid_block.attentions.") else "UNetMidBlock2D",
        "conditioning_embedding_out_channels": [first.shape[0], *widths],
        "conditioning_channels": first.shape[1],
    }


def recognise(path: Path, weights: dict[str, Tensor], metadata: Mapping, config: Mapping) -> Checkpoint | None:
    """A ControlNetCheckpoint if these are a ControlNet's weights."""
    diffusers = any("controlnet_down_blocks." in name for name in weights)
    if not diffusers and not any(name.startswith(("control_model.", "input_hint_block.")) for name in weights):
        return None
    if "difference" in weights:  # marks a file of differences from Stable Diffusion 1.5's weights
        raise AnimkitError(f"{path}: this ControlNet holds differences from its base's weights, not weights; take its "
                           "ordinary version (control_v11p_... without diff in its name).")
    if "lora_controlnet" in weights:
        raise AnimkitError(f"{path}: this is a control-LoRA, which adds to a copy of its base, and no whole ControlNet; "
                           "take an ordinary ControlNet for this base.")
    naming = "diffusers" if diffusers else "latent diffusion"
    others = sum(not name.startswith("control_model.") for name in weights)
    notes = []
    if 0 < others < len(weights):
        notes.append(f"{others} other tensors (the Stable Diffusion around it) are left out")
    return ControlNetCheckpoint(path, weights, "ControlNet", version_by_text(weights), naming, dict(config), notes)
