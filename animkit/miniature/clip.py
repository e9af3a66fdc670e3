"""Two image-text models: the miniature's CLIP, whose text half conditions the UNet, and the judge that scores what is made.

Both learn from full captions by CLIP's own symmetric loss (arXiv 2103.00020, figure 3). Since the world's labels are known,
they also learn to find the right phrase ("a red thing", "something falling") among those for all values of one attribute.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, ResNetConfig, ResNetModel

from ..errors import AnimkitError
from ..prompts import as_read
from ..training.draws import randint
from ..training.losses import short_attention
from ..world.captions import DOING, LOOK, OVER
from .stills import NAMES
from .vae import to_signal
from .words import LENGTH

# attribute -> value -> its wordings
PHRASES = {
    "object": {o: (f"a {o}", f"a picture of a {o}", f"the {o}") for o in NAMES["object"]},
    "colour": {c: (f"{c}", f"a {c} picture", f"the {c}") for c in NAMES["colour"]},
    "setting": OVER,
    "motion": {"still": ("standing still", "still"), **DOING},
    "look": {k: tuple(w for w in LOOK.get(k, (k, f"{k} look", f"{k} style")) if w) for k in NAMES["look"]},
}


WEIGHTS = {"object": 3.0}  # shapes are learned last
COLOURLESS = ("ink", "blueprint", "sepia")  # colours cannot be seen in these looks, so they are not asked for


class ImageText(nn.Module):
    """CLIP's two towers and its temperature: a transformers ResNetModel for pictures, a transformers CLIPTextModel for text.

    A vision transformer this small needs far more pictures to see shapes (measured: 16 % of objects after 600 steps of 128; the
    residual network had nearly all). get_image_features and get_text_features are those of transformers' CLIPModel.
    """

    def __init__(self, vision: ResNetConfig, text: CLIPTextConfig, width: int = 96, enlarge: int = 1):
        super().__init__()
        self.enlarge = enlarge  # a ResNet's first layers shrink four times at once, too much for small pictures
        self.vision_model, self.text_model = ResNetModel(vision), CLIPTextModel(text)
        self.visual_projection = nn.Linear(vision.hidden_sizes[-1], width, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07), as in CLIP

    def see(self, x):
        """Pictures b c h w in -1 to 1 -> the picture tower's features b d."""
        x = F.interpolate(x, scale_factor=self.enlarge, mode="bilinear") if self.enlarge > 1 else x
        return self.vision_model(pixel_values=x).pooler_output.flatten(1)

    def get_image_features(self, pixel_values):
        """Pictures b c h w in -1 to 1 -> b d."""
        return self.visual_projection(self.see(pixel_values))

    def get_text_features(self, input_ids):
        """Token ids b n -> b d."""
        return self.text_projection(self.text_model(input_ids=input_ids).pooler_output)

    def save_pretrained(self, folder, dtype=torch.float16):
        """config.json and model.safetensors (half precision); the tokenizer is saved beside it by its own save_pretrained."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(
            json.dumps(
                {
                    "vision": self.vision_model.config.to_dict(),
                    "text": self.text_model.config.to_dict(),
                    "width": self.text_projection.out_features,
                    "enlarge": self.enlarge,
                },
                indent=1,
            )
        )
        save_file(
            {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in self.state_dict().items()},
            folder / "model.safetensors",
        )

    @classmethod
    def from_pretrained(cls, folder):
        """Raises AnimkitError if the folder holds no such model."""
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text())
            model = cls(
                ResNetConfig.from_dict(config["vision"]),
                CLIPTextConfig.from_dict(config["text"]),
                config["width"],
                config["enlarge"],
            )
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as e:
            raise AnimkitError(
                f"{folder} holds no image-text model of animkit's ({str(e).splitlines()[0]}); give a folder such as data_samples/judge."
            ) from e
        return model.float().eval()


def new_clip(
    tokenizer,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    text_width: int,
    text_layers: int,
    seed: int,
    enlarge: int = 1,
) -> ImageText:
    """Fresh towers for 64-pixel pictures."""
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=text_width * 4,
        num_hidden_layers=text_layers,
        num_attention_heads=text_width // 32,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return ImageText(
        ResNetConfig(embedding_size=widths[0], hidden_sizes=list(widths), depths=list(depths), layer_type="basic"),
        text,
        enlarge=enlarge,
    )


def tokens(tokenizer, texts) -> torch.Tensor:
    """Token ids b n, padded to the full length."""
    return tokenizer(
        [as_read(text, tokenizer) for text in texts], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def embed_text(clip, ids) -> torch.Tensor:
    """Unit vectors b d."""
    return F.normalize(clip.get_text_features(input_ids=ids), dim=-1)


def embed_images(clip, x) -> torch.Tensor:
    """Unit vectors b d for pictures b c h w in -1 to 1."""
    return F.normalize(clip.get_image_features(pixel_values=x), dim=-1)


def blur(x, generator):
    """Pictures with a generator's faults, which the judge must ignore: some softness, some noise, a change of brightness."""
    b = len(x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mixed = torch.lerp(
        x, soft, torch.rand(b, 1, 1, 1, generator=generator) * (torch.rand(b, 1, 1, 1, generator=generator) < 0.6)
    )
    return (mixed + 0.06 * torch.rand(b, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)) * (
        0.9 + 0.15 * torch.rand(b, 1, 1, 1, generator=generator)
    )


def shift(x, generator, by: int = 3):
    """Each picture moved by up to `by` pixels, its edges repeated, so that no picture is seen twice and learned by heart."""
    n, size = len(x), x.shape[-1]
    x = F.pad(x, (by,) * 4, mode="replicate")
    ys, xs = (torch.randint(2 * by + 1, (n,), generator=generator).tolist() for _ in range(2))
    return torch.stack([picture[:, y : y + size, x : x + size] for picture, y, x in zip(x, ys, xs)])


class Labelled(nn.Module):
    """A model in training (CLIP or the judge) with plain classifiers on its picture tower, thrown away afterwards. From phrases
    alone it learned objects an order of magnitude later than settings: two untrained towers teach each other little."""

    def __init__(self, clip: ImageText, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.clip = clip
        self.heads = nn.ModuleDict({a: nn.Linear(clip.visual_projection.in_features, len(NAMES[a])) for a in PHRASES})

    def loss(self, features, labels) -> torch.Tensor:
        """Cross-entropy over all attributes; the picture tower's features b d, labels attribute -> indices into NAMES."""
        return sum(
            WEIGHTS.get(a, 1) * F.cross_entropy(self.heads[a](features), y.to(features.device))
            for a, y in labels.items()
        )


class Contrast:
    """batch and loss for fit: pictures and captions, and for each attribute the phrases of all its values."""

    def __init__(self, stills, tokenizer, attributes, size: int = 128, captioned: int | None = None):
        self.captioned = captioned or size  # how many pictures of a batch come with their full captions
        self.pixels, self.ids, self.size = torch.from_numpy(stills.pixels), tokens(tokenizer, stills.captions), size
        self.labels = {a: torch.from_numpy(stills.labels[a].astype(np.int64)) for a in attributes}
        self.hidden = torch.isin(
            torch.from_numpy(stills.labels["look"].astype(np.int64)),
            torch.tensor([NAMES["look"].index(look) for look in COLOURLESS]),
        )
        self.values = {a: sorted(set(stills.labels[a].tolist())) for a in attributes}
        self.phrases = {a: [tokens(tokenizer, PHRASES[a][NAMES[a][v]]) for v in self.values[a]] for a in attributes}

    def batch(self, k, generator):
        rows = randint(0, len(self.pixels), (self.size,), generator)
        labels = {
            a: torch.tensor([self.values[a].index(v) for v in label[rows].tolist()]) for a, label in self.labels.items()
        }
        labels["colour"][self.hidden[rows]] = -100  # cross_entropy ignores this label
        return to_signal(self.pixels[rows]), self.ids[rows[: self.captioned]], labels

    def loss(self, clip, batch, generator):
        x, ids, labels = batch
        wordings = {
            a: torch.stack(
                [options[int(torch.randint(len(options), (1,), generator=generator))] for options in self.phrases[a]]
            )
            for a in labels
        }
        clip, labelled = (clip.clip, clip) if isinstance(clip, Labelled) else (clip, None)
        x = blur(shift(x.cpu(), generator), generator).to(x.device)
        features = clip.see(x)
        total = labelled.loss(features, labels) if labelled else 0
        with short_attention(x.device):
            text = embed_text(clip, torch.cat([ids.cpu(), *wordings.values()]).to(x.device))
        image = F.normalize(clip.visual_projection(features), dim=-1)
        scale = clip.logit_scale.exp().clamp(max=100)
        captions, *rest = text.split([len(ids), *[len(w) for w in wordings.values()]])
        logits = scale * image[: len(captions)] @ captions.T
        target = torch.arange(len(captions), device=x.device)
        total = total + (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        right = {}
        for (a, y), phrases in zip(labels.items(), rest):
            logits = scale * image @ phrases.T
            total = total + WEIGHTS.get(a, 1) * F.cross_entropy(logits, y.to(x.device))
            right[a] = float((logits.argmax(-1).cpu() == y.cpu())[y.cpu() != -100].float().mean())
        return total, right


@torch.no_grad()
def classify(clip, tokenizer, x, attribute: str, values=None) -> torch.Tensor:
    """The value of an attribute nearest to each picture (b c h w, -1 to 1), by its wordings' mean: index into NAMES or values."""
    device = clip.visual_projection.weight.device
    return nearest(clip, tokenizer, torch.cat([embed_images(clip, part.to(device)) for part in x.split(256)]), attribute, values)


@torch.no_grad()
def nearest(clip, tokenizer, images, attribute: str, values=None) -> torch.Tensor:
    """As classify, for pictures that are unit vectors b d already: one embedding serves many attributes."""
    values = list(values or NAMES[attribute])
    texts = torch.stack(
        [F.normalize(embed_text(clip, tokens(tokenizer, PHRASES[attribute][v]).to(images.device)).mean(0), dim=-1) for v in values]
    )
    return (images @ texts.T).argmax(-1).cpu()


def accuracy(clip, tokenizer, stills, attributes=tuple(PHRASES)) -> dict[str, float]:
    """The share of real renders on which classify is right, for each attribute; of two things the first counts."""
    clip.eval()
    x = to_signal(torch.from_numpy(stills.pixels))
    return {a: float((classify(clip, tokenizer, x, a).numpy() == stills.labels[a]).mean()) for a in attributes}
