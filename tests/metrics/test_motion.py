"""Amount, smoothness and warp error of clips whose answer is known: moved textures, renders, stills, noise, shuffles."""
import cv2
import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.metrics import exact_flow, motion_found, motion_of, optical_flow
from animkit.show.clip import Clip
from animkit.world import Scene, Thing, render


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


def sliding(steps, size=64, seed=0):
    """Frames of a smooth texture that stands at x = steps[k] pixels in frame k."""
    rng = np.random.default_rng(seed)
    wide = cv2.GaussianBlur(rng.random((size, size + 80, 3)).astype(np.float32), (0, 0), 2)
    wide = (wide - wide.min()) / (wide.max() - wide.min())
    moved = [cv2.warpAffine(wide, np.float32([[1, 0, s], [0, 1, 0]]), (size + 80, size), flags=cv2.INTER_CUBIC)[:, 40:40 + size] for s in steps]
    return (np.clip(moved, 0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def falling():
    return render(Scene((Thing("ball", "red", "falling"),), "meadow"))


def test_a_slide_of_two_pixels_a_frame_is_measured(falling):
    clip = sliding(2.0 * np.arange(6))
    flow = optical_flow(clip)
    assert flow.shape == (5, 64, 64, 2)
    assert np.abs(flow[:, 8:-8, 8:-8] - [2, 0]).mean() < 0.1
    found = motion_of(Clip(clip))
    assert found.amount == pytest.approx(100 * 2 / 64, rel=0.05) and found.smoothness > 95 and found.warp_error < 1.5


def test_known_flows_have_the_smoothness_that_the_formula_gives():
    clip = np.zeros((4, 32, 32, 3), np.uint8)
    steady = np.full((3, 32, 32, 2), 1.0)
    assert motion_of(clip, steady).smoothness == pytest.approx(100) and motion_of(clip, steady).amount == pytest.approx(100 * 2 ** .5 / 32)
    there_and_back = steady * np.array([1, -1, 1])[:, None, None, None]
    assert motion_of(clip, there_and_back).smoothness == pytest.approx(0, abs=1e-4)
    quicker = steady * np.array([1, 3, 9])[:, None, None, None]  # |a| = 2, |v| + |v'| = 4, at each step: half
    assert motion_of(clip, quicker).smoothness == pytest.approx(50)
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, (60, 1, 1)) + np.zeros((60, 16, 16))
    random = 0.01 * np.stack([np.cos(angle), np.sin(angle)], -1)  # E|a| = 4 / pi of a step; so small that it stays in place
    expected = motion_of(np.zeros((61, 16, 16, 3), np.uint8), random)
    assert expected.smoothness == pytest.approx(100 * (1 - 2 / np.pi), abs=8)


def test_points_are_followed_and_left_out_when_they_leave_the_picture():
    """8 of 32 columns go 24 to the right, and would go on; the rest leaves at once. Amounts are of the short side."""
    clip, flow = np.random.default_rng(0).integers(0, 256, (3, 16, 32, 3), np.uint8), np.zeros((2, 16, 32, 2))
    clip[1, :, 24:], flow[0, :, :8, 0], flow[0, :, 8:, 0] = clip[0, :, :8], 24, 100
    clip[2], flow[1, :, 24:, 0] = clip[1], 24
    assert motion_of(clip, flow) == pytest.approx((100 * (0.25 * 24 + 0.75 * 100 + 0.25 * 24) / 2 / 16, 100, 0))
    assert np.isnan(motion_of(clip[:2], flow[:1] + 32).warp_error), "nothing was compared: no 0"
    assert np.isnan(motion_of(clip, 1e-3 + 0 * flow).smoothness), "so little has none"


def test_a_still_has_no_motion_and_no_smoothness(falling):
    found = motion_of(np.repeat(falling.uint8[:1], 6, 0))
    assert found.amount == 0 and np.isnan(found.smoothness) and found.warp_error == 0
    assert np.isnan(motion_of(falling.uint8[:2]).smoothness), "two frames have one step, and no change of it"


def test_the_warp_error_is_the_root_mean_square_over_all_colours(falling):
    """Ten grey levels brighter, and nothing moves: 10 / 255 of white, whatever the picture; in one colour of three, a sqrt(3)th."""
    still = np.repeat(np.clip(falling.uint8[:1], 0, 245), 2, 0)
    brighter, redder = still + np.uint8([[[[0]]], [[[10]]]]), still + np.uint8([[[[0, 0, 0]]], [[[10, 0, 0]]]])
    flow = np.zeros((1, *still.shape[1:3], 2))
    assert motion_of(brighter, flow).warp_error == pytest.approx(100 * 10 / 255, rel=1e-4)
    assert motion_of(redder, flow).warp_error == pytest.approx(100 * 10 / 255 / 3 ** 0.5, rel=1e-4)


def test_dis_agrees_with_the_exact_flow_of_a_render(falling):
    pan = render(Scene((Thing("ball"),), "city", shot="pan left"), 8)
    assert motion_of(pan.uint8).amount == pytest.approx(motion_of(pan.uint8, exact_flow(pan)).amount, rel=0.1)
    true, found = motion_of(falling.uint8, exact_flow(falling)), motion_of(falling.uint8)
    assert true.amount < found.amount < 2 * true.amount, "on flat ground it spreads an object's motion, as the page says"
    assert found.smoothness == pytest.approx(true.smoothness, abs=15)
    inside = falling.mask[:-1] > 0.9
    down = optical_flow(falling.uint8)[..., 1][inside]
    assert np.median(down) == pytest.approx(np.median(exact_flow(falling)[..., 1][inside]), rel=0.25)


def test_reversed_shuffled_and_noise(falling):
    clip, rng = falling.uint8, np.random.default_rng(0)
    own, backwards = motion_of(clip), motion_of(clip[::-1])
    assert backwards.amount == pytest.approx(own.amount, rel=0.2) and backwards.smoothness == pytest.approx(own.smoothness, abs=8)
    shuffled = motion_of(clip[rng.permutation(16)])
    assert shuffled.amount > 1.5 * own.amount and shuffled.smoothness < own.smoothness - 20
    noise = motion_of(rng.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8))
    assert noise.smoothness < own.smoothness - 20 and noise.warp_error > 5 * own.warp_error
    flicker = motion_of(np.clip(clip[:6].astype(int) + np.array([0, 30] * 3)[:, None, None, None], 0, 255).astype(np.uint8))
    assert flicker.warp_error > 5 * own.warp_error


def test_faster_is_more():
    amounts = [motion_of(sliding(v * np.arange(4))).amount for v in (0.5, 1, 2, 4)]
    assert amounts == sorted(amounts)


def test_the_named_motion_is_asked_of_the_judge(falling):
    class Judge:
        def motion(self, clips):
            assert clips.shape == (2, 16, 64, 64, 3)
            return ["falling", "still"]
    clips = [Clip(falling.uint8), falling.uint8]
    assert motion_found(Judge(), clips, ["falling", "rising"]).tolist() == [True, False]
    with pytest.raises(AnimkitError, match="2 clips want as many motions.*hopping"):
        motion_found(Judge(), clips, ["falling", "hopping"])
    with pytest.raises(AnimkitError, match="one length and size; these have 8 frames of 64 x 64, 16 frames of 64 x 64"):
        motion_found(Judge(), [clips[0], clips[1][:8]], ["falling", "rising"])
    with pytest.raises(AnimkitError, match="one clip at least.*these have none"):
        motion_found(Judge(), [], [])


@pytest.mark.parametrize("bad, said", [(np.zeros((1, 8, 8, 3), np.uint8), "2 frames at least"), (np.zeros((4, 8, 8, 3)), "uint8"),
                                       (np.zeros((8, 8, 3), np.uint8), "uint8 of shape"), ([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], "differ in size")])
def test_what_is_no_clip_is_refused(bad, said):
    with pytest.raises(AnimkitError, match=said):
        motion_of(bad)


def test_a_flow_of_another_clip_is_refused():
    with pytest.raises(AnimkitError, match="has the shape"):
        motion_of(np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 2)))
