"""The stage in which the motion module learns camera moves: whose adapter is in place for which clip, and what learns."""
import pytest
import torch

from animkit.data.camera import SHOTS
from animkit.inflation import inflate
from animkit.lora import LoRA
from animkit.miniature.camera import LOUD, NONE, Moves, Said, recipes
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
    clips = {shot: (torch.full((3 + k, channels, 2, 8, 8), k / 10), torch.full((3 + k, 5, text), k / 10))
             for k, shot in enumerate((*SHOTS, None))}
    return Moves(clips, torch.zeros(1, 5, text), scheduler(), size=6)


def test_a_batch_has_clips_of_all_types_and_their_numbers(task):
    drawn = [task.batch(k, torch.Generator().manual_seed(k)) for k in range(200)]
    for types, z, text in drawn:
        expected = torch.where(types == NONE, len(SHOTS), types) / 10
        assert len(types) == 6 and torch.allclose(z.mean((1, 2, 3, 4)), expected) and torch.allclose(text.mean((1, 2)), expected)
    types = torch.cat([types for types, *_ in drawn])
    assert set(types.tolist()) == {NONE, *range(len(SHOTS))} and 0.25 < (types == NONE).float().mean() < 0.35


def test_every_clip_of_a_set_is_drawn(task):
    task.z = torch.arange(float(len(task.z)))[:, None].expand(-1, 2)
    seen = torch.cat([task.batch(k, torch.Generator().manual_seed(k))[1][:, 0] for k in range(300)])
    assert set(seen.tolist()) == set(range(len(task.z)))


def test_a_shot_types_adapter_learns_from_its_clips_alone_and_the_module_from_all(said, task):
    types = torch.tensor([2, NONE, 5])
    batch = (types, *(rows[:3] for rows in (task.z, task.text)))
    task.loss(said, batch, torch.Generator().manual_seed(0)).backward()
    assert any(p.grad is not None and p.grad.any() for p in said.motion.parameters())
    learning = {k for p in said.adapters.parameters() for k in range(len(SHOTS)) if p.grad[k].any()}
    assert learning == {2, 5}
    assert {id(p) for p in said.learned()} == {id(p) for p in said.parameters() if p.requires_grad}


def test_a_step_takes_in_clips_of_several_types(said, task, tmp_path):
    fit(said, task.loss, task.batch, LoopConfig(steps=1, seed=1, weight_decay=0), tmp_path, parameters=said.learned(), quiet=True)
    learned = {k for up in said.adapters.up for k in range(len(SHOTS)) if up[k].any()}
    assert len(learned) > 1


@torch.no_grad()
def test_each_clips_adapter_is_what_a_lora_inserted_for_it_alone_does(said):
    config = said.video_unet.unet.config
    g = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=g) for shape in ((4, config.in_channels, 3, 8, 8), (4, 5, config.cross_attention_dim)))
    t, types = torch.tensor([900, 500, 300, 100]), torch.tensor([2, NONE, 7, 2])
    shaken(said.adapters)
    together = said(x, t, text, types)
    for k, shot in enumerate(types.tolist()):
        if shot != NONE:
            lora = LoRA.from_state_dict(said.adapters.state_of(shot))
            said.video_unet.insert(lora, alpha=LOUD, name="alone")
        alone = said.video_unet(x[k:k + 1], t[k:k + 1], text[k:k + 1])
        assert torch.allclose(together[k:k + 1], alone, atol=1e-4)
        if shot != NONE:
            said.video_unet.remove("alone")
            still = said.video_unet(x[k:k + 1], t[k:k + 1], text[k:k + 1])
            assert (alone - still).abs().max() > 0.01


def test_its_clips_are_of_each_shot_type_once_and_of_seeds_of_their_own():
    drawn = recipes()
    assert set(drawn) == {None, *SHOTS} and all(recipe.shot == shot for shot, recipe in drawn.items())
    assert len({recipe.seed for recipe in drawn.values()}) == 9
    assert all(recipe.camera == "crop" for shot, recipe in drawn.items() if shot)
