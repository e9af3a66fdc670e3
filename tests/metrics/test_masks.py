"""Masks read by colour, on renders whose masks are exact; overlap, centres and following on masks that we draw."""
import numpy as np
import pytest

from animkit import AnimkitError, world
from animkit.metrics import masks
from animkit.metrics.masks import MaskReader, centres, follows, overlap

THING = world.Thing("balloon", "red", "rising")
SCENE = world.Scene((THING,), setting="sea")


def square(x, y, side=4, size=16):
    mask = np.zeros((1, size, size), bool)
    mask[:, y:y + side, x:x + side] = True
    return mask


def fitted(look="flat"):
    known = [world.render(SCENE.with_(look=look, seed=s), u=[s / 6]) for s in range(6)]
    return MaskReader.fit(np.concatenate([f.uint8 for f in known]), np.concatenate([f.mask for f in known]) > 0.5)


def test_a_colours_chance_is_bayes_rule_with_even_odds():
    """Red is all of the thing and a tenth of the rest: 1 / (1 + 0.1), in the next shade too."""
    picture, mask = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8), bool)
    picture.reshape(-1, 3)[:10, 0], mask.reshape(-1)[:4] = 200, True
    chance = MaskReader.fit(picture, mask).chance.reshape(16, 16, 16)
    assert chance[11:14, 0, 0] == pytest.approx(1 / 1.1, abs=1e-3) and chance[0, 0, 0] == 0 == chance[5, 9, 9]


def test_a_reader_may_learn_from_what_a_vae_has_coded(monkeypatch):
    monkeypatch.setattr(masks, "through", lambda vae, pictures: 255 - pictures)
    plain, coded = (masks.reader_of(SCENE, count=4, vae=vae).chance.reshape(16, 16, 16) for vae in (None, "inverts"))
    assert np.allclose(coded, plain[::-1, ::-1, ::-1], atol=0.05)


@pytest.mark.parametrize("look", ["flat", "clay", "watercolour", "neon"])
def test_a_reader_finds_the_thing_in_scenes_that_it_never_saw(look):
    reader = fitted(look)
    new = world.render(SCENE.with_(look=look, seed=77), frames=4)
    found = overlap(reader(new.uint8), new.mask > 0.5)
    other = world.render(SCENE.with_(things=(world.Thing("balloon", "red", "falling"),), look=look, seed=77), frames=4)
    assert found.mean() > 0.7 and found.mean() > overlap(reader(other.uint8), new.mask > 0.5).mean() + 0.15


def test_a_look_without_colours_cannot_be_read_and_the_readers_own_error_says_so():
    reader = fitted("sepia")
    new = world.render(SCENE.with_(look="sepia", seed=77), frames=4)
    assert overlap(reader(new.uint8), new.mask > 0.5).mean() < 0.7


def test_spots_are_left_out():
    reader = fitted()
    clip = world.render(SCENE.with_(seed=77), frames=1).uint8
    before = reader(clip)
    row, column = np.argwhere(before[0]).mean(0).astype(int)
    clip[0, 2:6, 2:6] = clip[0, row, column]
    assert not reader(clip)[0, :8, :8].any() and reader(clip)[0, row, column]


def test_what_is_not_there_is_not_found():
    reader = fitted()
    empty = world.render(SCENE.with_(things=(), seed=5), frames=2)
    assert reader(empty.uint8).mean() < 0.02


def test_overlap_is_intersection_over_union():
    assert overlap(square(0, 0), square(0, 0)).tolist() == [1]
    assert overlap(square(0, 0), square(8, 8)).tolist() == [0]
    assert overlap(square(0, 0), square(2, 0)).tolist() == [pytest.approx(8 / 24)]
    nothing = np.zeros((1, 16, 16), bool)
    assert overlap(nothing, nothing).tolist() == [1] and overlap(nothing, square(0, 0)).tolist() == [0]


def test_centres_are_parts_of_the_picture_from_its_middle():
    assert centres(square(6, 6)).tolist() == [[0, 0]]
    assert centres(square(12, 0)).tolist() == [[0.375, -0.375]]
    assert np.isnan(centres(np.zeros((2, 8, 8), bool))).all()


def test_following_is_the_correlation_of_places():
    path = np.concatenate([square(x, 6) for x in (0, 3, 6, 9, 12)])
    other_size = np.concatenate([square(x, 5, side=3) for x in (1, 4, 7, 10, 13)])
    assert follows(other_size, path) == pytest.approx(1)
    assert follows(path[::-1], path) == pytest.approx(-1)
    assert np.isnan(follows(np.repeat(square(3, 3), 5, 0), path)), "what stands still follows nothing"
    assert np.isnan(follows(np.zeros_like(path), path))
    gone = path.copy()
    gone[2] = False
    assert follows(gone, path) == pytest.approx(1), "frames in which it is not seen are left out"


@pytest.mark.parametrize("call, said", [
    (lambda: MaskReader.fit(np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8))), "only one of the two"),
    (lambda: MaskReader.fit(np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 4, 4))), "wants its mask"),
    (lambda: overlap(square(0, 0), square(0, 0, size=8)), "as many of the one"),
    (lambda: centres(np.ones((4, 4))), "Masks are f h w"),
])
def test_what_cannot_be_measured_is_refused(call, said):
    with pytest.raises(AnimkitError, match=said):
        call()
