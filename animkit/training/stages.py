"""The three stages of the paper and a personalised base: what is frozen, what is inserted, which loss, on which data.

    stage            section  frozen                        learns                              from
    domain adapter   4.1      base                          LoRA in its spatial attentions      single random frames
    motion module    4.2      base, adapter (alpha 1)       temporal Transformers in between    clips
    MotionLoRA       4.3      base, adapter, motion module  LoRA in the temporal attentions     clips of one shot type
    look             -        base                          LoRA in its layers, or all of it    captioned images

The same call resumes a run. It leaves <folder>/<folder's name>.safetensors (float16, the average of the weights
where one is kept), train.json (what made it), loss.png and samples/. `animkit train` is the same on the command line.
"""
from pathlib import Path

from animkit.domain_adapter import new_domain_adapter
from animkit.look import new_look
from animkit.motion_lora import new_motion_lora
from animkit.motion_module import MotionModules
from animkit.training.config import DomainAdapterConfig, LookConfig, MotionLoRAConfig, MotionModuleConfig
from animkit.training.losses import denoising_loss, domain_adapter_loss, motion_lora_loss, motion_module_loss
from animkit.training.stage import Stage, Trained


def train_domain_adapter(config: DomainAdapterConfig, folder: str | Path, **how) -> Trained:
    """4.1: the adapter learns the look of the videos, from single random frames, with the plain image loss.

    how: quiet, command (for train.json), seconds (stop after this many; the same call continues, and only a finished
    run leaves its file). Raises AnimkitError for settings that do not fit the base.
    """
    stage = Stage("domain adapter", config, folder, **how)               # the base, frozen
    stage.needs_betas_of_base()
    adapter = new_domain_adapter(stage.video_unet, config.rank, config.training.seed)  # attn1, attn2: q, k, v, out
    stage.insert(adapter)
    return stage.learn(adapter, domain_adapter_loss, stage.videos())


def train_motion_module(config: MotionModuleConfig, folder: str | Path, **how) -> Trained:
    """4.2: the motion module learns motion from clips; base and domain adapter (alpha 1) are frozen, betas linear.

    how: quiet, command, seconds. Raises AnimkitError for settings that do not fit the base.
    """
    stage = Stage("motion module", config, folder, **how)
    stage.insert_frozen("domain_adapter", alpha=1)                       # or none: the ablation
    if config.start:
        modules = stage.open("start", "motion module").build(stage.video_unet)
        stage.like_start(modules)
    else:                                                                # zero-initialised: the base itself at first
        modules = MotionModules.for_unet(stage.video_unet, config.version, heads=config.heads, kind=config.kind,
                                         seed=config.training.seed)
    stage.insert(modules)
    return stage.learn(modules, motion_module_loss, stage.videos())


def train_motion_lora(config: MotionLoRAConfig, folder: str | Path, **how) -> Trained:
    """4.3: MotionLoRA learns one shot type from 20 to 50 clips, with the objective of 4.2; all else is frozen.

    how: quiet, command, seconds. Raises AnimkitError for settings that do not fit the base or the motion module.
    """
    stage = Stage("MotionLoRA", config, folder, **how)
    stage.insert_frozen("domain_adapter", alpha=1)
    stage.insert_frozen("motion_module", alpha=1)
    lora = new_motion_lora(stage.video_unet.motion, config.rank, config.training.seed)  # temporal q, k, v, out
    stage.insert(lora)
    shot = {} if config.shot is None else {"shot": config.shot, "amount": config.amount, "camera": config.camera}
    return stage.learn(lora, motion_lora_loss, stage.videos(**shot))


def train_look(config: LookConfig, folder: str | Path, **how) -> Trained:
    """A personalised base: a LoRA on some of the UNet's layers, or (full) all its weights, on captioned images.

    how: quiet, command, seconds. Raises AnimkitError for settings that do not fit the base.
    """
    stage = Stage("look", config, folder, **how)
    stage.needs_betas_of_base()
    unet = stage.video_unet.unet
    if config.full:
        return stage.learn(unet, denoising_loss, stage.images())
    lora = new_look(unet, config.rank, config.layers, config.training.seed)   # its Linear layers, or its convolutions
    stage.insert(lora)
    return stage.learn(lora, denoising_loss, stage.images())


TRAIN = {"domain_adapter": train_domain_adapter, "motion_module": train_motion_module,
         "motion_lora": train_motion_lora, "look": train_look}
