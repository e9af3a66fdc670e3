"""The zoo: the paper's three stages and eight personalised looks, each trained by the command that users have.

    stage          `animkit train ...`                                                      file in data_samples/
    practice_looks look: nine LoRAs of other looks, for the motion module to practise on    none
    adapter        domain-adapter: single random frames of watermarked web video            domain_adapter.safetensors
    motion_web     motion-module: the same clips, the adapter in place with alpha 1         motion_module/
    motion_plain   motion-module: the ablation: same start, clips, steps, seed, no adapter  motion_module_plain...
    look           look: seven LoRAs and one full fine-tune, 50 pictures each               looks/ink...
    shots          motion-lora: one a shot type, 50 clips each, made by moving crops        motion_loras/zoom-in...
    zoo            nothing: copies finished runs to data_samples/, and how they were made to recipe.json

They need the base in data_samples/ (`animkit miniature assemble` puts it there; for what ships, run `adopt`). Stage 2 trains the
module that learned clean clips (`animkit miniature motion`) further; the result ships in its place. The work is in
runs/miniature/zoo/; the settings are those of configs/miniature.yaml and of this file.
"""
import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoints import open_checkpoint
from ..data.camera import SHOTS
from ..errors import AnimkitError, above_zero
from ..files import make_folder, write_atomically
from ..samples import CLONE, INSTALLED
from ..training import command
from ..training.history import History
from ..training.presets import find_config
from ..world import NEW_LOOKS, PRACTICE_LOOKS

CONFIG = Path("configs/miniature.yaml")
# The look that is a full fine-tune, as DreamBooth's: lines without surfaces, which a LoRA on the convolutions draws worst.
FULL = "blueprint"
# A lower learning rate for the whole UNet than for a LoRA; pictures and number of steps are the same.
FULL_SETTINGS = ("full=true", "training.lr=5e-4")
MODULE = "motion_module/diffusion_pytorch_model.safetensors"  # the one that ships, with its config.json
CLEAN = "clean_motion_module"  # in runs/miniature/: what `animkit miniature motion` made, put there by `assemble`, `adopt`
STAGES = ["practice_looks", "adapter", "motion_web", "motion_plain", "look", "shots", "zoo"]


@dataclass(frozen=True)
class Part:
    """One run of `animkit train`: its stage, what it sets on top of the config, its file in data_samples/ (if it ships)."""
    train: str
    settings: tuple[str, ...]
    file: str | None


def parts(zoo: Path, samples: Path) -> dict[str, dict[str, Part]]:
    """Stage of the zoo -> its runs, by the name of their folder in `zoo`."""
    base = () if samples.resolve() in (CLONE, INSTALLED) else (f"base={samples / 'miniature'}",)  # none: the config's own
    # Both runs of stage 2 start from the module that learned clean clips: from nothing it takes an hour.
    motion = (*base, f"start={zoo.parent / CLEAN}")
    looks = {f"looks/{look}": Part("look", (*base, f"data.world.looks=[{look}]", f"data.world.seed={20 + k}",
                                            *(FULL_SETTINGS if look == FULL else ())), f"looks/{look}.safetensors")
             for k, look in enumerate(NEW_LOOKS)}
    practice = {f"practice/{look}": Part("look", (*base, f"data.world.looks=[{look}]", f"data.world.seed={61 + k}"), None)
                for k, look in enumerate(PRACTICE_LOOKS)}
    on_web = (*base, f"motion_module={zoo / 'motion_web'}")
    shots = {f"shots/{shot.replace(' ', '-')}": Part("motion-lora", (*on_web, f"shot={shot}"),
                                                     f"motion_loras/{shot.replace(' ', '-')}.safetensors")
             for shot in SHOTS}
    return {
        "practice_looks": practice,
        "adapter": {"domain_adapter": Part("domain-adapter", base, "domain_adapter.safetensors")},
        "motion_web": {"motion_web": Part("motion-module", (*motion, f"domain_adapter={zoo / 'domain_adapter'}"),
                                          MODULE)},
        "motion_plain": {"motion_plain": Part("motion-module", (*motion, "domain_adapter=null"),
                                              "motion_module_plain.safetensors")},
        "look": looks,
        "shots": shots,
    }


def run(stage: str, folder: Path, samples: Path = Path("data_samples"), budget: float = 1.0,
        seconds: float | None = None, more: int | None = None, threads: int | None = None) -> None:
    """Train all runs of a stage, one after another; each continues where it was stopped, and one that has ended is kept.

    budget: share of the steps and of the clips; seconds: at most, for each run; more: steps on top of those done.
    Raises AnimkitError if what the stage needs is not there yet, and for a budget, seconds or more that is not above 0.
    """
    above_zero(budget=budget, seconds=seconds, more=more)
    if stage == "zoo":
        if not (made := assemble(folder, samples)):
            raise AnimkitError(f"No run in {folder / 'zoo'} has ended yet: train the stages before this one first.")
        return add_to_recipe(made, samples)
    zoo = folder / "zoo"
    config = CONFIG if CONFIG.is_file() else find_config(CONFIG.stem)
    runs, round_ = parts(zoo, samples)[stage], zoo / f"{stage}-more.json"  # where each run's round of `more` began: it may be stopped
    done = {name: steps for name in runs if (steps := _steps(zoo / name))}
    if more:
        begun = json.loads(round_.read_text()) if round_.exists() else {}
        done = begun["from"] if begun.get("more") == more else done
        make_folder(zoo)
        write_atomically(round_, lambda file: Path(file).write_text(json.dumps({"more": more, "from": done})))
    for name, part in runs.items():
        settings = [*part.settings, *_scaled(part, config, budget, done.get(name), more)]
        words = [part.train, "--config", str(config), "--folder", str(zoo / name)]
        words += [word for setting in settings for word in ("--set", setting)]
        words += ["--seconds", str(seconds)] if seconds else []
        words += ["--threads", str(threads)] if threads else []
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        command.run(parser.parse_args(words))
    if more and all(_steps(zoo / name) >= done.get(name, 0) + more for name in runs):
        round_.unlink()


def _steps(run: Path) -> int:
    """The steps of a run that has ended, else 0."""
    return json.loads((run / "train.json").read_text())["steps"] if (run / "train.json").exists() else 0


def _scaled(part: Part, config: Path, budget: float, done: int | None, more: int | None) -> list[str]:
    """The overrides that a budget and `more` ask for, on top of the steps of a run that has ended; none if all is as in the config."""
    from ..training.config import load_config
    whole = load_config(config, part.train, part.settings)
    steps = max(1, round(whole.training.steps * budget))
    if done is not None:  # keep the steps that `more` added before
        steps = max(steps, done) + (more or 0)
    scaled = [f"training.steps={steps}"] if steps != whole.training.steps else []
    count = min(whole.data.count, max(whole.data.batch, round(whole.data.count * budget)))
    return scaled + ([f"data.count={count}"] if count != whole.data.count else [])


def assemble(folder: Path, into: Path = Path("data_samples")) -> dict[str, dict]:
    """Copy the weights of the runs that have ended to data_samples/; -> how each was made, by its name in recipe.json."""
    made = {}
    for stage, runs in parts(folder / "zoo", into).items():
        for name, part in runs.items():
            run = folder / "zoo" / name
            if not (run / "train.json").exists():  # it is written at a run's end
                continue
            told = json.loads((run / "train.json").read_text())
            if part.file == MODULE:
                open_checkpoint(run / told["file"]).build().half().save_pretrained(into / "motion_module")
            elif part.file:
                write_atomically(into / part.file, lambda file: shutil.copyfile(run / told["file"], file))
            curve = np.array_split(History.of(run).losses, min(60, told["steps"]))
            made[recipe_name(part, name)] = {
                "stage": stage, "file": part.file, "command": told["command"], "steps": told["steps"],
                "of": told["steps"], "seconds": round(60 * told["minutes"]),
                "minutes_preparing": told["minutes_preparing"], "peak_memory_mb": told["peak_memory_mb"],
                "seed": told["seed"], "clips": told["clips"], "parameters": told["parameters"],
                "loss": told["final_loss"], "device": told["device"],
                "mixed_precision": told["settings"]["training"]["mixed_precision"],  # what "auto" was on that device
                "curve": [round(float(c.mean()), 4) for c in curve]}
    if "motion_module" in made and (folder / "practice.json").exists():  # what that module went on from ships with it
        made["practice"] = json.loads((folder / "practice.json").read_text())
    return made


def recipe_name(part: Part, run: str) -> str:
    """The name of a part in recipe.json: "look-ink", "shot-zoom-in", "motion_module", "domain_adapter", "practice-fog"."""
    if part.file is None:
        return run.replace("/", "-")
    if part.file == MODULE:
        return "motion_module"
    where, _, name = part.file.removesuffix(".safetensors").rpartition("/")
    return {"looks": "look-", "motion_loras": "shot-", "": ""}[where] + name


def add_to_recipe(made: dict[str, dict], into: Path) -> None:
    """Put these parts into recipe.json, in the place of older ones of the same name; the rest stays."""
    path = into / "recipe.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    write_atomically(path, lambda file: Path(file).write_text(json.dumps(told | made, indent=1) + "\n"))
