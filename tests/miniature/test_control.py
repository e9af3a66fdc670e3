"""The ControlNet's stage: its pictures and their depth, a start that changes nothing, what learns and what stays."""
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel

import animkit as ak
from animkit import metrics, samples
from animkit.control import check_fits
from animkit.miniature import control, recipe, stills, unet
from animkit.miniature.judge import asked
from animkit.world import BASE_LOOKS, render


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base():
    return unet.new_unet().eval()


def make_task(n=40):
    g = torch.Generator().manual_seed(0)
    return control.Control(torch.randn(n, 8, 16, 16, generator=g), torch.randn(n, 28, 96, generator=g),
                           torch.zeros(1, 28, 96), torch.randint(0, 255, (n, 64, 64), generator=g).to(torch.uint8), 4)


def test_a_new_controlnet_changes_nothing_and_fits_and_is_small(base):
    net = control.new_controlnet(base).eval()
    check_fits(net, base, 4)
    assert sum(p.numel() for p in net.parameters()) * 2 < 5e6, "bytes in half precision"
    batch = make_task().batch(0, torch.Generator().manual_seed(1))
    x, text, depth = batch
    with torch.no_grad():
        steered = control.Steered(base, net)(x, torch.tensor(500), text, depth).sample
        assert torch.equal(steered, base(x, torch.tensor(500), text).sample)
    copied = dict(base.named_parameters())
    same = [name for name, p in net.named_parameters() if name in copied and torch.equal(p, copied[name])]
    assert "mid_block.resnets.0.conv1.weight" in same and len(same) > 80


def test_stills_are_paired_with_their_own_depth_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(stills, "CHUNK", 6)
    found = control.pictures(tmp_path, 10, processes=1)
    assert len(found) == 12 and found.pixels.shape == (12, 64, 64, 3) and found.depth.shape == (12, 64, 64)
    again = control.draw(30 * 100_000, 6)
    assert np.array_equal(found.pixels[:6], again.pixels) and np.array_equal(found.depth[:6], again.depth)
    assert found.captions[:6] == again.captions
    assert (found.depth.reshape(12, -1).max(1) == 255).all(), "the nearest point is white"
    # where the depth jumps, the picture has an edge: it is the same scene at the same moment
    for pixels, depth in zip(found.pixels, found.depth.astype(int)):
        edge = np.abs(np.diff(depth, axis=1)) > 60
        step = np.abs(np.diff(pixels.astype(int).sum(-1), axis=1))
        assert step[edge].mean() > 2 * step[~edge].mean()
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    control.pictures(tmp_path, 10, processes=1)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    assert set(BASE_LOOKS) and not [p for p in before if "tmp" in p]


def test_batches_leave_the_held_out_alone_and_drop_half_of_the_captions():
    task = make_task(200)
    task.latents[:] = torch.arange(200.0)[:, None, None, None]
    rows, dropped = set(), []
    for k in range(60):
        x, text, depth = task.batch(k, torch.Generator().manual_seed(k))
        rows |= set(x[:, 0, 0, 0].int().tolist())
        dropped += (text.abs().sum((1, 2)) == 0).tolist()
        assert torch.equal(depth, task.depth[x[:, 0, 0, 0].long()])
    assert max(rows) < 190 and len(rows) > 100 and 0.4 < np.mean(dropped) < 0.6


def test_the_stage_trains_the_controlnet_alone_and_ships_it(tmp_path, monkeypatch):
    monkeypatch.setattr(stills, "CHUNK", 24)
    run = recipe.Recipe(tmp_path / "run", budget=1e-6)
    monkeypatch.setattr(run, "steps", lambda stage: 2)
    with pytest.raises(ak.AnimkitError, match="has not been trained"):
        run.control()
    run.folder.mkdir(parents=True, exist_ok=True)
    for stage, model in {"vae": recipe.vaes.new_vae(), "unet": unet.new_unet(), "clip": run.new_clip()[0]}.items():
        recipe.save(model, run.folder / f"{stage}.safetensors")
    run.control()
    trained = run.read("control", control.new_controlnet(unet.new_unet()))
    fresh = control.new_controlnet(unet.new_unet())
    moved = [name for (name, a), b in zip(trained.named_parameters(), fresh.parameters()) if not torch.equal(a, b)]
    assert "controlnet_mid_block.weight" in moved and len(moved) > 20
    told = run.told("control")
    assert told["steps"] == 2 and {"validate/loss", "validate/loss without depth"} <= set(told)

    into = tmp_path / "samples"
    run.assemble(into)
    shipped = ak.open_checkpoint(into / "control")
    assert shipped.kind == "ControlNet" and shipped.dtypes == ("float16",)
    assert (into / "control" / "diffusion_pytorch_model.safetensors").stat().st_size < 5e6
    animator = ak.Animator(into / "miniature", motion=False, device="cpu")
    animator.insert(into / "control", name="depth")
    depth = ak.world.render(ak.world.Scene(), frames=2).depth
    assert len(animator("a red balloon", steps=1, progress=False, control=depth)) == 2
    loaded = ControlNetModel.from_pretrained(into / "control").state_dict()
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in trained.state_dict().items())


@pytest.mark.skipif(not {"miniature", "control"} <= set(samples.names()), reason="no ControlNet in data_samples/ yet")
def test_the_shipped_controlnet_puts_things_where_depth_says():
    folder = samples.path("control")
    assert (folder / "diffusion_pytorch_model.safetensors").stat().st_size < 5e6
    animator = ak.Animator("miniature", motion=False)
    animator.insert(folder, name="depth")
    overlaps = {"with": [], "without": []}
    for k, (prompt, scene) in enumerate(asked(4, seed=5, look=False)):
        film = render(scene.with_(look="flat"), u=[0.3])
        reader = metrics.reader_of(scene.with_(look="flat"), 8, k, animator.pipe.vae)
        for how, control_ in (("with", film.depth), ("without", None)):
            clip = animator(prompt, 1, seed=k, steps=15, progress=False, control=control_)
            overlaps[how].append(metrics.overlap(reader(clip), film.mask > 0.5).mean())
    assert np.mean(overlaps["with"]) > np.mean(overlaps["without"]) + 0.2
