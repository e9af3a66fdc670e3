"""The judge: which prompts are asked, and what pictures and clips show of them."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import AnimkitError
from ..quiet import quiet_libraries
from ..world import BASE_LOOKS, MOTIONS, Scene, random_scene, render
from ..world.captions import LOOK, TEMPLATES, caption

with quiet_libraries():
    from transformers import CLIPTokenizer

    from .clip import ImageText, embed_images, embed_text, nearest, tokens
    from .motion_clips import KINDS
    from .motion_judge import MotionJudge
    from .stills import NAMES
    from .vae import to_signal

TEXT = ("object", "colour", "setting")


@dataclass
class Judge:
    """Two models that the miniature is not trained with: an image-text model for pictures, a motion judge for clips."""
    clip: ImageText
    tokenizer: CLIPTokenizer
    eye: MotionJudge

    @classmethod
    def from_pretrained(cls, folder: Path) -> "Judge":
        """Raises AnimkitError if a part is missing or damaged."""
        clip = ImageText.from_pretrained(folder)
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            if len(tokenizer) != clip.text_model.config.vocab_size:  # a file is gone: transformers makes an empty one
                raise ValueError(f"{len(tokenizer)} tokens for a model of {clip.text_model.config.vocab_size}")
        except (OSError, ValueError, TypeError) as e:
            raise AnimkitError(f"{folder} holds no tokenizer for its model ({str(e).splitlines()[0]}): fetch or train "
                               "the judge again.") from e
        return cls(clip, tokenizer, MotionJudge.load(Path(folder) / "motion.safetensors"))

    @torch.no_grad()
    def pictures(self, pixels: np.ndarray, attributes=tuple(NAMES)) -> dict[str, list[str]]:
        """Attribute -> what each picture (n h w 3, uint8) shows: object, colour, setting, look, its motion's marks."""
        parts = np.array_split(pixels, -(-len(pixels) // 200))
        images = torch.cat([embed_images(self.clip, to_signal(torch.from_numpy(part))) for part in parts])
        return {a: [NAMES[a][k] for k in nearest(self.clip, self.tokenizer, images, a)] for a in attributes}

    def motion(self, clips: np.ndarray, among: tuple[str, ...] = KINDS) -> list[str]:
        """What each clip (n 16 h w 3, uint8) shows: one of the ten motions, "still" or "incoherent"; among: the only answers."""
        return [KINDS[k] for k in self.eye.which(clips, among=among)]

    @torch.no_grad()
    def retrieved(self, pixels: np.ndarray, captions: list[str], pool: int = 100) -> np.ndarray:
        """For each picture: of the captions of its pool of 100 (of all, if fewer), is the nearest its own (or one in the
        same words)?"""
        right = []
        for k in range(0, len(pixels), pool):
            here = captions[max(0, min(k, len(captions) - pool)):][:pool]  # the last pool is no smaller than the others
            images = embed_images(self.clip, to_signal(torch.from_numpy(pixels[k:k + pool])))
            nearest = (images @ embed_text(self.clip, tokens(self.tokenizer, here)).T).argmax(-1)
            right += [here[int(j)] == own for j, own in zip(nearest, captions[k:k + pool])]
        return np.array(right)


def asked(count: int, seed: int, looks=BASE_LOOKS, look: bool = True, templates=TEMPLATES) -> list[tuple[str, Scene]]:
    """(prompt, its scene) with one thing each: object, colour, setting and look are random, the motions come in turn.

    Raises AnimkitError for a seed below 0."""
    if seed < 0:
        raise AnimkitError(f"The seed is 0 or more; got {seed}.")
    rng, wording, motions = np.random.default_rng(seed), np.random.default_rng(seed + 1), list(MOTIONS)
    scenes = [random_scene(rng, motion=motions[k % len(motions)], look=tuple(looks)) for k in range(count)]
    return [(caption(scene, wording, templates, look), scene) for scene in scenes]


def truth(scene: Scene, attribute: str) -> str:
    """The right answer for an attribute of a scene with one thing."""
    thing = scene.things[0]
    return {"object": thing.object, "colour": thing.colour, "motion": thing.motion or "still",
            "setting": scene.setting, "look": scene.look}[attribute]


def names_its_look(prompt: str, scene: Scene) -> bool:
    return any(words and prompt.endswith(f", {words}") for words in LOOK.get(scene.look, ()))


def moment(scene: Scene, k: int) -> np.ndarray:
    """A real picture of a scene (h w 3, uint8), at a moment that the number k chooses."""
    return render(scene, u=[np.random.default_rng(k).random()]).uint8[0]


def text_found(shown: dict[str, list[str]], scenes: list[Scene], attributes=TEXT) -> dict[str, np.ndarray]:
    """Attribute -> for each of n clips, the share of its frames that show what its prompt says; and the same for all
    attributes at once. shown: what judge.pictures found in all frames of the clips."""
    n, f = len(scenes), len(shown[attributes[0]]) // len(scenes)
    right = {a: np.array([found == truth(scenes[k // f], a) for k, found in enumerate(shown[a])]) for a in attributes}
    right["all of these"] = np.logical_and.reduce([right[a] for a in attributes])
    return {a: r.reshape(n, f).mean(1) for a, r in right.items()}
