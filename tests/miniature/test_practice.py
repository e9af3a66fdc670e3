"""The stage in which the motion module practises in other looks: whose LoRA is in place for which step, and what learns."""
import pytest
import torch

from animkit import world
from animkit.data.camera import SHOTS
from animkit.errors import AnimkitError
from animkit.inflation import inflate
from animkit.look import new_look
from animkit.miniature import practice, recipe
from animkit.miniature.camera import NONE, Moves, Said
from animkit.miniature.unet import scheduler
from animkit.motion_module import MotionModules
from animkit.training.loop import LoopConfig, fit
from tiny import shaken, tiny_unet

LOOKS = ("thermal", "fog", "frost")


@pytest.fixture
def said():
    unet = tiny_unet().requires_grad_(False)
    modules, video_unet = shaken(MotionModules.for_unet(unet, heads=2)), inflate(unet)
    video_unet.insert(modules)
    for look in LOOKS:
        video_unet.insert(shaken(new_look(unet, rank=2, layers="convolutions"), seed=len(look)).requires_grad_(False), alpha=0, name=look)
    return Said(video_unet, modules)


@pytest.fixture
def task(said):
    channels, text = said.video_unet.unet.config.in_channels, said.video_unet.unet.config.cross_attention_dim
    of = lambda k, n: (torch.full((n, channels, 2, 8, 8), k / 10), torch.full((n, 5, text), k / 10))
    moves = Moves({shot: of(k, 3) for k, shot in enumerate((*SHOTS, None))}, torch.zeros(1, 5, text), scheduler(), size=4)
    return practice.Practice({look: of(20 + k, 3 + k) for k, look in enumerate(LOOKS)}, moves)


def test_half_of_the_steps_are_of_one_look_and_the_others_of_camera_moves(task):
    drawn = [task.batch(k, torch.Generator().manual_seed(k)) for k in range(300)]
    for look, types, z, text in drawn:
        assert len(types) == len(z) == len(text) == 4
        expected = [2 + LOOKS.index(look) / 10] * 4 if look else [(len(SHOTS) if k == NONE else k) / 10 for k in types.tolist()]
        assert torch.allclose(z.mean((1, 2, 3, 4)), torch.tensor(expected)) and torch.allclose(text.mean((1, 2)), torch.tensor(expected))
        assert look is None or types.tolist() == [NONE] * 4, "in a look the camera stands still"
    looks = [look for look, *_ in drawn]
    assert set(looks) == {None, *LOOKS} and 0.4 < sum(look is None for look in looks) / len(looks) < 0.6


def test_a_looks_lora_acts_in_its_own_steps_alone(said, task):
    types, z, text = torch.full((2,), NONE), task.moves.z[:2], task.moves.text[:2]
    alphas = {}
    def loss(look):
        value = task.loss(said, (look, types, z, text), torch.Generator().manual_seed(0)).item()
        alphas[look] = [said.video_unet.alpha[name] for name in LOOKS]
        return value
    found = [loss(look) for look in (None, *LOOKS)]
    assert len(set(found)) == 4 and loss(None) == found[0]
    assert alphas == {None: [0, 0, 0], "thermal": [1, 0, 0], "fog": [0, 1, 0], "frost": [0, 0, 1]}


def test_the_motion_module_learns_in_a_look_and_its_lora_does_not(said, task, tmp_path):
    own = {name: p.clone() for name, p in said.video_unet.named_parameters()}
    task.batch = lambda k, generator: ("fog", torch.full((2,), NONE), task.moves.z[:2], task.moves.text[:2])
    fit(said, task.loss, task.batch, LoopConfig(steps=1, seed=1, weight_decay=0), tmp_path, parameters=said.learned(), quiet=True)
    changed = {name for name, p in said.video_unet.named_parameters() if not torch.equal(p, own[name])}
    modules = {id(p) for p in said.motion.parameters()}
    assert changed and all(id(p) in modules for name, p in said.video_unet.named_parameters() if name in changed)


def test_looks_for_practice_are_neither_the_bases_nor_those_that_the_module_is_judged_in():
    assert not set(world.PRACTICE_LOOKS) & set(world.LOOKS) and len(world.PRACTICE_LOOKS) == 9
    assert set(world.EVERY_LOOK) == set(world.LOOKS) | set(world.PRACTICE_LOOKS)


def test_without_its_looks_the_stage_names_what_to_run(tmp_path):
    with pytest.raises(AnimkitError, match="negative, thermal.*animkit miniature practice_looks"):
        recipe.Recipe(tmp_path, budget=1e-6).practice()
