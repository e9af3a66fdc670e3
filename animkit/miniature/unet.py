"""The miniature's image model: Stable Diffusion's UNet in small, taught on stills of moving scenes, fully captioned."""

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from ..training.draws import rand, randint
from ..training.losses import denoising_loss
from .clip import tokens

# As SD 1.x: a block without attention, blocks with text and self-attention, a middle block; but the block without
# attention is the one at full latent size, not at the smallest: there attention costs most, and a picture this small needs
# it least.
CONFIG = dict(
    sample_size=16,
    in_channels=8,
    out_channels=8,
    block_out_channels=(64, 112, 128),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=96,
    attention_head_dim=(2, 4, 4),
    norm_num_groups=16,
    use_linear_projection=True,
)
SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
    prediction_type="epsilon",
)


def new_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(**CONFIG)


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(**SCHEDULE)


def motion_betas() -> DDIMScheduler:
    """The schedule of stage 2 (4.2): the base's, but with betas that rise linearly."""
    return DDIMScheduler.from_config(scheduler().config, beta_schedule="linear")


@torch.no_grad()
def text_states(text_encoder, tokenizer, captions) -> torch.Tensor:
    """What the UNet reads: the text encoder's last hidden states, n 28 96, float16; made on a GPU if there is one."""
    ids, home = tokens(tokenizer, captions), text_encoder.device
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text_encoder.to(device)
    states = torch.cat([text_encoder(input_ids=part.to(device)).last_hidden_state.half().cpu() for part in ids.split(500)])
    text_encoder.to(home)
    return states


def draw_rows(n: int, size: int, generator: torch.Generator, hard: torch.Tensor | None = None, share: float = 0.25):
    """`size` random row numbers below n; a `share` of them from `hard` alone, if given, so that hard rows are seen more often."""
    rows = randint(0, n, (size,), generator)
    if hard is None or not len(hard):
        return rows
    return torch.where(rand((size,), generator) < share, hard[randint(0, len(hard), (size,), generator)], rows)


class Denoising:
    """batch and loss for fit: latent diffusion's objective, on latents (n c h w) and text states (n m d) in memory.

    hard: numbers of rows to see more often.
    """

    def __init__(self, latents, text, empty, size: int = 64, drop: float = 0.1, towards_noise: float = 0.6, hard=None):
        self.hard, self.latents, self.text, self.empty, self.size, self.drop, self.power = (
            hard,
            latents,
            text,
            empty,
            size,
            drop,
            towards_noise,
        )
        self.scheduler = scheduler()

    def batch(self, k, generator):
        rows = draw_rows(len(self.latents), self.size, generator, self.hard)
        text = self.text[rows].float()
        dropped = rand((self.size,), generator) < self.drop
        text[dropped] = self.empty.float()
        return self.latents[rows].float(), text

    def loss(self, unet, batch, generator):
        """denoising_loss on stills x b c h w, as clips of one frame, and text b m d; unet as diffusers' UNet2DConditionModel.

        Shape and layout are decided near pure noise, where the error of eps is small whatever is drawn. So t is drawn
        nearer to noise (1000 u^0.6), and snr_plus_one gives every t a weight that counts.
        """
        x, text = batch
        return denoising_loss(lambda z, t, text: unet(z.squeeze(2), t, text).sample.unsqueeze(2), x.unsqueeze(2), text, generator,
                              scheduler=self.scheduler, towards_noise=self.power, snr_plus_one=True)


@torch.no_grad()
def sample(unet, text, empty, *, steps: int = 25, guidance: float = 5.0, seed: int = 0, size: int = 16) -> torch.Tensor:
    """Latents b c h w for text states b n d: DDIM with guidance, for sheets during training.

    The animator has the loop that is meant to be read.
    """
    ddim = scheduler()
    ddim.set_timesteps(steps)
    b = len(text)
    x = torch.stack(
        [
            torch.randn(unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(seed + k))
            for k in range(b)
        ]
    ).to(text)
    both = torch.cat([empty.to(text).expand(b, -1, -1), text])
    for t in ddim.timesteps:
        without, given = unet(torch.cat([x, x]), t, both).sample.float().chunk(2)
        x = ddim.step(without + guidance * (given - without), t, x).prev_sample
    return x
