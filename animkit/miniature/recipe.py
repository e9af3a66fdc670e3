"""`animkit miniature STAGE`: every stage of the miniature's recipe, in order. The same command resumes a stopped stage.

    stage      what it trains                                                  reads
    vae        AutoencoderKL on pictures in every look                         pictures
    clip       CLIP on base pictures and captions                              pictures
    judge      another CLIP, on pictures of its own; not used in training      pictures
    motion_judge   the judge's eye for motion: a small (2+1)D network          clips
    coarse     the UNet at 8 x 8 latents (pictures of 32 pixels)               vae, clip
    unet       the UNet at 16 x 16 latents, its pictures in many framings      coarse
    decoder    the VAE's decoder alone; the latents stay the same              vae
    motion_coarse, motion   stage 2: the motion modules, at 8 x 8 and at 16 x 16 latents   unet
    camera     stage 2 continues, with clips whose camera moves: see camera.py  motion
    control    a ControlNet on depth, from stills alone                         unet
    assemble   nothing: copies the above to data_samples/
    practice_looks, practice   stage 2 continues in nine looks to practise on: see practice.py   camera, assemble
    adapter, motion_web, motion_plain, look, shots, zoo   the zoo, on top of what `assemble` wrote: see zoo.py
    adopt      nothing: copies shipped weights to runs/, to train them further

The work is in runs/miniature/<stage>. budget scales steps and pictures: 1 is the whole recipe. data_samples/README.md says what
made the shipped files. `--more N` trains a finished stage for N more steps, with a learning rate that starts anew; the steps,
seconds and curve in its record are then those of all its rounds, the loss that of the last.
"""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from einops import rearrange
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from .. import samples
from ..data.world_clips import WorldRecipe
from ..errors import AnimkitError, above_zero, positive
from ..files import make_folder, write_atomically
from ..inflation import inflate
from ..motion_module import MotionModules
from ..quiet import quiet_libraries
from ..training.draws import rank_and_world
from ..training.loop import LoopConfig, fit
from ..training.history import History
from ..training.losses import motion_module_loss
from ..world import BASE_LOOKS, LOOKS
from ..world.captions import DOING
from . import camera as cameras
from . import clip as clips
from . import control as controls
from . import motion_judge as eyes
from . import practice as practices
from . import unet as unets
from . import vae as vaes
from . import words, zoo
from .clip import ImageText
from .evaluate import fingerprint
from .motion import MOVES
from .motion import clips as render_clips
from .stills import stills

STAGES = [
    "vae",
    "clip",
    "judge",
    "motion_judge",
    "coarse",
    "unet",
    "decoder",
    "motion_coarse",
    "motion",
    "camera",
    "control",
    "assemble",
    "practice_looks",
    "practice",
    *(stage for stage in zoo.STAGES if stage != "practice_looks"),
]
# The share of the UNet's pictures whose framing is not the usual one: nearer, off-centre, turned. The UNet is frozen later,
# but must draw whatever a moving camera sees; one that knew a single framing had a loss twice as high on such frames.
FRAMED = 0.4
DEFAULTS = {"steps": 25, "guidance": 3.0, "frames": 16, "fps": 8}

STEPS = {
    "vae": 2000,
    "clip": 2750,
    "judge": 2400,
    "motion_judge": 1600,
    "coarse": 3000,
    "unet": 10_500,
    "decoder": 2500,
    "motion_coarse": 900,
    "motion": 900,
    "camera": 4000,
    "control": 2000,
    "practice": 1600,
}
MOTION = ("motion", "camera", "practice")  # the stages that train the motion module, one after the other


@dataclass
class Recipe:
    """Where the work is, how much to do, for how many seconds at most (None: to the end); more: further steps of done stages.

    batch, lr, count: instead of each stage's own, which suit two cores; a GPU needs larger batches of more pictures or clips.
    """

    folder: Path = Path("runs/miniature")
    budget: float = 1.0
    seconds: float | None = None
    more: int | None = None
    samples: Path = Path("data_samples")  # where `assemble` puts the results, and what the zoo starts from
    batch: int | None = None
    lr: float | None = None
    count: int | None = None

    def __post_init__(self):
        above_zero(**{name: getattr(self, name) for name in ("budget", "seconds", "more", "batch", "lr", "count")})

    def steps(self, stage: str) -> int:
        if self.more:
            return self.more
        return max(1, round(STEPS[stage] * self.budget))

    def stills(self, name: str, count: int, **how):
        return stills(self.folder / "data", name, self.counted(count), **how)  # whole chunks

    def counted(self, count: int) -> int:
        """How many pictures or clips a stage draws."""
        return self.count or max(1, round(count * self.budget))

    def train(self, stage: str, model, loss, batch, validate=None, parameters=None, keep=None, **settings) -> bool:
        """fit; then write averaged weights (of `keep`, else of the model) to <stage>.safetensors and a record to <stage>.json.

        -> whether anything was trained: a stage that is done is left as it is, unless for `more`."""
        usual = dict(steps=self.steps(stage), warmup=100, schedule="cosine", floor=0.02, mixed_precision="auto", clip_norm=1.0)
        usual["prefetch"] = 2 if torch.cuda.is_available() else 0
        config = LoopConfig(**usual | settings | ({"lr": self.lr} if self.lr else {}))
        before, folder = self.told(stage), self.folder / stage
        rounds = before.get("rounds", 1)
        if self.more:
            self.read(stage, keep or model)
            model.train()
            folder = folder / f"more-{rounds}"  # the same command continues in it until its steps are done
            config = replace(config, seed=config.seed + 1000 * rounds)  # other draws than in the rounds before
        elif rounds > 1 or before.get("steps", 0) >= config.steps:  # its checkpoint may be older than its weights
            print(f"{stage} is trained already, {before['steps']} steps: --more trains it further.")
            return False
        history = fit(model, loss, batch, config, folder, validate=validate, stop=self.seconds, parameters=parameters)
        if rank_and_world()[0]:  # under `accelerate launch` the first process writes
            return True
        if history.ema:
            history.ema.copy_to_model()
        save(keep or model, self.folder / f"{stage}.safetensors")
        last, losses = history.records[-1], [r["loss"] for r in history.records[-50:]]
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} thread(s)"
        told = {
            "stage": stage,
            "steps": last["step"],
            "of": config.steps,
            "seconds": round(last["seconds"]),
            "loss": round(sum(losses) / len(losses), 4),
            "device": where,
            **{k: v for k in ("batch", "lr", "count") if (v := getattr(self, k))},
            **{k: v for k, v in last.items() if k.startswith("validate/")},
        }
        if self.more:
            earlier = before.get("earlier") or {k: before.get(k, 0) for k in ("steps", "of", "seconds")}
            told |= {k: told[k] + earlier[k] for k in earlier}
            told["rounds"] = rounds + (history.ended == "finished")
            told["device"] = "; ".join(dict.fromkeys([*before.get("device", where).split("; "), where]))  # of all rounds
            if history.ended != "finished":
                told["earlier"] = earlier  # what this round's numbers are added to when it continues
        (self.folder / f"{stage}.json").write_text(json.dumps(told, indent=1))
        print(json.dumps(told))
        return True

    def told(self, stage: str) -> dict:
        """A stage's record so far, all its rounds together; {} if there is none."""
        path = self.folder / f"{stage}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def adopted(self) -> dict | None:
        """The record of what this work went on from, None unless `adopt` began it."""
        path = self.folder / "adopted"
        return json.loads(path.read_text()) if path.exists() else None

    def record(self, stage: str) -> dict:
        """What recipe.json tells of a stage: its record, its learning curve, and after `adopt` what it went on from."""
        before = self.adopted()
        earlier = {} if before is None else {"went on from": before.get(stage)}
        return self.told(stage) | {"curve": self.curve(stage)} | earlier

    def curve(self, stage: str, points: int = 60) -> list[float]:
        """The learning curve of a stage, over all its rounds, as at most `points` means."""
        folders = [self.folder / stage, *sorted((self.folder / stage).glob("more-*"), key=lambda p: int(p.name[5:]))]
        losses = np.concatenate([History.of(folder).losses for folder in folders])
        return [round(float(part.mean()), 4) for part in np.array_split(losses, min(points, len(losses)))]

    def read(self, stage: str, model):
        """Load a stage's weights into a model. Raises AnimkitError if the stage was not trained."""
        path = self.folder / f"{stage}.safetensors"
        if not path.exists():
            raise AnimkitError(
                f"The stage {stage!r} has not been trained: {path} is not there; run `animkit miniature {stage}` first."
            )
        model.load_state_dict(load_file(path))
        return model.eval()

    # ---- the stages

    def vae(self):
        train = self.stills("all", 16_000, looks=(*LOOKS, *BASE_LOOKS, *BASE_LOOKS), web=0.15, seed=1)
        test = vaes.to_signal(torch.from_numpy(self.test("all").pixels[:200]))
        print(f"the best linear code of this size: {vaes.pca_floor(self.test('all').pixels):.1f} dB")
        model = vaes.new_vae()
        self.train(
            "vae",
            model,
            vaes.vae_loss,
            vaes.batches(train.pixels, self.batch or 64),
            lambda m, s: reconstruction(model, test),
            lr=2e-3,
            ema=0.998,
            weight_decay=0,
            validate_every=100,
        )

    def decoder(self):
        model = self.scaled_vae()  # first, as it may be missing
        train = self.stills("all", 16_000, looks=(*LOOKS, *BASE_LOOKS, *BASE_LOOKS), web=0.15, seed=1)
        test = vaes.to_signal(torch.from_numpy(self.test("all").pixels[:200]))
        self.train(
            "decoder",
            model,
            vaes.decoder_loss,
            vaes.batches(train.pixels, self.batch or 64),
            lambda m, s: reconstruction(model, test),
            lr=1.5e-3,
            ema=0.998,
            weight_decay=0,
            validate_every=100,
            seed=1,
            parameters=[*model.decoder.parameters(), *model.post_quant_conv.parameters()],
        )

    def clip(self):
        model, tokenizer = self.new_clip()
        attributes = ("object", "colour", "setting", "motion", "look")
        task = clips.Contrast(self.stills("base", 120_000, seed=3), tokenizer, attributes, self.batch or 128, captioned=32)

        def validate(training, step):
            return clips.accuracy(model, tokenizer, self.test("base"), attributes[:4])

        how = dict(lr=1.5e-3, ema=0.995, weight_decay=0.02, validate_every=300)
        if self.train("clip", clips.Labelled(model), task.loss, task.batch, validate, keep=model, **how):
            (self.folder / "text_encoder.safetensors").unlink(missing_ok=True)  # an adopted one would still be read

    def judge(self):
        model, tokenizer = self.new_judge()
        task = clips.Contrast(
            self.stills("judge", 100_000, looks=tuple(LOOKS), web=0.05, seed=5),
            tokenizer,
            tuple(clips.PHRASES),
            self.batch or 128,
            captioned=32,
        )
        self.train(
            "judge",
            clips.Labelled(model),
            task.loss,
            task.batch,
            lambda m, s: clips.accuracy(model, tokenizer, self.test("judge")),
            keep=model,
            lr=1.5e-3,
            ema=0.995,
            weight_decay=0.02,
            validate_every=200,
        )

    def motion_judge(self):
        watching, test = (
            eyes.Watching(*eyes.clips(self.folder / "data", f"eye-{name}", max(250, count), seed), self.batch or 48)
            for name, count, seed in (("train", self.counted(5000), 7), ("test", round(500 * self.budget), 8))
        )
        self.train(
            "motion_judge",
            eyes.new_motion_judge(),
            watching.loss,
            watching.batch,
            lambda m, s: test.accuracy(m),
            lr=3e-3,
            ema=0.995,
            weight_decay=0.02,
            validate_every=200,
        )

    def coarse(self):
        self._unet("coarse", 32, 60_000, None, lr=1.2e-3)

    def unet(self):
        self._unet("unet", 64, 40_000, "coarse", batch=32, lr=7e-4)

    def _unet(self, stage, size, count, start, batch=64, **settings):
        tokenizer, text_encoder = self.text()
        pictures = self.stills("framed", count, seed=3, size=size, framed=FRAMED)
        text, empty = (
            unets.text_states(text_encoder, tokenizer, pictures.captions),
            unets.text_states(text_encoder, tokenizer, [""]),
        )
        hard = saying(pictures.captions, "spinning")  # a thing at any angle: 15 of the base's 23 wrong objects were spinning
        task = unets.Denoising(self.latents(pictures, f"{stage}-framed-latents"), text, empty, self.batch or batch, hard=hard)
        model = unets.new_unet()
        if start and not (self.folder / stage / "checkpoint").exists():
            self.read(start, model).train()
        self.train(stage, model, task.loss, task.batch, ema=0.999, weight_decay=0.01, **settings)

    def motion_coarse(self):
        self._motion("motion_coarse", 32, 3_000, 8, None, lr=1e-3)

    def motion(self):
        self._motion("motion", 64, 3_000, 4, "motion_coarse", lr=7e-4)

    def _motion(self, stage, size, count, batch, start, **settings):
        """Paper 4.2: base frozen, linear betas, one timestep per clip (drawn nearer to noise), separate noise for each frame."""
        tokenizer, text_encoder = self.text()
        z, captions = self.clip_latents("moving", count, WorldRecipe(size=size, moves=MOVES, seed=11))
        text, empty = (
            unets.text_states(text_encoder, tokenizer, captions),
            unets.text_states(text_encoder, tokenizer, [""]).float(),
        )
        unet = self.read("unet", unets.new_unet()).requires_grad_(False)
        modules = new_motion_modules(unet)
        if start and not (self.folder / stage / "checkpoint").exists():
            self.read(start, modules)
        video_unet = inflate(unet)
        video_unet.insert(modules)
        hard = saying(captions, "spinning", "shaking", "walking")  # the motions that are learned last
        betas = unets.motion_betas()

        def rows(k, generator):
            rows = unets.draw_rows(len(z), self.batch or batch, generator, hard)
            return rearrange(z[rows], "b f c h w -> b c f h w").float(), text[rows].float()

        self.train(
            stage,
            video_unet,
            lambda model, batch, generator: motion_module_loss(
                model, *batch, generator, scheduler=betas, empty=empty, towards_noise=0.6, snr_plus_one=True
            ),
            rows,
            parameters=modules.parameters(),
            keep=modules,
            ema=0.995,
            **settings,
        )

    def camera(self):
        cameras.train(self)

    def practice(self):
        practices.train(self)
        if rank_and_world()[0]:
            return
        self.read("practice", new_motion_modules(unets.new_unet())).half().save_pretrained(self.folder / zoo.CLEAN)
        (self.folder / "practice.json").write_text(json.dumps(self.record("practice"), indent=1))  # zoo.assemble copies it

    def control(self):
        controls.train(self)

    def assemble(self, into: Path | None = None):
        """Copy everything to data_samples/, in half precision: the pipeline, judge, motion module and ControlNet."""
        into = into or self.samples
        tokenizer, text_encoder = self.text()
        vae = self.scaled_vae(self.last_vae())
        clip, judge_tokenizer = self.new_judge()
        unet = self.read("unet", unets.new_unet())
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=unets.scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.to(torch.float16).save_pretrained(into / "miniature")
        _load_as_float32(into / "miniature" / "text_encoder" / "config.json")
        (into / "miniature" / "animkit.json").write_text(
            json.dumps({**DEFAULTS, "vocabulary": words.vocabulary()}, indent=1) + "\n"
        )
        if (self.folder / "judge.safetensors").exists():
            self.read("judge", clip).save_pretrained(into / "judge")
            judge_tokenizer.save_pretrained(into / "judge")
        if (self.folder / "motion_judge.safetensors").exists():
            self.read("motion_judge", eyes.new_motion_judge()).save(into / "judge" / "motion.safetensors")
        if (self.folder / "motion.safetensors").exists():
            modules = self.read(self.last_motion(), new_motion_modules(unet.float())).half()
            for where in (into / "motion_module", self.folder / zoo.CLEAN):  # the zoo's later replaces the first
                modules.save_pretrained(where)
        if (self.folder / "control.safetensors").exists():
            self.read("control", controls.new_controlnet(unet.float())).half().save_pretrained(into / "control")
        made = {
            path.stem: self.record(path.stem)
            for path in sorted(self.folder.glob("*.json"))
            if path.stem != "scaling_factor" and not path.stem.startswith("look-")  # looks are the zoo's now
        }
        if (before := self.adopted()) is not None:  # earlier work stays in the record
            newer = json.loads((into / "recipe.json").read_text()) if (into / "recipe.json").exists() else {}
            made = {stage: told for stage, told in before.items() if stage not in newer} | made
        zoo.add_to_recipe(made, into)

    def adopt(self, shipped: Path | None = None):
        """Start from what ships, not from nothing: `unet`, `motion`, `decoder` then train the shipped weights further.

        What was trained in this folder before moves to before-adopt-1 (2, ...): its checkpoints are of other weights."""
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # each would move aside what another wrote
            raise AnimkitError("adopt is for one process: call it before `accelerate launch`, which then trains what it put there.")
        shipped = Path(shipped or samples.path("."))
        make_folder(self.folder)
        stages = [stage for stage in STAGES if stage not in zoo.STAGES]
        if old := [path for stage in (*stages, "text_encoder", "camera-adapters", "practice-adapters", "adopted", zoo.CLEAN)
                   for path in (self.folder / stage, *(self.folder / f"{stage}.{end}" for end in ("json", "safetensors"))) if path.exists()]:
            aside = self.folder / f"before-adopt-{1 + len(list(self.folder.glob('before-adopt-*')))}"
            aside.mkdir()
            for path in old:
                path.rename(aside / path.name)
            print(f"What was trained in {self.folder} before is in {aside} now.")
        with quiet_libraries():
            pipe = StableDiffusionPipeline.from_pretrained(shipped / "miniature")
        for name, part in {
            "vae": pipe.vae,
            "decoder": pipe.vae,
            "coarse": pipe.unet,
            "unet": pipe.unet,
            "text_encoder": pipe.text_encoder,
            "judge": ImageText.from_pretrained(shipped / "judge"),
            "motion_coarse": MotionModules.from_pretrained(shipped / "motion_module"),
            "motion": MotionModules.from_pretrained(shipped / "motion_module"),
        }.items():
            save(part.float(), self.folder / f"{name}.safetensors")
        MotionModules.from_pretrained(shipped / "motion_module").save_pretrained(self.folder / zoo.CLEAN)
        factor = {fingerprint(self.folder / "vae.safetensors"): pipe.vae.config.scaling_factor}
        (self.folder / "scaling_factor.json").write_text(json.dumps(factor))
        if (shipped / "judge" / "motion.safetensors").exists():
            save(
                eyes.MotionJudge.load(shipped / "judge" / "motion.safetensors"),
                self.folder / "motion_judge.safetensors",
            )
        if (shipped / "control").exists():
            save(controls.ControlNetModel.from_pretrained(shipped / "control").float(), self.folder / "control.safetensors")
        (self.folder / "adopted").write_text((shipped / "recipe.json").read_text())

    # ---- what they share

    def last_motion(self) -> str:
        """The stage that trained the motion module last: `motion --more`, or `adopt`, may have come after `camera`."""
        learned = [path for stage in MOTION if (path := self.folder / f"{stage}.safetensors").exists()]
        return max(learned, key=lambda path: path.stat().st_mtime_ns).stem if learned else MOTION[0]  # `read` refuses it

    def last_vae(self) -> str:
        """The stage whose VAE ships: `decoder`, unless `vae` was trained further since and makes other latents."""
        if not (self.folder / "decoder.safetensors").exists():
            return "vae"
        vae, decoder = (load_file(self.folder / f"{stage}.safetensors") for stage in ("vae", "decoder"))
        if all(torch.equal(decoder[k], vae[k]) for k in vae if k.startswith(("encoder.", "quant_conv."))):
            return "decoder"
        print("decoder.safetensors is of another encoder than vae.safetensors: the VAE ships with the decoder of its own.")
        return "vae"

    def test(self, name):
        """Held-out real renders: seeds that no stage trains on."""
        looks, seed = {"all": (tuple(LOOKS), 2), "base": (BASE_LOOKS, 4), "judge": (tuple(LOOKS), 6)}[name]
        return stills(
            self.folder / "data", f"test-{name}", max(1, round(1000 * min(1, self.budget))), looks=looks, seed=seed
        )

    def new_clip(self):
        tokenizer = words.tokenizer()
        return clips.new_clip(tokenizer, (32, 64, 96, 128), (1, 1, 1, 1), 96, 3, seed=0), tokenizer

    def new_judge(self):
        tokenizer = words.judge_tokenizer()
        return clips.new_clip(tokenizer, (32, 64, 96, 160), (1, 1, 2, 1), 96, 2, seed=1, enlarge=2), tokenizer

    def text(self):
        """The tokenizer and CLIP's trained text half."""
        model, tokenizer = self.new_clip()
        if (self.folder / "text_encoder.safetensors").exists():  # adopted
            return tokenizer, self.read("text_encoder", model.text_model)
        return tokenizer, self.read("clip", model).text_model

    def scaled_vae(self, stage: str = "vae"):
        """The VAE with the factor that brings its latents to unit variance, measured once for each vae.safetensors."""
        model, whole = self.read(stage, vaes.new_vae()), self.folder / "vae.safetensors"
        path, own = self.folder / "scaling_factor.json", fingerprint(whole)
        factors = json.loads(path.read_text()) if path.exists() else {}  # by the VAE's fingerprint
        if not isinstance(factors, dict):  # a bare number, of older versions: this VAE's, unless that is newer
            factors = {own: factors} if path.stat().st_mtime_ns >= whole.stat().st_mtime_ns else {}
        if own not in factors:
            model.register_to_config(scaling_factor=1.0)
            z = vaes.encode(model, self.stills("base", 1000, seed=3).pixels[:1000]).float()
            factors[own] = round(float(1 / z.std()), 5)
            write_atomically(path, lambda file: Path(file).write_text(json.dumps(factors)))
        model.register_to_config(scaling_factor=factors[own])
        return model

    def encoder(self) -> tuple[AutoencoderKL, str]:
        """The scaled VAE, and a tag for the names of its latents' files: another VAE or factor has another tag."""
        vae = self.scaled_vae()
        return vae, f"{fingerprint(self.folder / 'vae.safetensors')}-{vae.config.scaling_factor}"

    def clip_latents(self, name: str, count: int, recipe: WorldRecipe):
        """Latents n f c h w (float16) and captions of `count` clips, encoded once, a hundred clips at a time."""
        paths = render_clips(self.folder / "data", name, self.counted(count), recipe)
        (vae, tag), parts, captions = self.encoder(), [], []
        for path in tqdm(paths, desc="encoding clips", unit="00 clips"):
            cached = path.with_name(f"{path.stem}-{tag}.safetensors")
            chunk = np.load(path)
            if not cached.exists():
                z = vaes.encode(vae, rearrange(chunk["pixels"], "n f h w c -> (n f) h w c"))
                z = rearrange(z, "(n f) c h w -> n f c h w", f=recipe.frames).contiguous()
                write_atomically(cached, lambda file, z=z: save_file({"z": z}, file))
            parts.append(load_file(cached)["z"])
            captions += chunk["captions"].tolist()
        return torch.cat(parts), captions

    def latents(self, pictures, name):
        """All latents of a set, encoded once."""
        vae, tag = self.encoder()
        path = self.folder / "data" / f"{name}-{len(pictures)}-{tag}.safetensors"
        if not path.exists():
            start = time.time()
            z = vaes.encode(vae, pictures.pixels)
            write_atomically(path, lambda file: save_file({"z": z}, file))
            print(f"encoded {len(pictures)} pictures in {time.time() - start:.0f} s")
        return load_file(path)["z"]


def saying(captions: list[str], *motions: str) -> torch.Tensor:
    """The numbers of the captions that name one of these motions."""
    wordings = [words for motion in motions for words in DOING[motion]]
    return torch.tensor([k for k, said in enumerate(captions) if any(words in said for words in wordings)], dtype=torch.long)


def new_motion_modules(unet) -> MotionModules:
    """The miniature's motion modules, new: as the paper's v3, with four heads, each at least 16 wide."""
    return MotionModules.for_unet(unet, version="v3", heads=4)


def _load_as_float32(config: Path) -> None:
    """Let a plain from_pretrained load a transformers model as float32, though it is saved in half precision."""
    told = json.loads(config.read_text()) | {"dtype": "float32"}
    write_atomically(config, lambda file: Path(file).write_text(json.dumps(told, indent=2) + "\n"))


def save(model, path: Path):
    """Weights to a safetensors file; under `accelerate launch` the first process writes."""
    if not rank_and_world()[0]:
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        write_atomically(path, lambda file: save_file(state, file))


@torch.no_grad()
def reconstruction(vae, x) -> dict:
    """PSNR of whole held-out pictures, encoded to the latents' means and decoded."""
    vae.eval()
    x = x.to(vae.device)
    y = vae.decode(vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean).sample
    vae.train()
    return {"psnr": round(vaes.psnr(y, x), 2)}


def add_arguments(parser):
    parser.add_argument("stage", nargs="+", choices=[*STAGES, "adopt", "all"],
                        help="what to train, in the order given; adopt: start from the shipped weights; all: all from nothing")
    parser.add_argument(
        "--budget", type=float, default=1.0, help="share of the full number of steps and pictures; 0.02 is a smoke test"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/miniature"), help="working folder (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="stop a stage after this many seconds in all; without it, or with more, it resumes")
    parser.add_argument("--more", type=int, metavar="STEPS", help="train finished stages for this many more steps; if it may be stopped, give one stage of the recipe at a time")
    parser.add_argument("--batch", type=int, help="pictures or clips per step, instead of a stage's own; for a GPU")
    parser.add_argument("--lr", type=float, help="learning rate, instead of a stage's own; for larger batches")
    parser.add_argument("--count", type=int, help="pictures or clips to draw and learn from, instead of a stage's own")
    parser.add_argument("--samples", type=Path, default=Path("data_samples"), help="folder for results (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="CPU threads")


def run(args) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = Recipe(args.folder, args.budget, args.seconds, args.more, args.samples, args.batch, args.lr, args.count)
    stages = STAGES if "all" in args.stage else args.stage
    if "all" in args.stage and recipe.adopted() is not None:
        raise AnimkitError(f"{args.folder} goes on from what ships (adopt), and all trains from nothing: give another --folder.")
    for stage in stages:
        if stage in zoo.STAGES:
            if args.batch or args.lr or args.count:
                raise AnimkitError(f"--batch, --lr and --count are not for {stage}: the zoo's settings are those of its config.")
            zoo.run(stage, args.folder, args.samples, args.budget, args.seconds, args.more, args.threads)
        else:
            getattr(recipe, stage)()
    return 0
