"""The cartoon world: what it says of a clip is true of its pixels."""

import re
from dataclasses import replace

import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.miniature.words import sentences, tokenizer
from animkit.prompts import as_read
from animkit.world import (
    BASE_LOOKS,
    EVERY_LOOK,
    COLOURS,
    LOOKS,
    MOTIONS,
    NEW_LOOKS,
    OBJECTS,
    SETTINGS,
    SHOTS,
    Scene,
    Thing,
    caption,
    random_scene,
    render,
    watermark,
    web_video,
)
from animkit.world.captions import HELD_OUT, TEMPLATES


def test_the_world_is_as_large_as_promised():
    assert len(OBJECTS) >= 16 and len(COLOURS) == 8 and len(SETTINGS) >= 6 and len(MOTIONS) >= 10 and len(SHOTS) == 8
    assert len(LOOKS) >= 10 and len(NEW_LOOKS) >= 8 and not set(NEW_LOOKS) & set(BASE_LOOKS)


def test_rendering_is_a_pure_function_of_the_scene():
    scene = random_scene(np.random.default_rng(3), look=("clay",))
    assert np.array_equal(render(scene, 4).rgb, render(scene, 4).rgb)
    assert scene == random_scene(np.random.default_rng(3), look=("clay",))
    whole = render(scene, 16).rgb
    assert np.allclose(render(scene, u=[5 / 16]).rgb[0], whole[5], atol=1e-5)


def test_a_random_scene_has_a_thing():
    with pytest.raises(AnimkitError, match="has a thing in it at least; got things=0"):
        random_scene(np.random.default_rng(0), things=0)


def test_any_field_of_a_random_scene_can_be_fixed_or_chosen_from():
    fixed = {"x": 0.5, "y": -0.2, "size": 0.3, "facing": 1, "cue": None, "object": "cat", "motion": "rising"}
    scene = random_scene(np.random.default_rng(1), things=2, seed=7, amount=0.4, shot="zoom in", **fixed)
    assert {name: {getattr(thing, name) for thing in scene.things} for name in fixed} == {k: {v} for k, v in fixed.items()}
    assert (scene.seed, scene.amount, scene.shot) == (7, 0.4, "zoom in")
    drawn = {random_scene(np.random.default_rng(k), amount=(0.3, 0.6), size=[0.4, 0.5]) for k in range(20)}
    assert {scene.amount for scene in drawn} == {0.3, 0.6} and {scene.things[0].size for scene in drawn} == {0.4, 0.5}
    plain, other = (random_scene(np.random.default_rng(5), **more) for more in ({}, {"x": 0.9}))
    assert other == plain.with_(things=(replace(plain.things[0], x=0.9),)), "the rest is drawn as before"
    with pytest.raises(AnimkitError, match="no 'objekt' that could be fixed; there are: object, colour"):
        random_scene(np.random.default_rng(0), objekt="cat")


@pytest.mark.parametrize("look", EVERY_LOOK)
def test_every_look_draws_in_range_and_differs_from_flat(look):
    rgb = render(Scene(look=look), 2, 32).rgb
    assert (
        rgb.shape == (2, 32, 32, 3)
        and np.isfinite(rgb).all()
        and rgb.min() >= 0
        and rgb.max() <= 1
        and rgb.std() > 0.02
    )
    if look != "flat":
        assert np.abs(rgb - render(Scene(), 2, 32).rgb).mean() > 0.02


def test_the_shadow_of_paper_ends_at_the_pictures_edge():
    """What leaves the picture below or on the right casts no shadow above or on the left."""
    scene = Scene((Thing("ball", "red", x=0.9, y=-0.9),), "space", "paper")
    empty, drawn = (render(s, 1).rgb[0] for s in (scene.with_(things=()), scene))
    assert np.array_equal(drawn[:3], empty[:3])
    assert np.array_equal(drawn[:, :3], empty[:, :3]) and not np.array_equal(drawn, empty)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_has_a_body_of_its_colour(name):
    footage = render(Scene((Thing(name, "green"),), "space"), 1)
    assert 0.04 < footage.mask.mean() < 0.4
    inside = footage.rgb[0][footage.mask[0] > 0.9]
    green = (inside[:, 1] > inside[:, 0] + 0.1) & (inside[:, 1] > inside[:, 2] + 0.1)
    assert green.mean() > 0.12  # a house is white with a coloured roof


def test_the_same_scene_at_another_resolution_is_the_same_picture():
    scene = Scene((Thing("car", "red"),), "desert")
    small, large = render(scene, 1, 64).rgb[0], render(scene, 1, 256).rgb[0]
    pooled = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(pooled - small).mean() < 0.02


@pytest.mark.parametrize("motion", MOTIONS)
def test_flow_takes_the_object_where_it_will_be(motion):
    footage = render(Scene((Thing("heart", "red", motion),), "meadow"), 16, 96)
    for k in (2, 7, 11):
        y, x = np.nonzero(footage.mask[k] > 0.99)
        moved = np.stack([x, y], 1) + footage.flow[k][y, x]
        col, row = np.clip(np.round(moved).astype(int), 0, 95).T
        seen = ((moved > 1) & (moved < 94)).all(1)
        assert seen.sum() > 20 and footage.mask[k + 1][row, col][seen].mean() > 0.97


def test_flow_follows_uneven_times():
    footage = render(Scene((Thing("heart", "red", "rising"),), "meadow"), size=96, u=[0, 0.1, 0.5, 0.6])
    for k in range(3):
        y, x = np.nonzero(footage.mask[k] > 0.99)
        col, row = np.round(np.stack([x, y], 1) + footage.flow[k][y, x]).astype(int).T
        seen = (row > 1) & (row < 94)
        assert seen.sum() > 20 and footage.mask[k + 1][row[seen], col[seen]].mean() > 0.97
    even, alone = (render(Scene((Thing("heart", "red", "rising"),)), frames=f, size=32) for f in (16, 1))
    assert np.allclose(even.flow[0], alone.flow[0], atol=1e-5)


@pytest.mark.parametrize("shot", SHOTS)
def test_flow_of_the_scenery_is_the_cameras(shot):
    """The next frame, looked up where flow says, is this frame, wherever the scenery is seen in both."""
    footage = render(Scene((), "meadow", shot=shot), 16, 128)
    k = 8
    flow = footage.flow[k]
    row, col = np.mgrid[:128, :128]
    tx, ty = col + flow[..., 0], row + flow[..., 1]
    inside = (tx > 1) & (tx < 126) & (ty > 1) & (ty < 126)
    x0, y0 = np.floor(tx[inside]).astype(int), np.floor(ty[inside]).astype(int)
    fx, fy = (tx[inside] - x0)[:, None], (ty[inside] - y0)[:, None]
    nxt = footage.rgb[k + 1]
    seen = (nxt[y0, x0] * (1 - fx) + nxt[y0, x0 + 1] * fx) * (1 - fy) + (
        nxt[y0 + 1, x0] * (1 - fx) + nxt[y0 + 1, x0 + 1] * fx
    ) * fy
    assert np.abs(flow).max() > 0.5
    assert np.abs(seen - footage.rgb[k][inside]).mean() < 0.012
    assert np.abs(footage.rgb[k + 1] - footage.rgb[k]).mean() > np.abs(seen - footage.rgb[k][inside]).mean()


def test_the_camera_matrix_says_where_the_world_is_seen():
    footage = render(Scene((Thing("ball", "red", x=0.2, y=-0.1),), "space", shot="pan right"), 16, 64)
    for k in (0, 8):
        x, y, _ = footage.camera[k] @ [0.2, -0.1, 1]
        row, col = np.nonzero(footage.mask[k] > 0.5)
        assert abs(col.mean() - x) < 1 and abs(row.mean() - y) < 1
    assert footage.camera[8][0, 2] < footage.camera[0][0, 2]  # the camera moves right, the picture left


def test_depth_puts_the_object_before_the_ground_before_the_sky():
    footage = render(Scene((Thing("cat", "red"),), "meadow"), 1)
    depth, mask = footage.depth[0], footage.mask[0]
    assert depth[mask > 0.9].max() <= 1.41 < depth[-1, 0] < 10 < depth[0].max() == 20


def test_captions_use_known_words_and_hold_some_wordings_out():
    assert not set(TEMPLATES) & set(HELD_OUT)
    tok = tokenizer()
    known = set(" ".join(sentences()).replace(",", " ").split())
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = random_scene(rng, things=int(rng.integers(1, 3)), look=tuple(LOOKS))
        text = caption(scene, rng)
        assert not re.search(r"\ba [aeiou]", text) and not (len(scene.things) > 1 and " is " in text), text
        words = as_read(text, tok).replace(",", " ").split()
        assert set(words) <= known and scene.things[0].object in words and scene.things[0].colour in words
        assert len(tok(as_read(text, tok)).input_ids) <= tok.model_max_length
        assert all(len(tok(word).input_ids) == 3 for word in words), text  # begin, the word, end
    assert len(tok("zeppelin").input_ids) > 3


def test_web_video_is_soft_and_marked():
    scene = Scene(seed=5)
    clean, web = render(scene, 2).rgb, web_video(scene, 2).rgb
    mark = watermark(64)
    centred = mark - mark.mean()
    assert ((web - clean).mean(-1) * centred).mean() > 5 * abs(((clean - clean.mean()).mean(-1) * centred).mean())
    assert web[..., :8, :, :].std() < clean[..., :8, :, :].std()
    assert 0.03 < mark.mean() < 0.3


def test_bad_descriptions_are_refused():
    with pytest.raises(AnimkitError, match="no object 'zeppelin'.*balloon"):
        Scene((Thing("zeppelin"),))
    with pytest.raises(AnimkitError, match="no look 'oil'"):
        Scene(look="oil")
    with pytest.raises(AnimkitError, match="seed is 0 or more; got -1"):
        Scene(seed=-1)
    for thing in (Thing(size=0), Thing(facing=0)):
        with pytest.raises(AnimkitError, match="size is above 0 and its facing 1 or -1"):
            Scene((thing,))
    with pytest.raises(AnimkitError, match="mind the comma"):
        Scene((Thing("cat")))
    with pytest.raises(AnimkitError, match="1 frame"):
        render(Scene(), 0)
