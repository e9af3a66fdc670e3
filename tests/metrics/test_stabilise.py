"""A camera's move, known or estimated, is taken out; what moves by itself stays."""
import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.metrics import motion_of, stabilised
from animkit.metrics.camera import CameraPath
from animkit.world import SHOTS, Scene, Thing, render

STILL = Scene((Thing("ball", "red"),), "city")


def path(shot, frames=16, amount=1.0):
    return CameraPath(*SHOTS[shot](np.arange(frames) / frames, amount), support=np.ones(frames - 1))


@pytest.mark.parametrize("shot", SHOTS)
def test_a_still_world_stands_still_again(shot):
    clip = render(STILL.with_(shot=shot)).uint8
    for steady in (stabilised(clip, path(shot)), stabilised(clip)):
        middle = clip[8].astype(float)
        inside = slice(12, -12), slice(12, -12)  # what turns or zooms is resampled, and the edges are not always seen
        off = np.abs(steady[:, *inside] - middle[None, *inside]).mean()
        assert off < 0.35 * np.abs(clip[:, *inside] - middle[None, *inside]).mean()
        assert steady.shape == clip.shape and steady.dtype == np.uint8 and np.array_equal(steady[8], clip[8])


def test_without_a_move_nothing_is_touched():
    clip = render(STILL.with_(things=(Thing("ball", "red", "bouncing"),))).uint8
    frozen = CameraPath(np.ones(16), np.zeros(16), np.zeros(16), np.zeros(16), np.ones(15))
    assert np.array_equal(stabilised(clip, frozen), clip)


def test_what_was_not_seen_does_not_move():
    frames = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
    far = CameraPath(np.ones(16), np.linspace(0, 10, 16), np.zeros(16), np.zeros(16), np.ones(15))
    steady = stabilised(frames, far)  # a pan of 10 half sides: most is seen by one frame or none
    assert motion_of(steady).amount < motion_of(frames).amount
    assert np.array_equal(steady[0], steady[1]) and not np.array_equal(steady[0], frames[0])


def test_what_comes_into_view_takes_the_frames_that_saw_it():
    """A pan by 2 pixels a frame over one wide still picture: the middle frame again each time, at both borders too."""
    wide = np.random.default_rng(0).integers(0, 256, (32, 46, 3), np.uint8)
    clip = np.stack([wide[:, 2 * k:2 * k + 32] for k in range(8)])
    pan = CameraPath(np.ones(8), np.arange(8) * 2 / 16, np.zeros(8), np.zeros(8), np.ones(7))
    off = np.abs(stabilised(clip, pan).astype(int) - clip[4])
    assert off.max() <= 1


@pytest.mark.parametrize("frames", [15, 17])
def test_a_path_of_another_length_is_refused(frames):
    with pytest.raises(AnimkitError, match=f"path of 16 frames.*got {frames}, {frames}, {frames}, {frames}"):
        stabilised(np.zeros((16, 64, 64, 3), np.uint8), path("pan left", frames))


def test_one_frame_is_refused():
    with pytest.raises(AnimkitError):
        stabilised(np.zeros((1, 64, 64, 3), np.uint8))
