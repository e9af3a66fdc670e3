"""The recipe, from nothing to a pipeline that draws, at a size where every stage is a step or two."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import animkit as ak
from animkit.data.camera import any_crop, apply
from animkit.checkpoints import save_checkpoint
from animkit.errors import AnimkitError
from animkit.look import new_look
from animkit.miniature import motion, recipe, stills, words
from animkit.miniature.evaluate import fingerprint
from animkit.miniature.clip import ImageText
from animkit.world import BASE_LOOKS, LOOKS, PRACTICE_LOOKS, random_scene, render
from tiny import equal_states, shaken


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(stills, "CHUNK", 40)
    monkeypatch.setattr(motion, "CHUNK", 6)
    monkeypatch.setattr(recipe, "STEPS", {stage: 2 for stage in recipe.STEPS})
    return recipe.Recipe(tmp_path / "run", budget=1e-6)


def make_practice_looks(folder, look):
    """What the stage practice_looks leaves: one LoRA here, under the name of each."""
    for name in PRACTICE_LOOKS:
        file = folder / "zoo" / "practice" / name / f"{name}.safetensors"
        file.parent.mkdir(parents=True)
        save_checkpoint(look, file, "diffusers", kind="look")


def test_the_whole_recipe_makes_a_pipeline_that_draws(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "steps", lambda stage: 2)
    for stage in [s for s in recipe.STAGES if s not in ("assemble", "motion_judge", "practice", *recipe.zoo.STAGES)]:
        getattr(tiny, stage)()
    into = tmp_path / "samples"
    into.mkdir()
    tiny.assemble(into)
    pipe = StableDiffusionPipeline.from_pretrained(into / "miniature")
    image = pipe("a red balloon over the sea", num_inference_steps=2, height=64, width=64, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()
    modules = ak.MotionModules.from_pretrained(into / "motion_module")
    last, before = (load_file(tiny.folder / f"{stage}.safetensors") for stage in ("camera", "motion"))
    assert equal_states(modules.state_dict(), {name: t.half().float() for name, t in last.items()})
    assert not equal_states(last, before), "camera goes on from motion"
    animator = ak.Animator(into / "miniature", modules)
    os.utime(tiny.folder / "motion.safetensors")  # as if `motion --more` had gone on since
    tiny.assemble(tmp_path / "again")
    again = ak.MotionModules.from_pretrained(tmp_path / "again" / "motion_module")
    assert equal_states(again.state_dict(), {name: t.half().float() for name, t in before.items()}), "what learned last"
    assert np.asarray(animator("a red balloon over the sea", frames=4, steps=2, progress=False)).shape == (4, 64, 64, 3)
    with pytest.raises(AnimkitError, match="zeppelin"):
        animator("a red zeppelin over the sea", frames=2, steps=1, progress=False)
    assert ImageText.from_pretrained(into / "judge").get_image_features(torch.zeros(2, 3, 64, 64)).shape == (2, 96)
    told = json.loads((into / "recipe.json").read_text())
    assert {"vae", "clip", "judge", "coarse", "unet", "decoder", "motion"} <= set(told)
    assert all(t["steps"] == 2 and np.isfinite(t["curve"]).all() for t in told.values())

    os.utime(tiny.folder / "camera.safetensors")
    make_practice_looks(tiny.folder, shaken(new_look(pipe.unet, 2, "convolutions")))
    tiny.samples = into
    tiny.practice()
    last = load_file(tiny.folder / "practice.safetensors")
    clean = ak.MotionModules.from_pretrained(tiny.folder / recipe.zoo.CLEAN)  # from which the zoo's stage 2 goes on
    assert equal_states(clean.state_dict(), {name: t.half().float() for name, t in last.items()})
    started = load_file(tiny.folder / "camera.safetensors")
    assert not equal_states(last, started) and all((last[name] - started[name]).abs().max() < 0.05 for name in started)
    assert "practice" not in json.loads((into / "recipe.json").read_text()), "the zoo tells of it, once it ships"
    (tiny.folder / "adopted").write_text(json.dumps({"practice": {"steps": 7}}))
    tiny.practice()
    again = tiny.told("practice")
    assert again["steps"] == 2 and len(again["curve"]) == 2 and again["went on from"] == {"steps": 7}
    (tiny.folder / "adopted").unlink()

    tiny.more = 1
    for stage in (tiny.camera, tiny.practice):
        kept = tiny.folder / f"{stage.__name__}-adapters.safetensors"
        learned = load_file(kept)
        assert any(t.any() for name, t in learned.items() if name.startswith("up.")), "what the adapters learned is kept"
        save_file({name: torch.full_like(t, 0.5) for name, t in learned.items()}, kept)
        stage()
        assert all((t - 0.5).abs().max() < 0.05 for t in load_file(kept).values()), "and `--more` goes on with it"

    later = recipe.Recipe(tmp_path / "later", budget=1e-6)
    later.adopt(into)
    clean = ak.MotionModules.from_pretrained(later.folder / recipe.zoo.CLEAN)  # from which the zoo's stage 2 goes on
    assert equal_states(clean.state_dict(), ak.MotionModules.from_pretrained(into / "motion_module").state_dict())
    monkeypatch.setattr(later, "steps", lambda stage: 1)
    later.unet()
    (into / "recipe.json").write_text(json.dumps(told | {"look-ink": {"made": "since"}}))
    later.assemble(into)
    told = json.loads((into / "recipe.json").read_text())
    assert told["look-ink"] == {"made": "since"}, "what was made after the adoption stays"
    later.assemble(tmp_path / "elsewhere")
    assert set(json.loads((tmp_path / "elsewhere" / "recipe.json").read_text())) == set(told) - {"look-ink"}
    assert told["unet"]["steps"] == 1 and told["unet"]["went on from"]["steps"] == 2 and told["vae"]["steps"] == 2


def test_a_stage_that_is_done_goes_on_and_tells_of_both_rounds(tiny):
    tiny.vae()
    first, told = tiny.read("vae", recipe.vaes.new_vae()).state_dict(), tiny.told("vae")
    (tiny.folder / "vae.json").write_text(json.dumps(told | {"device": "NVIDIA H200"}))
    longer = recipe.Recipe(tiny.folder, budget=1e-6, more=3, seconds=1e-9)
    longer.vae()  # stopped after its first step
    assert (longer.told("vae")["steps"], longer.told("vae")["rounds"]) == (2, 1)
    longer.seconds = None
    longer.vae()
    after = longer.told("vae")
    assert (told["steps"], after["steps"], after["rounds"]) == (1, 4, 2) and after["seconds"] >= told["seconds"]
    assert after["device"] == f"NVIDIA H200; {told['device']}", "every device that it was trained on"
    assert len(longer.curve("vae")) == 4 and longer.curve("vae")[0] == pytest.approx(told["loss"], abs=1e-3)
    step = longer.read("vae", recipe.vaes.new_vae()).state_dict()["decoder.conv_in.weight"] - first["decoder.conv_in.weight"]
    assert 0 < step.abs().max() < 0.02, "it went on from the weights, not from fresh ones"
    seeds = [json.loads((tiny.folder / "vae" / where / "checkpoint" / "state.json").read_text())["config"]["seed"] for where in (".", "more-1")]
    assert seeds == [0, 1000], "a round draws other pictures and noise than the one before"
    weights, when = (tiny.folder / "vae.safetensors").read_bytes(), (tiny.folder / "vae.safetensors").stat().st_mtime_ns
    tiny.vae()  # its checkpoint is that of the first round: it would undo the second
    assert weights == (tiny.folder / "vae.safetensors").read_bytes() and when == (tiny.folder / "vae.safetensors").stat().st_mtime_ns
    assert tiny.told("vae")["rounds"] == 2


def test_what_is_adopted_goes_on_from_no_older_checkpoint(tiny, capsys, monkeypatch):
    tiny.vae()
    old = load_file(tiny.folder / "vae.safetensors")
    tiny.adopt()
    assert "before is in" in capsys.readouterr().out and equal_states(load_file(tiny.folder / "before-adopt-1" / "vae.safetensors"), old)
    adopted = load_file(tiny.folder / "vae.safetensors")
    tiny.vae()
    now = load_file(tiny.folder / "vae.safetensors")
    assert tiny.told("vae")["steps"] == 1 and not equal_states(now, adopted), "and is not taken for done"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AnimkitError, match="adopt is for one process: call it before"):
        tiny.adopt()
    with pytest.raises(AnimkitError, match="goes on from what ships .adopt., and all trains from nothing: give another --folder"):
        recipe.run(SimpleNamespace(
            folder=tiny.folder, budget=1e-6, seconds=None, more=None, samples=tiny.samples, batch=None, lr=None, count=None,
            threads=None, stage=["all"]))


def test_the_decoder_stage_leaves_the_latents_alone(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "steps", lambda stage: 2)
    tiny.vae()
    before = tiny.scaled_vae("vae")
    tiny.decoder()
    after = tiny.scaled_vae("decoder")
    changed = {
        k.split(".")[0]
        for (k, a), b in zip(before.state_dict().items(), after.state_dict().values())
        if not torch.equal(a, b)
    }
    assert changed <= {"decoder", "post_quant_conv"} and "decoder" in changed


def test_of_several_processes_the_first_alone_writes(tiny, monkeypatch):
    monkeypatch.setattr(recipe.practices, "train", lambda recipe: None)
    monkeypatch.setattr(recipe, "rank_and_world", lambda: (1, 2))
    recipe.save(torch.nn.Linear(2, 2), tiny.folder / "adapters.safetensors")
    tiny.practice()  # the second reads nothing that the first may not have written yet
    assert not tiny.folder.exists()
    monkeypatch.setattr(recipe, "rank_and_world", lambda: (0, 2))
    recipe.save(torch.nn.Linear(2, 2), tiny.folder / "adapters.safetensors")
    assert [path.name for path in tiny.folder.iterdir()] == ["adapters.safetensors"]


def test_a_stage_out_of_order_says_which_is_missing(tiny):
    with pytest.raises(AnimkitError, match="'clip' has not been trained.*animkit miniature clip"):
        tiny.coarse()
    with pytest.raises(AnimkitError, match="'vae' has not been trained"):
        tiny.decoder()
    assert not tiny.folder.exists(), "before pictures are drawn, for minutes"
    with pytest.raises(AnimkitError, match="No run in .*zoo has ended yet"):
        recipe.zoo.run("zoo", tiny.folder, tiny.folder / "samples")
    assert not tiny.folder.exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tiny):
    tiny.folder.write_text("a file")
    for draw in (tiny.vae, lambda: motion.clips(tiny.folder / "data", "x", 1, recipe.WorldRecipe())):
        with pytest.raises(AnimkitError, match="cannot be made a folder"):
            draw()


def test_stills_are_the_same_whoever_draws_them_and_looks_never_leak(tiny):
    a = tiny.stills("base", 40, seed=3)
    again = stills.draw(300_000, 40, BASE_LOOKS, 0.0)
    assert np.array_equal(a.pixels, again[0]) and a.captions == again[1]
    assert set(a.labels["look"]) <= {list(LOOKS).index(k) for k in BASE_LOOKS}
    assert not any(new in caption.split() for new in LOOKS if new not in BASE_LOOKS for caption in a.captions)
    assert not set(words.vocabulary()) & {"ink", "neon", "sepia", "chalk"}


def test_a_share_of_stills_is_seen_through_a_window_of_any_framing(monkeypatch):
    rng = np.random.default_rng(5)  # as draw does it, for the first of them
    scene = random_scene(rng, things=1 if rng.random() < 0.93 else 2, look=tuple(BASE_LOOKS))
    moment, _, window = [rng.random()], rng.random(), any_crop(rng)
    large = torch.from_numpy(render(scene, size=128, u=moment).rgb).permute(3, 0, 1, 2)
    seen = apply(large, [window], 64)[:, 0].permute(1, 2, 0).numpy()
    assert np.abs(seen * 255 - stills.draw(5, 1, BASE_LOOKS, 0.0, framed=1.0)[0][0]).max() <= 0.51

    windows = []
    monkeypatch.setattr(stills, "any_crop", lambda rng: windows.append(any_crop(rng)) or windows[-1])
    stills.draw(6, 200, BASE_LOOKS, 0.0, framed=0.4)
    assert 60 <= len(windows) <= 100
    stills.draw(6, 200, BASE_LOOKS, 0.0)
    assert len(windows) <= 100


@pytest.mark.parametrize("rank, writes", [(0, True), (1, False)])
def test_of_several_processes_the_first_alone_writes_a_stage(tiny, monkeypatch, rank, writes):
    monkeypatch.setattr(recipe, "rank_and_world", lambda: (rank, 2))
    monkeypatch.setitem(recipe.STEPS, "unet", 1)
    model = torch.nn.Linear(2, 1)
    tiny.train("unet", model, lambda m, x, generator: m(x).square().mean(), lambda k, generator: torch.ones(3, 2), lr=1e-2)
    assert [(tiny.folder / f"unet.{kind}").exists() for kind in ("safetensors", "json")] == [writes, writes]


def test_a_damaged_judge_is_named(tmp_path):
    with pytest.raises(AnimkitError, match="no image-text model"):
        ImageText.from_pretrained(tmp_path)


def test_clips_of_another_recipe_are_drawn_anew(tiny):
    def drawn(**how):
        paths = motion.clips(tiny.folder / "data", "moving", 7, motion.WorldRecipe(frames=2, size=16, **how), processes=1)
        return [np.load(path)["pixels"] for path in paths]

    still, moved = drawn(seed=1), drawn(seed=1, moves=1.0)
    assert [len(part) for part in still] == [6, 6] and still[0].shape[1:] == (2, 16, 16, 3)
    assert not np.array_equal(still[0], moved[0]) and np.array_equal(still[1], drawn(seed=1)[1])


def test_what_is_learned_last_is_seen_more_often():
    captions = ["a red cat spinning around in the sea", "a blue cat over the sea", "trembling, a red dog in space", "a cat turning around"]
    assert recipe.saying(captions, "spinning").tolist() == [0, 3] and recipe.saying(captions, "shaking").tolist() == [2]
    rows = recipe.unets.draw_rows(100, 4000, torch.Generator().manual_seed(0), hard=torch.tensor([7, 8]))
    share = torch.isin(rows, torch.tensor([7, 8])).float().mean()
    assert 0.23 < share < 0.31 and rows.unique().numel() == 100  # a quarter, and their part of the rest
    plain = [recipe.unets.draw_rows(100, 50, torch.Generator().manual_seed(1), hard) for hard in (None, torch.tensor([], dtype=torch.long))]
    assert torch.equal(*plain) and torch.equal(plain[0], torch.randint(0, 100, (50,), generator=torch.Generator().manual_seed(1)))


def test_a_gpu_takes_larger_batches_of_more_pictures(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(recipe, "fit", lambda model, loss, batch, config, *a, **k: seen.append((batch(0, torch.Generator()), config)) or 1 / 0)
    larger = recipe.Recipe(tiny.folder, budget=1e-6, batch=5, lr=3e-4, count=45)
    with pytest.raises(ZeroDivisionError):
        larger.vae()
    pictures, config = seen[0]
    assert len(pictures) == 5 and config.lr == 3e-4 and larger.counted(16_000) == 45


def test_the_base_learns_from_stills_by_the_weighted_loss():
    """(1 + SNR) |x - x_theta|^2, x_theta from the eps that the UNet predicts."""
    task = recipe.unets.Denoising(torch.randn(4, 8, 16, 16), torch.zeros(4, 28, 96), torch.zeros(1, 28, 96), size=4)
    seen = {}

    class Half:  # predicts half of what it is given
        def __call__(self, z, t, text):
            seen.update(z=z, t=t)
            return SimpleNamespace(sample=z / 2)

    loss = task.loss(Half(), (task.latents, task.text), torch.Generator().manual_seed(0))
    a = task.scheduler.alphas_cumprod[seen["t"]].view(-1, 1, 1, 1)
    found = (seen["z"] - (1 - a).sqrt() * seen["z"] / 2) / a.sqrt()
    assert torch.allclose(loss, ((1 + a / (1 - a)) * (task.latents - found) ** 2).mean(), rtol=1e-3)


@pytest.mark.parametrize("value", [-1, 0, float("nan")])
@pytest.mark.parametrize("name", ["batch", "lr", "count", "more", "budget", "seconds"])
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(AnimkitError, match=f"--{name} is above 0; got {value}"):
        recipe.Recipe(**{name: value})
    if name in ("budget", "seconds", "more"):
        with pytest.raises(AnimkitError, match=f"--{name} is above 0; got {value}"):
            recipe.zoo.run("zoo", recipe.Path("none"), **{name: value})


# --- which VAE made what ------------------------------------------------------------------------------------------------

def test_latents_and_their_scale_are_of_the_vae_that_is_there(tiny):
    """After `vae --more`, or `adopt` into a used folder, later stages learn from latents of that VAE, and of no other."""
    drawn = motion.WorldRecipe(frames=2, size=16, seed=1)
    pictures = tiny.stills("base", 40, seed=3)

    def made(vae):
        recipe.save(vae, tiny.folder / "vae.safetensors")
        (z, _), still = tiny.clip_latents("moving", 2, drawn), tiny.latents(pictures, "pictures")
        return z, still, tiny.scaled_vae().config.scaling_factor

    tiny.folder.mkdir(exist_ok=True)
    one, other = recipe.vaes.new_vae(0), shaken(recipe.vaes.new_vae(0), scale=0.05)
    first, second, again = made(one), made(other), made(one)
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1]) and first[2] != second[2]
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and first[2] == again[2]
    mean = other.encode(recipe.vaes.to_signal(torch.from_numpy(pictures.pixels))).latent_dist.mean.detach()
    assert second[2] == pytest.approx(float(1 / mean.std()), rel=0.01)
    assert (second[1].float() - mean * second[2]).abs().mean() < 0.02  # encoded in bf16, where that is fast
    files = {path: path.stat().st_mtime_ns for path in (tiny.folder / "data").glob("*.safetensors")}
    made(other)
    assert {path: path.stat().st_mtime_ns for path in (tiny.folder / "data").glob("*.safetensors")} == files, "each once"


def test_another_scale_makes_other_latents(tiny):
    tiny.folder.mkdir(exist_ok=True)
    recipe.save(recipe.vaes.new_vae(), tiny.folder / "vae.safetensors")
    own, pictures, found = fingerprint(tiny.folder / "vae.safetensors"), tiny.stills("base", 40, seed=3), []
    for factor in (0.5, 1.0):
        (tiny.folder / "scaling_factor.json").write_text(json.dumps({own: factor}))
        found.append(tiny.latents(pictures, "pictures").float())
    assert torch.allclose(2 * found[0], found[1], rtol=0.01)


def test_a_scale_that_was_written_as_a_bare_number_counts_until_the_vae_learns_on(tiny):
    tiny.folder.mkdir(exist_ok=True)
    recipe.save(recipe.vaes.new_vae(), tiny.folder / "vae.safetensors")
    path = tiny.folder / "scaling_factor.json"
    path.write_text("0.125")
    assert tiny.scaled_vae().config.scaling_factor == 0.125
    recipe.save(recipe.vaes.new_vae(1), tiny.folder / "vae.safetensors")
    os.utime(path, ns=(0, 0))
    assert tiny.scaled_vae().config.scaling_factor != 0.125


def test_what_is_adopted_ships_the_vae_that_learned_last(tiny, tmp_path, capsys):
    tiny.adopt()
    before = load_file(tiny.folder / "vae.safetensors")
    assert tiny.scaled_vae().config.scaling_factor == tiny.scaled_vae("decoder").config.scaling_factor

    def shipped(name):
        tiny.assemble(tmp_path / name)
        vae = StableDiffusionPipeline.from_pretrained(tmp_path / name / "miniature").vae
        return {name: t.float() for name, t in vae.state_dict().items()}, vae.config.scaling_factor

    def half(state):
        return {name: t.half().float() for name, t in state.items()}

    theirs = StableDiffusionPipeline.from_pretrained(ak.samples.path("miniature")).vae.config.scaling_factor
    tuned = before | {name: t + 0.25 for name, t in before.items() if name.startswith("decoder.")}
    save_file(tuned, tiny.folder / "decoder.safetensors")  # as `decoder --more` does
    state, factor = shipped("tuned")
    assert equal_states(state, half(tuned)) and factor == theirs and "of another encoder" not in capsys.readouterr().out

    later = {name: t + 0.05 for name, t in before.items()}
    save_file(later, tiny.folder / "vae.safetensors")  # as `vae --more` does
    state, factor = shipped("later")
    assert equal_states(state, half(later)) and factor != theirs
    assert "decoder.safetensors is of another encoder than vae.safetensors" in capsys.readouterr().out


# --- stage 2's betas ----------------------------------------------------------------------------------------------------

def test_stage_2_learns_with_the_bases_range_of_betas_rising_linearly():
    base, own = recipe.unets.scheduler(), recipe.unets.motion_betas()
    told = [{k: v for k, v in each.config.items() if not k.startswith("_")} for each in (base, own)]
    assert base.config.beta_schedule == "scaled_linear" and told[1] == told[0] | {"beta_schedule": "linear"}
    assert torch.allclose(own.betas, torch.linspace(0.00085, 0.012, 1000))


@pytest.mark.parametrize("stage", recipe.MOTION)
def test_each_stage_of_the_motion_module_learns_with_them(tiny, monkeypatch, stage):
    module = {"motion": recipe, "camera": recipe.cameras, "practice": recipe.practices}[stage]
    clip, unet, seen = tiny.new_clip()[0], recipe.unets.new_unet(), []
    tiny.folder.mkdir(exist_ok=True)
    modules = recipe.new_motion_modules(unet)
    for name, model in {"clip": clip, "unet": unet, "motion_coarse": modules, "motion": modules}.items():
        recipe.save(model, tiny.folder / f"{name}.safetensors")
    make_practice_looks(tiny.folder, new_look(unet, 2, "convolutions"))
    monkeypatch.setattr(tiny, "clip_latents", lambda *a: (torch.zeros(3, 2, 8, 4, 4), ["a red cat over the sea"] * 3))
    monkeypatch.setattr(module, "motion_module_loss", lambda *a, scheduler, **how: seen.append(scheduler))
    for other in {recipe.cameras, recipe.practices} - {module}:
        monkeypatch.setattr(other, "motion_module_loss", lambda *a, **how: seen.append(None))

    def train(stage, model, loss, batch, **how):
        for k in range(3):
            loss(model, batch(k, torch.Generator().manual_seed(k)), torch.Generator().manual_seed(0))
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "train", train)
    with pytest.raises(KeyboardInterrupt):
        getattr(tiny, stage)()
    used = [scheduler for scheduler in seen if scheduler is not None]
    assert used and all(scheduler.config.beta_schedule == "linear" for scheduler in used)
    assert all(torch.equal(scheduler.betas, recipe.unets.motion_betas().betas) for scheduler in used)


def test_clips_whose_shape_is_lost_most_are_drawn_twice_as_often_in_looks_to_practise_on(tiny, monkeypatch):
    unet = recipe.unets.new_unet()
    tiny.folder.mkdir(exist_ok=True)
    for name, model in {"clip": tiny.new_clip()[0], "unet": unet, "motion": recipe.new_motion_modules(unet)}.items():
        recipe.save(model, tiny.folder / f"{name}.safetensors")
    make_practice_looks(tiny.folder, new_look(unet, 2, "convolutions"))
    captions = [f"a red cat {recipe.DOING[motion][0]}" for motion in ("rising", "shaking", "spinning", "walking")]
    z = torch.arange(4.)[:, None, None, None, None].expand(4, 2, 8, 4, 4)
    monkeypatch.setattr(tiny, "clip_latents", lambda *a: (z, captions))
    tasks = []

    class Stop(Exception):
        pass

    def train(stage, model, loss, batch, **how):
        tasks.append(batch.__self__)
        raise Stop

    monkeypatch.setattr(tiny, "train", train)
    with pytest.raises(Stop):
        tiny.practice()
    for drawn, text in tasks[0].clips.values():
        assert drawn.mean((1, 2, 3, 4)).tolist() == [0, 1, 2, 3, 1, 2] and torch.equal(text[4:], text[1:3])
        assert not torch.equal(text[0], text[1])
    assert tasks[0].moves.count.tolist() == [4] * 9, "clips of camera moves are all drawn as often"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, capsys):
    from animkit import cli
    (tmp_path / "file").write_text("")
    assert cli.main(["miniature", "adopt", "--folder", str(tmp_path / "file")]) == 2
    assert "file cannot be made a folder" in capsys.readouterr().err
