"""The samples at toy size, untrained, for the commands that judge them."""
import json

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from animkit.lora import LoRA
from animkit.miniature import words
from animkit.miniature.clip import new_clip
from animkit.miniature.motion_judge import new_motion_judge
from animkit.miniature.unet import scheduler
from animkit.motion_module import MotionModules


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """miniature/, motion_module/, judge/ and looks/ at toy size, untrained."""
    folder = tmp_path_factory.mktemp("samples")
    torch.manual_seed(0)
    tokenizer = words.tokenizer()
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=words.LENGTH, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id))
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=8, block_out_channels=(32, 32), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32, attention_head_dim=1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=8, norm_num_groups=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)
    pipe = StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler(),
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.save_pretrained(folder / "miniature")
    defaults = {"steps": 2, "guidance": 5.0, "frames": 16, "fps": 8, "vocabulary": "closed"}
    (folder / "miniature" / "animkit.json").write_text(json.dumps(defaults))
    MotionModules.for_unet(unet, version="v3", heads=1).save_pretrained(folder / "motion_module")
    own = words.judge_tokenizer()
    new_clip(own, (8, 8), (1, 1), 32, 1, seed=1).save_pretrained(folder / "judge")
    own.save_pretrained(folder / "judge")
    new_motion_judge().save(folder / "judge" / "motion.safetensors")
    (folder / "looks").mkdir()
    save_file(LoRA.for_module(unet, ["to_q", "to_v"], rank=2).state_dict(), folder / "looks" / "ink.safetensors")
    return folder
