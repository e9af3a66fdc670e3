"""The stages: only what should learn changes, files open and insert, a killed run equals an unbroken one, faults."""
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import animkit as ak
from animkit import opening
from animkit.cli import main
from animkit.errors import AnimkitError
from animkit.look import new_look
from animkit.training import History, load_config, saving, sources, stages, stage as stage_module
from animkit.training.config import DataConfig, WorldConfig
from animkit.training.history import locked
from animkit.training.stages import TRAIN

CONFIG = """
base: {toy}
domain_adapter:
  rank: 2
  data: &clips {{source: world, batch: 2, size: 16, frames: 3, count: 4, world: {{web: true}}}}
  noise: {{beta_schedule: scaled_linear}}
  sample_steps: 2
  training: &training {{steps: 3, lr: 1e-2, device: cpu}}
motion_module:
  domain_adapter: {runs}/adapter
  data: *clips
  sample_steps: 2
  training: {{steps: 3, lr: 1e-2, device: cpu, ema: 0.9, validate_every: 2}}
motion_lora:
  domain_adapter: {runs}/adapter
  motion_module: {runs}/motion
  shot: roll-clockwise
  rank: 2
  data: *clips
  sample_steps: 2
  training: *training
look:
  rank: 2
  data: {{source: world, batch: 2, size: 16, count: 4, world: {{looks: [ink]}}}}
  noise: {{beta_schedule: scaled_linear}}
  sample_steps: 2
  training: *training
"""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(toy, tmp_path_factory):
    """A folder with all stages trained in their order, on one another."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "toy.yaml").write_text(CONFIG.format(toy=toy, runs=folder))
    return folder


def train(runs: Path, stage: str, folder: str, *overrides: str):
    return TRAIN[stage](load_config(runs / "toy.yaml", stage, overrides), runs / folder, quiet=True)


@pytest.fixture(scope="module")
def trained(runs):
    watched = {}

    def watch(stage, folder, *overrides):
        """Train, and tell which tensors of the base and of the frozen parts are no more what they were."""
        seen, fit = {}, stage_module.fit

        def watched_fit(model, *args, **kwargs):
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            history = fit(model, *args, **kwargs)
            seen["changed"] = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
            seen["parts"] = len(model.parts)
            return history

        stage_module.fit = watched_fit
        try:
            result = train(runs, stage, folder, *overrides)
        finally:
            stage_module.fit = fit
        watched[folder] = (result, seen["changed"], seen["parts"])

    watch("domain_adapter", "adapter")
    watch("motion_module", "motion")
    watch("motion_lora", "lora")
    watch("look", "look")
    watch("look", "full", "full=true")
    watch("look", "local", "layers=convolutions")
    return watched


# ---- what learns, and nothing else

@pytest.mark.parametrize("folder, parts", [("adapter", 1), ("motion", 2), ("lora", 3), ("look", 1)])
def test_only_the_last_part_inserted_changes(trained, folder, parts):
    result, changed, inserted = trained[folder]
    part = result.animator.video_unet.parts[-1]
    assert inserted == parts
    assert changed == {f"parts.{parts - 1}.{name}" for name, _ in part.named_parameters()}  # all of it, and only it


def test_a_full_look_changes_the_unet_and_nothing_is_inserted(trained):
    result, changed, inserted = trained["full"]
    assert inserted == 0
    assert changed == {f"unet.{name}" for name, _ in result.animator.pipe.unet.named_parameters()}


def test_what_each_stage_adapts(trained):
    adapter, lora, look = (trained[name][0].animator.video_unet.parts[-1].paths for name in ("adapter", "lora", "look"))
    assert all(".attn1." in p or ".attn2." in p for p in adapter) and len(adapter) % 8 == 0
    assert all(".motion_modules." in p and ".attention_blocks." in p for p in lora)
    assert set(adapter) < set(look) and any("time_emb_proj" in p for p in look)


def test_a_look_can_be_a_lora_on_the_convolutions_and_reopens(trained):
    result, changed, inserted = trained["local"]
    lora, unet = result.animator.video_unet.parts[-1], result.animator.pipe.unet
    assert inserted == 1 and changed == {f"parts.0.{name}" for name, _ in lora.named_parameters()}
    assert set(lora.paths) == {path for path, layer in unet.named_modules() if isinstance(layer, torch.nn.Conv2d)}
    with pytest.raises(AnimkitError, match="on linear or convolutions layers of the UNet, not on 'finest'"):
        new_look(unet, layers="finest")
    reopened = ak.open_checkpoint(result.file)
    assert reopened.kind == "LoRA" and set(reopened.build(result.animator.video_unet).paths) == set(lora.paths)


@pytest.mark.parametrize("override, heavier", [("snr_plus_one=true", True), ("min_snr_gamma=0.1", False)])
def test_the_settings_say_what_timesteps_count(runs, trained, override, heavier):
    first = trained["motion"][0].history.losses[0]  # of the same fresh module, the same clips and the same noise
    weighed = train(runs, "motion_module", f"weighed-{heavier}", override, "training.steps=1").history.losses[0]
    assert weighed > 1.01 * first if heavier else weighed < 0.99 * first


def test_the_settings_say_how_many_captions_are_dropped(runs, trained):
    """At 1 every caption is the empty prompt: another loss, of the same module, clips and noise, than at 0."""
    losses = {drop: train(runs, "motion_module", f"dropped-{drop}", f"drop_captions={drop}", "training.steps=1",
                          "prompts=[a red balloon]").history.losses[0] for drop in (0, 1)}
    assert losses[0] != losses[1]


# ---- files

@pytest.mark.parametrize("folder, kind", [("adapter", "domain adapter"), ("motion", "motion module"),
                                          ("lora", "MotionLoRA"), ("look", "LoRA"), ("full", "UNet")])
def test_files_open_as_what_they_are_in_half_precision(trained, folder, kind):
    result = trained[folder][0]
    checkpoint = ak.open_checkpoint(result.file)
    assert checkpoint.kind == kind and checkpoint.dtypes == ("float16",)
    assert result.file.name == f"{folder}.safetensors"


@pytest.mark.parametrize("folder, others", [("adapter", []), ("motion", ["adapter"]), ("lora", ["adapter", "motion"]),
                                            ("look", []), ("full", [])])
def test_a_file_in_a_fresh_base_is_what_was_trained(trained, toy, folder, others):
    """The same predictions up to the file's half precision, which is far less than what training changed."""
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 3, 8, 8, generator=g), torch.randn(1, 5, 16, generator=g)
    fresh = ak.Animator(toy, motion=False, device="cpu")
    for name in others:
        fresh.insert(ak.open_checkpoint(trained[name][0].file))
    with torch.no_grad():
        before = fresh.video_unet(x, 500, text)
        fresh.insert(str(trained[folder][0].file))
        after, learned = fresh.video_unet(x, 500, text), trained[folder][0].animator.video_unet(x, 500, text)
    assert (after - learned).abs().max() < 0.1 * (before - learned).abs().max()
    assert (before - learned).abs().max() > 1e-4


def test_the_file_holds_the_average_where_one_is_kept(trained, runs):
    ema = load_file(runs / "motion" / "checkpoint" / "ema.safetensors")
    name = "down_blocks.0.motion_modules.0.temporal_transformer.proj_out.weight"
    stored = load_file(runs / "motion" / "motion.safetensors")[name]
    assert torch.equal(stored, ema[f"parts.1.{name}"].half()) and stored.abs().max() > 0


def test_train_json_says_what_made_the_file(trained, runs):
    record = json.loads((runs / "lora" / "train.json").read_text())
    assert record == trained["lora"][0].record
    said = [record[k] for k in ("stage", "steps", "seed", "skipped", "clips")]
    assert said == ["MotionLoRA", 3, 0, 0, 4]
    assert record["settings"]["shot"] == "roll-clockwise" and record["peak_memory_mb"] > 50
    assert record["final_loss"] == pytest.approx(History.of(runs / "lora").losses.mean(), abs=1e-5)


def test_curve_and_samples_are_written_as_it_goes(trained, runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    assert sorted(p.name for p in (runs / "motion" / "samples").iterdir()) == [
        f"step-00000{step}.{kind}" for step in (2, 3) for kind in ("mp4", "png")]
    strip = np.asarray(Image.open(runs / "motion" / "samples" / "step-000003.png").convert("RGB"))
    assert strip.std() > 5 and np.asarray(Image.open(runs / "motion" / "loss.png")).std() > 5
    film = ak.Clip.load(runs / "motion" / "samples" / "step-000003.mp4")
    assert len(film) == 3 and film.array.std() > 5
    assert [p.suffix for p in (runs / "look" / "samples").iterdir()] == [".png"]  # stills
    board = EventAccumulator(str(runs / "motion" / "tensorboard")).Reload()
    assert [event.step for event in board.Images("validate/samples")] == [2, 3]


def test_stages_share_the_cache_of_the_same_clips(trained, runs):
    # the clips of adapter and motion module; those of the MotionLoRA, which the camera moves; the stills of the look
    assert len(list((runs / "cache").glob("latents-*"))) == 3


# ---- the command, killed

KILLED = """
import sys, time
from animkit.training import sources
def slowly(self, batch, tensors=sources.Source.tensors):
    time.sleep(0.2)
    return tensors(self, batch)
sources.Source.tensors = slowly
from animkit.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_killed_with_9_and_given_again_equals_the_unbroken_one(runs, trained, monkeypatch, capsys):
    steps = 30
    words = ["train", "motion-module", "--config", str(runs / "toy.yaml"), "--threads", "1", "--quiet",
             "--set", f"training.steps={steps}", "--set", "training.checkpoint_seconds=0.05",
             "--set", "training.validate_every=0"]
    assert main([*words, "--folder", str(runs / "whole")]) == 0
    broken = [*words, "--folder", str(runs / "broken")]
    log = runs / "broken" / "log.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, *broken], env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 400
    while not (runs / "broken" / "checkpoint" / "state.json").exists() or len(History.of(log.parent).records) < 4:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (runs / "broken" / "broken.safetensors").exists()
    begun, learned, tensors = saving.read_state(runs / "broken")["step"], [], sources.Source.tensors
    monkeypatch.setattr(sources.Source, "tensors", lambda self, batch: learned.append(1) or tensors(self, batch))
    assert main(broken) == 0  # the same command
    assert 0 < begun < steps and len(learned) == steps - begun, "it goes on, and does not begin again"
    a, b = History.of(runs / "whole"), History.of(runs / "broken")
    assert a.steps.tolist() == b.steps.tolist() == list(range(1, steps + 1))
    assert a.losses.tolist() == b.losses.tolist()
    one, other = load_file(runs / "whole" / "whole.safetensors"), load_file(runs / "broken" / "broken.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    written = (runs / "whole" / "train.json").read_text()
    assert json.loads(written)["command"].startswith("animkit train motion-module --config ")
    assert main([*words[:6], *words[7:], "--folder", str(runs / "whole")]) == 0  # nothing left to do: what is written stays
    assert "whole.safetensors is there already, after 30 steps" in capsys.readouterr().err
    assert (runs / "whole" / "train.json").read_text() == written
    (runs / "whole" / "log.jsonl").unlink()
    assert main([*words, "--folder", str(runs / "whole")]) == 2
    assert "its log.jsonl is gone" in capsys.readouterr().err and (runs / "whole" / "train.json").read_text() == written
    for odd in ("0", "-1", "two"):
        with pytest.raises(SystemExit):
            main([*words, "--threads", odd])
        assert f"{odd} is no whole number of at least 1" in capsys.readouterr().err
    for odd in ("0", "-1", "nan"):
        assert main([*words, "--seconds", odd]) == 2 and "--seconds is above 0" in capsys.readouterr().err


@pytest.mark.slow  # three processes that import everything
def test_the_command_on_two_processes_equals_one_with_twice_the_batch(runs, trained):
    command = ["-m", "animkit", "train", "motion-lora", "--config", str(runs / "toy.yaml"), "--threads", "1", "--quiet",
               "--set", "training.steps=12", "--set", "training.validate_every=5"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    for name, batch, how in (("two-processes", 1, launch), ("one-process", 2, [])):
        words = [sys.executable, *how, *command, "--set", f"data.batch={batch}", "--folder", str(runs / name)]
        done = subprocess.run(words, env=env, timeout=600, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    two, one = History.of(runs / "two-processes"), History.of(runs / "one-process")
    assert len(two.losses) == 12 and two.losses[:10] == pytest.approx(one.losses[:10], abs=1e-4)
    assert json.loads((runs / "two-processes" / "train.json").read_text())["processes"] == 2
    a, b = (load_file(runs / name / f"{name}.safetensors") for name in ("two-processes", "one-process"))
    for key, weight in b.items():
        torch.testing.assert_close(a[key], weight, atol=1e-3, rtol=1e-2)
    assert (runs / "two-processes" / "samples" / "step-000005.png").exists()


def test_a_run_goes_on_only_under_its_own_settings(runs, trained, monkeypatch):
    shutil.copytree(runs / "look", runs / "again")
    for override, name in (("rank=3", "rank"), ("data.world.seed=5", r"data.world.seed \(was 0, now 5\)"),
                           ("drop_captions=0.5", "drop_captions")):
        with pytest.raises(AnimkitError, match=f"begun with other settings: {name}"):
            train(runs, "look", "again", override)
    with pytest.raises(AnimkitError, match=r"other settings: lr \(was 0.01, now 0.02\)"):
        train(runs, "look", "again", "training.lr=0.02")
    told = json.loads((runs / "again" / "settings.json").read_text())
    del told["data"]["world"]["moving"], told["layers"]  # as an animkit wrote it that did not know these
    (runs / "again" / "settings.json").write_text(json.dumps(told))
    for override, name in (("layers=convolutions", "layers"), ("data.world.moving=0.5", "data")):
        with pytest.raises(AnimkitError, match=f"begun with other settings: {name}"):
            train(runs, "look", "again", override)
    with monkeypatch.context() as other, pytest.raises(AnimkitError, match="other settings: weights of the base"):
        other.setattr(stage_module, "fingerprint_of", lambda module: "of other weights")
        train(runs, "look", "again")
    free = ("data.workers=2", "prompts=[a red bird]", "sample_steps=3", "gradient_checkpointing=true")
    assert train(runs, "look", "again", "training.steps=4", *free).record["steps"] == 4  # longer is welcome


def test_a_run_begun_anew_writes_its_own_weights(runs, trained):
    first = train(runs, "look", "anew").file.read_bytes()
    assert train(runs, "look", "anew").file.read_bytes() == first  # it had ended: nothing is trained, nothing written
    shutil.rmtree(runs / "anew" / "checkpoint")
    again = train(runs, "look", "anew", "training.lr=0.02")
    assert again.record["settings"]["training"]["lr"] == 0.02 and again.file.read_bytes() != first


def test_a_run_that_is_refused_leaves_the_settings_of_the_one_under_way(runs, trained):
    (runs / "both").mkdir()
    with locked(runs / "both"):
        with pytest.raises(AnimkitError, match="Another run is training"):
            train(runs, "look", "both")
        assert not (runs / "both" / "settings.json").exists()


def test_the_copy_of_a_finished_run_serves_as_the_run_does(runs, trained):
    shutil.copytree(runs / "adapter", runs / "copied")
    result = train(runs, "motion_module", "on-a-copy", f"domain_adapter={runs / 'copied'}", "training.steps=1")
    assert len(result.animator.video_unet.parts) == 2  # the adapter is in place


def test_settings_noted_by_a_run_that_only_prepared_do_not_stay(runs, trained, monkeypatch):
    """One prepares; another begins in the same folder and ends meanwhile: the first is refused, or notes its own."""
    def prompts(stage, source):  # asked for when the clips are ready
        monkeypatch.setattr(stage_module.Stage, "_prompts", lambda *args: [])
        train(runs, "look", "race", "rank=3")
        return []

    monkeypatch.setattr(stage_module.Stage, "_prompts", prompts)
    with pytest.raises(AnimkitError, match=r"begun with other settings: rank \(was 3, now 2\)"):
        train(runs, "look", "race")
    assert json.loads((runs / "race" / "settings.json").read_text())["rank"] == 3


def test_a_whole_look_is_freed_with_its_animator(trained, toy):
    animator = ak.Animator(toy, motion=False, device="cpu")
    animator.insert(str(trained["full"][0].file))
    unet = weakref.ref(animator.video_unet.unet)
    del animator
    gc.collect()
    assert unet() is None


# ---- faults

@pytest.mark.parametrize("stage, overrides, message", [
    ("look", ["data.size=18"], "data.size does not fit the base"),
    ("look", ["noise.beta_schedule=linear"], "noise.beta_schedule is linear, but the base .* with scaled_linear"),
    ("look", ["noise.prediction_type=v_prediction"], "noise.prediction_type is v_prediction, but the base"),
    ("look", ["noise.num_train_timesteps=500"], "noise.num_train_timesteps is 500, but the base"),
    ("look", ["noise.beta_start=0.001"], "noise.beta_start is 0.001, but the base"),
    ("look", ["noise.beta_end=0.02"], "noise.beta_end is 0.02, but the base"),
    ("look", ["data.source=a.tar", "data.world=null"], "from a folder of captioned images, not from a.tar"),
    ("motion_module", ["data.source=a.tar", "data.world=null"], "data.count does not work with a stream"),
    ("motion_module", ["data.crop=random"], "data.crop does nothing in the cartoon world"),
    ("motion_module", ["data.cache=false"], "data.cache: false does nothing in the cartoon world"),
    ("look", ["data.world.looks=[inkk]"], "no look inkk to draw"),
    ("look", ["data.count=null"], "data.count: the cartoon world has no end"),
    ("look", ["data.flip=true"], "data.flip does nothing in the cartoon world"),
    ("look", ["data.source=nowhere", "data.world.looks=[flat]"], "data.world says how the cartoon world draws"),
    ("motion_module", ["data.source=nowhere", "data.world.web=false"], "no file or folder nowhere"),
    ("motion_module", ["data.frames=40"], "data.frames is 40, more than the 32 positions"),
    ("motion_module", ["domain_adapter=nowhere"], "domain_adapter: there is no file, no run and no sample 'nowhere'"),
    ("motion_module", ["domain_adapter={runs}/motion"], "domain_adapter: .* is a motion module, not a domain adapter"),
    ("motion_module", ["heads=5"], "cannot have 5 heads"),
    ("motion_module", ["start={runs}/motion", "kind=conv"], "kind is 'conv', but start: .*motion has 'attention': set kind"),
    ("motion_module", ["start={runs}/motion", "version=v2"], "version is 'v2', but start: .*motion has 'v3'"),
    ("motion_module", ["data.stride=2"], "data.stride does nothing in the cartoon world"),
    ("motion_module", ["data.source={runs}", "data.videos={runs}", "data.world.web=false"], "data.videos is where"),
    ("motion_lora", ["shot=dolly"], "unknown shot type 'dolly'"),
    ("motion_lora", ["camera=crop", "amount=1.5"], "amount of 'roll clockwise' is 1.5"),
    ("motion_lora", ["motion_module={runs}/lora"], "motion_module: .* is a MotionLoRA, not a motion module"),
    ("look", ["sample_steps=1001"], "sample_steps is 1001, and samples are drawn by noise: steps is at most 1000"),
    ("look", ["data.frames=99"], "data.frames is of clips, and a look is learned from stills"),
    ("motion_module", ["base=nowhere"], "There is no base model at 'nowhere'"),
])
def test_a_config_that_does_not_fit_is_one_clear_sentence(runs, trained, stage, overrides, message):
    with pytest.raises(AnimkitError, match=message):
        train(runs, stage, "faults", *[o.format(runs=runs) for o in overrides])


def test_without_a_shot_a_motion_lora_learns_from_clips_as_they_are(runs, trained, monkeypatch):
    """As for a dance: clips that show the motion already."""
    asked, real = [], stages.Stage.videos
    monkeypatch.setattr(stages.Stage, "videos", lambda self, **shot: asked.append(shot) or real(self, **shot))
    record = train(runs, "motion_lora", "as they are", "shot=null", "training.steps=1").record
    assert asked == [{}] and record["settings"]["shot"] is None


def test_parts_of_another_base_are_named(runs, trained, toy, tmp_path):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    pipe = StableDiffusionPipeline.from_pretrained(toy, safety_checker=None)
    wide = {**pipe.unet.config, "block_out_channels": (16, 48)}
    pipe.unet = UNet2DConditionModel.from_config({k: v for k, v in wide.items() if not k.startswith("_")})
    pipe.save_pretrained(tmp_path / "wide")
    for stage, overrides, setting in (("motion_module", [], "domain_adapter"),
                                      ("motion_lora", ["domain_adapter=null"], "motion_module")):
        with pytest.raises(AnimkitError, match=f"{setting}: .* does not fit the base"):
            train(runs, stage, "other", f"base={tmp_path / 'wide'}", *overrides)


def test_weights_that_float16_cannot_hold_are_not_written(runs, monkeypatch):
    def diverging(model, *args, fit=stage_module.fit, **how):
        history = fit(model, *args, **how)
        with torch.no_grad():
            next(model.parts[-1].parameters()).fill_(1e6)
        return history

    monkeypatch.setattr(stage_module, "fit", diverging)
    with pytest.raises(AnimkitError, match="numbers that float16 cannot hold: the run diverged"):
        train(runs, "look", "diverged")
    assert not (runs / "diverged" / "diverged.safetensors").exists()


def test_samples_that_cannot_be_drawn_do_not_lose_the_training(runs, trained, monkeypatch):
    def full(*args):
        raise AnimkitError("no room for samples")

    monkeypatch.setattr(stage_module.Stage, "_sample", full)
    with pytest.raises(AnimkitError, match="no room for samples"):
        train(runs, "look", "unseen")
    assert saving.read_state(runs / "unseen")["step"] == 3 and History.of(runs / "unseen").steps.tolist() == [1, 2, 3]
    result = train(runs, "look", "unseen")  # nothing is left to train, nor to draw
    told, usual = load_file(result.file), load_file(trained["look"][0].file)
    assert told.keys() == usual.keys() and all(torch.equal(told[name], usual[name]) for name in told)


@pytest.mark.parametrize("file", ["settings.json", "checkpoint/state.json", "checkpoint/weights.safetensors"])
def test_a_damaged_file_of_a_run_is_named(runs, trained, file):
    folder = shutil.copytree(runs / "look", runs / f"damaged-{Path(file).stem}")
    (folder / file).write_text('{"step": 2,')
    with pytest.raises(AnimkitError, match=f"{file.split('/')[0]}.* cannot be read .*to train from the start"):
        train(runs, "look", folder.name)


def test_a_full_disk_at_the_end_keeps_the_run(runs, trained, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    shutil.copytree(runs / "look", runs / "disk")
    (runs / "disk" / "look.safetensors").rename(runs / "disk" / "disk.safetensors")
    (runs / "disk" / "train.json").unlink()
    old = (runs / "disk" / "disk.safetensors").read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(AnimkitError, match="No space left on device.*untouched"):
        train(runs, "look", "disk")
    assert (runs / "disk" / "disk.safetensors").read_bytes() == old
    monkeypatch.undo()
    assert train(runs, "look", "disk").record["steps"] == 3  # the checkpoint was there all the while


# ---- data of one's own

def test_the_settings_of_data_reach_what_reads_it(tmp_path):
    """Each is set to another than its default."""
    video, table, shards = tmp_path / "a.mp4", tmp_path / "a.csv", tmp_path / "a.tar"
    frames = np.random.default_rng(0).integers(0, 256, (8, 24, 32, 3), dtype=np.uint8)
    ak.Clip(frames, 8, "").save(video)
    table.write_text("videoid,name,page_dir\n1,a red ball,.\n")
    with tarfile.open(shards, "w") as tar:
        tar.add(video, "a.mp4")
    cut, shot = dict(size=16, frames=3, stride=2, crop="random", flip=True), {"shot": "zoom in", "amount": 0.2}
    for source in (tmp_path, table, shards):
        data = DataConfig(source=str(source), videos=str(tmp_path) if source == table else None, batch=1, **cut)
        clips = sources.videos(data, 7, {})
        assert vars(clips.recipe).items() >= cut.items() and clips.seed == 7
        if source == table:
            with pytest.raises(AnimkitError, match="data.videos: there is no folder nowhere with the videos"):
                sources.videos(replace(data, videos="nowhere"), 7, {})
        moved = sources.videos(replace(data, crop="centre", flip=False), 7, {**shot, "camera": "crop"})
        assert vars(moved.recipe).items() >= shot.items()
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a red ball\n")
    own = {"batch": 1, "size": 16, "crop": "random", "flip": True}
    found = sources.images(DataConfig(source=str(tmp_path), **own), 7)
    assert (found.size, found.crop, found.flip, found.seed) == ((16, 16), "random", True, 7)
    world = WorldConfig(looks=("ink",), web=True, moving=0.25, moves=0.5, seed=9)
    drawn = sources.videos(DataConfig(source="world", batch=1, size=16, frames=3, count=2, world=world), 7, {}).recipe
    assert {name: getattr(drawn, name) for name in ("looks", "web", "moving", "moves", "seed")} == vars(world)


def test_samples_are_drawn_of_the_prompts_by_the_noise_of_the_stage(runs, trained, monkeypatch, recwarn):
    asked = []
    plain = ak.Animator.__call__
    monkeypatch.setattr(ak.Animator, "__call__", lambda self, prompt, **how: asked.append((prompt, how)) or plain(self, prompt, **how))
    shown = train(runs, "motion_module", "shown", "prompts=[a red bird]", "noise.beta_schedule=squaredcos_cap_v2",
                  "training.validate_every=0", f"start={runs / 'motion'}", "training.lr=1e-12")
    (prompt, how), = asked
    begun = load_file(trained["motion"][0].file)
    assert all(torch.equal(begun[name], weight) for name, weight in load_file(shown.file).items()), "it began with `start`"
    train(runs, "look", "captioned")  # nothing is asked for: the first three captions
    assert [(own["seed"], own["height"], own["width"]) for _, own in asked[1:]] == [(0, 16, 16), (1, 16, 16), (2, 16, 16)]
    assert prompt == "a red bird" and how["scheduler"].config.beta_schedule == "squaredcos_cap_v2" and how["steps"] == 2
    train(runs, "motion_module", "own-betas", "prompts=[a red bird]", "noise.beta_schedule=scaled_linear", "training.validate_every=0")
    assert not [told for told in recwarn if "betas" in str(told.message)]  # the run's own, though the base's too


def test_captions_in_words_that_the_base_never_learned_give_no_samples_and_it_is_said(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(opening.DEFAULTS, "vocabulary", ["a", "red", "bird"])
    for i in range(2):
        Image.fromarray(np.full((20, 24, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("my poodle")
    own = ["data.source=" + str(tmp_path), "data.world.looks=[flat, comic, clay, watercolour]"]
    for folder, prompts in (("poodles", ()), ("poodles-asked", ("prompts=[a red bird]",))):
        config = load_config(runs / "toy.yaml", "look", [*own, *prompts])
        TRAIN["look"](config, runs / folder)
        said = "set prompts to some in its own words" in capsys.readouterr().err
        assert said == (not prompts) and (runs / folder / "samples").exists() == bool(prompts)
    with pytest.raises(AnimkitError, match="never learned .*poodle"):
        TRAIN["look"](load_config(runs / "toy.yaml", "look", [*own, "prompts=[a poodle]"]), runs / "early", quiet=True)
    assert not (runs / "early").exists(), "before it trains"


def test_images_with_captions_and_what_is_missing(runs, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 24, 3), 60 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "metadata.csv").write_text("file_name,caption\n0.png,a red balloon\n")
    own = ["data.source=" + str(folder), "data.world.looks=[flat, comic, clay, watercolour]"]
    with pytest.raises(AnimkitError, match="lacks the column text"):
        train(runs, "look", "images", *own)
    (folder / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.png,a red balloon\n" for i in range(3)))
    assert train(runs, "look", "images", *own).record["clips"] == 3
    assert train(runs, "look", "images-live", *own, "data.cache=false").record["clips"] == 3


def test_videos_of_a_folder_live_and_cached_and_bad_ones(runs, trained, tmp_path, capfd, monkeypatch):
    before, fit = [], stage_module.fit  # what was said before the first step
    monkeypatch.setattr(stage_module, "fit", lambda *args, **how: before.append(capfd.readouterr().err) or fit(*args, **how))
    good = tmp_path / "good"
    good.mkdir()
    for i in range(12):
        frames = np.random.default_rng(i).integers(0, 256, (8, 24, 32, 3), dtype=np.uint8)
        ak.Clip(frames, 8, "").save(good / f"{i}.mp4")
    (good / "broken.mp4").write_bytes(b"no video")
    own = [f"data.source={good}", "data.stride=2", "data.workers=2", "data.world.web=false", "camera=crop", "amount=0.3"]
    result = train(runs, "motion_lora", "videos", *own, "data.count=null")
    assert (result.record["clips"], result.record["skipped"]) == (12, 1)
    assert result.record["skipped_videos"] == [str(good / "broken.mp4")]
    del result
    gc.collect()
    assert "broken.mp4: unreadable" in capfd.readouterr().err and "cannot be used" not in before[0], "at the end"
    again = train(runs, "motion_lora", "videos-again", *own, "data.count=null")  # whose latents are there already
    assert (again.record["clips"], again.record["skipped"]) == (12, 1)
    del again
    gc.collect()
    told = capfd.readouterr().err
    assert "1 of 13 videos tried cannot be used" in told and "broken.mp4: unreadable" in told
    live = train(runs, "motion_lora", "videos-live", *own, "data.count=12", "data.cache=false", "training.prefetch=2")
    assert live.history.steps.tolist() == [1, 2, 3] and live.record["clips"] == 12
    for i in (1, 2):
        (good / f"{i}.mp4").write_bytes(b"")
    with pytest.raises(AnimkitError, match="over 10% of the videos cannot be used(.|\n)*1.mp4"):
        train(runs, "motion_lora", "videos-bad", *own, "data.count=null")
    with pytest.raises(AnimkitError, match="camera: scene moves the camera of the cartoon world"):
        train(runs, "motion_lora", "videos-bad", *own, "camera=scene")


@pytest.fixture(scope="module")
def webvid(tmp_path_factory):
    """Twelve videos as a WebVid table, and the same as two shards."""
    folder = tmp_path_factory.mktemp("webvid")
    (folder / "videos").mkdir()
    rows = ["videoid,name,page_dir"]
    for i in range(12):
        frames = np.random.default_rng(i).integers(0, 256, (8, 24, 32, 3), dtype=np.uint8)
        ak.Clip(frames, 8, "").save(folder / "videos" / f"{i}.mp4")
        (folder / "videos" / f"{i}.txt").write_text("a red balloon")
        rows.append(f"{i},a red balloon,")
        with tarfile.open(folder / f"clips-{i % 2}.tar", "a") as shard:
            for suffix in ("mp4", "txt"):
                shard.add(folder / "videos" / f"{i}.{suffix}", f"{i}.{suffix}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("stage, source, clips", [
    ("domain_adapter", "table.csv", 12), ("motion_module", "table.csv", 12), ("motion_lora", "videos", 12),
    ("motion_module", "clips-{0..1}.tar", None)])
def test_the_settings_for_full_size_train_a_table_and_shards(toy, runs, trained, webvid, stage, source, clips):
    """configs/sd15.yaml, bf16, live decoding and all; only the base, the sizes and the length are others."""
    motion = stage != "domain_adapter"
    own = [f"data.videos={webvid / 'videos' if source == 'table.csv' else 'null'}"]
    own += [f"domain_adapter={runs / 'adapter'}", "data.stride=2"] if motion else []
    own += [f"motion_module={runs / 'motion'}"] if stage == "motion_lora" else []
    own += ["rank=2"] if stage != "motion_module" else []
    small = {"base": toy, "data.source": webvid / source, "data.size": 16, "data.batch": 2, "sample_steps": 2,
             "data.frames": 3 if motion else 1, "training.steps": 3, "training.device": "cpu"}
    config = load_config("sd15", stage, [*own, *(f"{name}={value}" for name, value in small.items())])
    folder = runs / f"sd15-{stage}-{clips}"
    result = TRAIN[stage](config, folder, quiet=True)
    assert config.training.mixed_precision == "bf16" and config.data.cache == (stage == "motion_lora")
    assert result.history.steps.tolist() == [1, 2, 3] and np.isfinite(result.history.losses).all()
    assert result.record["clips"] == clips and ak.open_checkpoint(result.file).kind == result.record["stage"]
    assert result.animator.pipe.unet.is_gradient_checkpointing == motion
    assert (folder / "samples" / "step-000003.png").exists()


# ---- the cartoon world as a source

@pytest.mark.parametrize("camera", ["scene", "crop"])
def test_the_camera_of_world_clips_moves_as_its_shot_says(camera):
    """A still scene seen by a camera that pans right: what was to the right comes to the middle."""
    from animkit.data import WorldClips
    amount = 1.0 if camera == "scene" else 0.3
    clips = WorldClips(3, size=32, frames=5, moving=0, shot="pan-right", camera=camera, amount=amount)
    still = WorldClips(3, size=32, frames=5, moving=0)
    for i in range(3):
        video = clips.get(i)["video"]
        errors = [float((video[:, 0, :, s:] - video[:, 1, :, :32 - s]).abs().mean()) for s in range(6)]
        assert np.argmin(errors) >= 1  # the scenery of the next frame lies further left
        assert torch.equal(still.get(i)["video"][:, 0], still.get(i)["video"][:, 4])
