"""CLIP text, CLIP domain and CLIP smooth (5.2): cosines between CLIP's embeddings, times 100.

    text     prompt to frame             100 mean_i <e(x_i), t>
    domain   frame to reference images   100 mean_i mean_j <e(x_i), e(r_j)>       r: pictures of the personalised model
    smooth   frame to next frame         100 mean_i <e(x_i), e(x_i+1)>

e, t: unit vectors. The cosine is not clipped at 0, unlike CLIPScore (arXiv 2104.08718). What they do not see, shown in
tests/metrics/test_known_answers.py: smooth is highest, 100, for a still, hardly lower for a clip's frames in another
order, and high for noise, whose frames look alike to CLIP. So report the amount, smoothness and warp error of motion.py
beside it. domain also depends on what the references show: give tens, of various content. text and domain ignore time.
"""
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AnimkitError
from .frames import pixels


class Encoder:
    """Any image-text model with get_image_features and get_text_features: two functions to unit vectors.

    model: transformers' CLIPModel or the kit's ImageText; prepare_images: frames n h w 3 -> pixel_values b c h w;
    prepare_text: list of str -> keyword arguments of get_text_features.
    """

    def __init__(self, model, prepare_images, prepare_text, batch: int = 64):
        self.model, self.batch = model.eval(), batch
        self.prepare_images, self.prepare_text = prepare_images, prepare_text

    @classmethod
    def from_pretrained(cls, folder: str | Path, batch: int = 64) -> "Encoder":
        """A folder of transformers' CLIPModel with its processor (ViT-B/32 at full size) or of the kit's judge.

        Nothing is downloaded. Raises AnimkitError if the folder holds neither, or a part of it is missing or damaged.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError) as e:
            raise AnimkitError(f"{folder} holds no image-text model (config.json: {e}); give a folder of transformers' "
                               "CLIPModel with its processor, or the kit's judge.") from e
        if "model_type" not in config:
            return cls.of_judge(folder, batch)
        from ..quiet import quiet_libraries
        with quiet_libraries():
            from transformers import CLIPModel, CLIPProcessor
            if config["model_type"] != "clip":
                raise AnimkitError(f"{folder} holds a {config['model_type']} model; the metrics are defined on CLIP: "
                                   "give a folder of transformers' CLIPModel, or the kit's judge.")
            try:
                model, said = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
                processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
            except Exception as e:  # transformers raises whatever the damaged file led to
                raise AnimkitError(f"{folder} could not be read as a CLIP ({str(e).splitlines()[0]}): it wants "
                                   "config.json, model.safetensors and the processor's and tokenizer's files.") from e
        if said["missing_keys"]:
            raise AnimkitError(f"{folder} lacks {len(said['missing_keys'])} of its CLIP's weights, first "
                               f"{sorted(said['missing_keys'])[0]}: fetch it again.")
        wanted, there = model.config.text_config.vocab_size, len(processor.tokenizer)
        if there < wanted:  # a file is missing: transformers makes an empty one
            raise AnimkitError(f"{folder} holds a tokenizer of {there} words for a CLIP of {wanted}: tokenizer.json "
                               "or vocab.json and merges.txt, is missing.")

        def images(frames):
            return processor.image_processor(list(frames), return_tensors="pt").pixel_values

        def text(prompts):  # CLIP reads 77 tokens; the rest of a longer prompt is not seen by Stable Diffusion either
            return dict(processor.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt"))

        return cls(model, images, text, batch)

    @classmethod
    def of_judge(cls, judge, batch: int = 64) -> "Encoder":
        """The kit's own judge: a Judge, or the folder of one (its picture model and tokenizer are used)."""
        from ..miniature.clip import ImageText, tokens
        from ..miniature.vae import to_signal
        if not isinstance(judge, (str, Path)):
            model, tokenizer = judge.clip, judge.tokenizer
        else:
            from transformers import CLIPTokenizer
            model = ImageText.from_pretrained(judge)
            try:
                tokenizer = CLIPTokenizer.from_pretrained(judge, local_files_only=True)
            except (OSError, ValueError, TypeError) as e:
                raise AnimkitError(f"{judge} holds no tokenizer for its model ({str(e).splitlines()[0]}).") from e
            if len(tokenizer) != model.text_model.config.vocab_size:  # a file is missing: it makes an empty one
                raise AnimkitError(f"{judge} holds a tokenizer of {len(tokenizer)} words for a model of "
                                   f"{model.text_model.config.vocab_size}: fetch or train the judge again.")
        return cls(model, lambda frames: to_signal(torch.from_numpy(np.ascontiguousarray(frames))),
                   lambda prompts: {"input_ids": tokens(tokenizer, prompts)}, batch)

    @torch.no_grad()
    def images(self, frames) -> Tensor:
        """Frames n h w 3, uint8 -> unit vectors n d, float32 on the CPU."""
        frames, device = pixels(frames), next(self.model.parameters()).device
        parts = [frames[k:k + self.batch] for k in range(0, len(frames), self.batch)]
        prepared = (self.prepare_images(part).to(device) for part in parts)
        return torch.cat([_unit(self.model.get_image_features(pixel_values=x)) for x in prepared])

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Tensor:
        """n prompts -> unit vectors n d, float32 on the CPU."""
        device = next(self.model.parameters()).device
        prepared = {k: v.to(device) for k, v in self.prepare_text(list(prompts)).items()}
        return _unit(self.model.get_text_features(**prepared))


def _unit(features) -> Tensor:
    """transformers up to 4 gives the features themselves, transformers 5 an output whose pooler_output they are."""
    features = getattr(features, "pooler_output", features)
    return F.normalize(features.float().cpu(), dim=-1)


def text_score(frames: Tensor, text: Tensor) -> float:
    """CLIP text: unit vectors of frames f d and of their prompt d -> 100 x mean cosine."""
    return 100 * float((frames @ text).mean())


def domain_score(frames: Tensor, references: Tensor) -> float:
    """CLIP domain: unit vectors of frames f d and of m reference images m d -> 100 x mean cosine over all f m pairs."""
    return 100 * float((frames @ references.T).mean())


def smooth_score(frames: Tensor) -> float:
    """CLIP smooth: unit vectors of frames f d -> 100 x mean cosine of the f - 1 pairs. AnimkitError under 2 frames."""
    if len(frames) < 2:
        raise AnimkitError(f"CLIP smooth compares neighbouring frames: it needs 2 at least, this has {len(frames)}.")
    return 100 * float((frames[:-1] * frames[1:]).sum(-1).mean())


def score_clips(encoder: Encoder, clips, prompts: list[str] | None = None,
                references=None) -> dict[str, np.ndarray]:
    """{"text", "domain", "smooth"} -> a number for each of n clips; without prompts or references those are left out.

    references: pictures (m h w 3, uint8) of the personalised model, for all clips, or a list with one such array for
    each clip. Every frame is encoded once. Raises AnimkitError where numbers of clips, prompts and references differ, or
    for an empty list of clips or references.
    """
    clips = list(clips)
    if not clips:
        raise AnimkitError("There are no clips to score: give one at least.")
    if prompts is not None and (isinstance(prompts, str) or len(prompts) != len(clips)):
        raise AnimkitError(f"{len(clips)} clips want as many prompts, in a list; got "
                           f"{repr(prompts) if isinstance(prompts, str) else len(prompts)}.")
    if isinstance(references, (list, tuple)) and not references:
        raise AnimkitError("CLIP domain wants at least one picture of the personalised model; the references are empty.")
    each = isinstance(references, (list, tuple)) and np.ndim(references[0]) == 4
    if each and len(references) != len(clips):
        raise AnimkitError(f"{len(clips)} clips want one set of references, or one each; got {len(references)} sets.")
    frames = [encoder.images(clip) for clip in clips]
    scores = {}
    if prompts is not None:
        scores["text"] = np.array([text_score(f, t) for f, t in zip(frames, encoder.texts(prompts))])
    if references is not None:
        known = [encoder.images(r) for r in references] if each else [encoder.images(references)] * len(clips)
        scores["domain"] = np.array([domain_score(f, r) for f, r in zip(frames, known)])
    return scores | {"smooth": np.array([smooth_score(f) for f in frames])}
