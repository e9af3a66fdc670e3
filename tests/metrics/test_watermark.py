"""The watermark's score on renders with and without it."""
import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.metrics import mark_correlation, watermark_score
from animkit.world import LOOKS, SETTINGS, random_scene, render, watermark
from animkit.world.web import degrade

FRAMES = 4


@pytest.fixture(scope="module")
def scenes():
    rng, looks, settings = np.random.default_rng(8), list(LOOKS), list(SETTINGS)
    return [render(random_scene(rng, look=looks[k % 12], setting=settings[k % 6]), FRAMES).rgb for k in range(24)]


def shown(scenes, mark):
    return [(degrade(rgb, mark=mark) * 255 + 0.5).astype(np.uint8) for rgb in scenes]


@pytest.fixture(scope="module")
def known(scenes):
    return {"web": shown(scenes[:12], 0.45), "clean": [(rgb * 255 + 0.5).astype(np.uint8) for rgb in scenes[:12]]}


def test_the_references_themselves_are_100_and_0(known):
    assert watermark_score(known["web"], **known).mean() == pytest.approx(100)
    assert watermark_score(known["clean"], **known).mean() == pytest.approx(0, abs=1e-9)


def test_fresh_scenes_fall_where_they_should_and_a_weaker_mark_scores_less(scenes, known):
    fresh = scenes[12:]
    means = [watermark_score(shown(fresh, mark), **known).mean() for mark in (0.45, 0.25, 0.12, 0.0)]
    assert means == sorted(means, reverse=True)
    assert abs(means[0] - 100) < 20 and abs(means[-1]) < 15, f"degraded as the web's, without a mark: {means}"
    assert abs(watermark_score([(rgb * 255).astype(np.uint8) for rgb in fresh], **known).mean()) < 15


def test_each_clip_with_a_mark_has_more_of_it_than_without(known):
    gained = [mark_correlation(w) - mark_correlation(c) for w, c in zip(known["web"], known["clean"])]
    assert min(gained) > 0.1


def test_it_is_the_mark_that_counts_not_the_brightness_or_the_place(known):
    clip = known["web"][0]
    assert mark_correlation(255 - clip) == pytest.approx(-mark_correlation(clip), abs=0.03), "dark instead of bright"
    assert mark_correlation(clip[:, ::-1]) < mark_correlation(clip) - 0.2, "upside down"
    mark = (watermark(64) * 255).astype(np.uint8)
    assert mark_correlation(np.repeat(mark[None, ..., None], 3, -1)) > 0.99
    assert mark_correlation(np.full((2, 64, 64, 3), 90, np.uint8)) == 0
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    assert abs(mark_correlation(noise)) < 0.1


def test_a_strong_edge_beside_the_mark_counts_no_more_than_the_mark():
    """Without the division by the local contrast the edge, five times as strong as this faint mark, leaves r a third of its own."""
    mark = watermark(64)

    def r(column):
        ground = np.where(np.arange(64) < column, 250.0, 60.0) * np.ones((64, 1))
        shown = (ground + 0.2 * mark * (255 - ground)).astype(np.uint8)
        return mark_correlation(np.repeat(shown[None, ..., None], 3, -1))
    assert r(0) > 0.99, "on even ground"
    assert r(3) > 0.7 and r(8) > 0.7


def test_order_of_frames_does_not_matter(known):
    clip = known["web"][1]
    assert mark_correlation(clip[::-1]) == pytest.approx(mark_correlation(clip))


def test_bad_input(known):
    with pytest.raises(AnimkitError, match="no more than the clean ones"):
        watermark_score(known["web"], web=known["clean"], clean=known["web"])
    with pytest.raises(AnimkitError, match="no more than the clean ones"):
        watermark_score(known["web"], web=known["web"], clean=known["web"])
    with pytest.raises(AnimkitError, match="wants web and clean"):
        watermark_score(known["web"], web=[], clean=known["clean"])
    with pytest.raises(AnimkitError, match="is square"):
        mark_correlation(np.zeros((1, 8, 16, 3), np.uint8))
    with pytest.raises(AnimkitError, match="The mark is h w"):
        mark_correlation(np.zeros((1, 8, 16, 3), np.uint8), watermark(8))
