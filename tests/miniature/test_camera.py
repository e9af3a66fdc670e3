"""The stage in which the motion module learns camera moves: whose adapter is in place when, and what learns."""
import pytest
import torch

from animkit.data.camera import SHOTS
from animkit.inflation import inflate
from animkit.miniature.camera import TYPES, Moves, Said, recipes
from animkit.miniature.unet import scheduler
from animkit.motion_module import MotionModules
from animkit.training.loop import LoopConfig, fit
from tiny import shaken, tiny_unet


@pytest.fixture
def said():
    unet = tiny_unet().requires_grad_(False)
    modules, video_unet = shaken(MotionModules.for_unet(unet, heads=2)), inflate(unet)  # fresh ones give no gradient
    video_unet.insert(modules)
    return Said(video_unet, modules)


@pytest.fixture
def task(said):
    channels, text = said.video_unet.unet.config.in_channels, said.video_unet.unet.config.cross_attention_dim
    clips = {shot: (torch.full((3, channels, 2, 8, 8), k / 10), torch.full((3, 5, text), k / 10))
             for k, shot in enumerate((None, *SHOTS))}
    return Moves(clips, torch.zeros(1, 5, text), scheduler(), size=2)


def test_a_batch_has_clips_of_one_shot_type_or_with_a_still_camera(task):
    drawn = [task.batch(k, torch.Generator().manual_seed(k)) for k in range(400)]
    for shot, z, text in drawn:
        k = 0 if shot is None else 1 + SHOTS.index(shot)
        assert z.shape[0] == len(text) == 2 and torch.allclose(z, torch.tensor(k / 10)) and torch.allclose(text, torch.tensor(k / 10))
    found = [shot for shot, *_ in drawn]
    assert set(found) == {None, *SHOTS} and 80 < found.count(None) < 160


@pytest.mark.parametrize("shot", [None, "pan left", "roll clockwise"])
def test_a_shot_types_adapter_learns_from_its_clips_alone_and_the_module_from_all(said, task, shot):
    batch = (shot, *task.clips[shot])
    task.loss(said, batch, torch.Generator().manual_seed(0)).backward()
    assert any(p.grad is not None and p.grad.any() for p in said.motion.parameters())
    learning = {name for name, adapter in said.adapters.items()
                if any(p.grad is not None and p.grad.any() for p in adapter.parameters())}
    assert learning == ({shot} if shot else set())
    assert {id(p) for p in said.learned()} == {id(p) for p in said.parameters() if p.requires_grad}


def test_a_step_takes_in_clips_of_several_types(said, task, tmp_path):
    drawn = []

    def batch(k, generator):
        drawn.append(task.batch(k, generator))
        return drawn[-1]

    fit(said, task.loss, batch, LoopConfig(steps=1, accumulate=TYPES, seed=1), tmp_path, parameters=said.learned(), quiet=True)
    learned = {shot for shot, adapter in said.adapters.items()
               if any(".up." in name and tensor.any() for name, tensor in adapter.state_dict().items())}
    assert len(drawn) == TYPES and learned == {shot for shot, *_ in drawn} - {None} and len(learned) > 1


@torch.no_grad()
def test_without_an_adapter_the_camera_is_the_modules_own_affair(said):
    x = torch.randn(1, said.video_unet.unet.config.in_channels, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    text, t = torch.zeros(1, 5, said.video_unet.unet.config.cross_attention_dim), torch.tensor([500])
    for p in said.learned():
        p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    said.shot = "zoom in"
    moved = said(x, t, text)
    said.shot = None
    still = said(x, t, text)
    for shot in SHOTS:
        said.video_unet.remove(shot)
    assert torch.equal(still, said.video_unet(x, t, text)) and not torch.equal(moved, still)


def test_its_clips_are_of_each_shot_type_once_and_of_seeds_of_their_own():
    drawn = recipes()
    assert set(drawn) == {None, *SHOTS} and all(recipe.shot == shot for shot, recipe in drawn.items())
    assert len({recipe.seed for recipe in drawn.values()}) == 9
    assert all(recipe.camera == "crop" for shot, recipe in drawn.items() if shot)
