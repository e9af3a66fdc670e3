"""The miniature's VAE: 64 x 64 x 3 pixels to 16 x 16 x 8 latents and back (diffusers' AutoencoderKL, no attention)."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from ..training.draws import randint
from ..training.plumbing import fast_precision

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=8,
    sample_size=64,
    mid_block_add_attention=False,
)
KL = 1e-6


def new_vae(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)


def to_signal(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 b h w c to float b c h w in -1 to 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def batches(pixels, size: int = 64, crop: int = 32):
    """batch(k, generator): random crops of random pictures. As good at a quarter of the cost, since the VAE is local."""
    pixels = torch.from_numpy(pixels)

    def batch(k, generator):
        rows = randint(0, len(pixels), (size,), generator)
        ys, xs = (
            randint(0, pixels.shape[1] - crop + 1, (size,), generator),
            randint(0, pixels.shape[1] - crop + 1, (size,), generator),
        )
        return to_signal(torch.stack([pixels[r, y : y + crop, x : x + crop] for r, y, x in zip(rows, ys, xs)]))

    return batch


def gradient(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def picture_loss(y, x):
    """L1 on pixels and on neighbours' differences, and squared error on means of 4 x 4 pixels. Without the last, whole
    colours are lost, since in L1 a small thing of a very wrong colour is a small error."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradient(y), gradient(x)))
    return F.l1_loss(y, x) + 0.5 * edges + 5 * F.mse_loss(F.avg_pool2d(y, 4), F.avg_pool2d(x, 4))


def vae_loss(vae, x, generator):
    """picture_loss, and a little KL to keep the latents near the unit normal."""
    posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
    z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
    y = vae.decode(z).sample.float()
    return picture_loss(y, x) + KL * posterior.kl().mean(), {"psnr": psnr(y, x)}


def decoder_loss(vae, x, generator):
    """The decoder alone, on the latents' means: the encoder stays, so all that was trained on its latents still fits."""
    with torch.no_grad():
        z = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        z = z + 0.02 / vae.config.scaling_factor * torch.randn(z.shape, generator=generator).to(
            z
        )  # a sampler's latents are never clean
    y = vae.decode(z).sample.float()
    return picture_loss(y, x), {"psnr": psnr(y, x)}


def psnr(y, x) -> float:
    """Peak signal to noise ratio in dB; pictures in -1 to 1."""
    return float(10 * torch.log10(4 / F.mse_loss(y.detach().float(), x.float())))


def pca_floor(pixels, patch: int = 4, channels: int = 8) -> float:
    """PSNR of the best linear code of the same size: what a VAE has to beat."""
    x = to_signal(torch.from_numpy(pixels[:2000]))
    p = F.unfold(x, patch, stride=patch).transpose(1, 2).reshape(-1, 3 * patch * patch)
    mean = p.mean(0)
    _, _, v = torch.pca_lowrank((p - mean)[::3], q=channels, niter=4)
    return psnr((p - mean) @ v @ v.T + mean, p)


@torch.no_grad()
def encode(vae, pixels, size: int = 250) -> torch.Tensor:
    """All pictures (uint8 n h w c) to scaled latent means (n c h w, float16), on a GPU if there is one."""
    home, device = vae.device, "cuda" if torch.cuda.is_available() else "cpu"
    vae.to(device).eval()
    out = []
    for k in range(0, len(pixels), size):
        x = to_signal(torch.from_numpy(pixels[k : k + size]).to(device)).contiguous(memory_format=torch.channels_last)
        # where bf16 is fast: its error is smaller than the VAE's
        with torch.autocast(device, torch.bfloat16, enabled=fast_precision() == "bf16"):
            out.append((vae.encode(x).latent_dist.mean.float() * vae.config.scaling_factor).half().cpu())
    vae.to(home)
    return torch.cat(out).contiguous()
