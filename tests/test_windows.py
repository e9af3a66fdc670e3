"""Long clips: motion modules look along frames in windows. checkpoints/test_motion_files.py compares them with diffusers."""
import numpy as np
import pytest
import torch
from test_animator import STEPS, make_motion, make_pipe
from tiny import shaken

import animkit as ak
from animkit.windows import averaged, repeated, windows


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def moving():
    pipe = make_pipe()
    return ak.Animator(pipe, shaken(make_motion(pipe.unet)))  # 6 positions


def test_windows_cover_every_frame_and_the_last_ends_with_the_clip():
    assert windows(12, 8, 4) == [slice(0, 8), slice(4, 12)]
    assert windows(11, 6, 4) == [slice(0, 6), slice(4, 10), slice(5, 11)]
    assert windows(6, 6, 3) == windows(4, 6, 3) == [slice(0, 6)]


def test_where_windows_overlap_the_middle_of_each_weighs_most():
    x = torch.randn(3, 7, 4, generator=seeded(0))
    found = averaged(lambda part: part + part.mean(1, keepdim=True), x, window=4, stride=2)
    means = torch.stack([x[:, a : a + 4].mean(1) for a in (0, 2, 3)])                              # 3 b c
    weights = torch.tensor([[1, 2, 2, 1, 0, 0, 0], [0, 0, 1, 2, 2, 1, 0], [0, 0, 0, 1, 2, 2, 1.0]])
    expected = torch.einsum("wf,wbc->bfc", weights / weights.sum(0), means)
    assert torch.allclose(found - x, expected, atol=1e-6)


def test_noise_beyond_the_first_window_is_that_of_a_window_before_and_a_stride_apart():
    noise = torch.randn(2, 3, 11, 2, 2, generator=seeded(0))
    found = repeated(noise, 6, 4, [seeded(1), seeded(2)])
    assert torch.equal(found[:, :, :6], noise[:, :, :6])
    for k, clip in enumerate(found):
        came_from = [next(f for f in range(6) if torch.equal(clip[:, f], clip[:, later])) for later in range(6, 11)]
        assert sorted(came_from[:4]) == [0, 1, 2, 3] and came_from[4] in (4, 5, *came_from[:2])
    assert not torch.equal(found[:, :, 6:10], found[:, :, :4])


def test_a_clip_longer_than_the_positions_is_drawn_in_windows(moving):
    how = dict(seed=3, steps=STEPS, progress=False)
    long = moving("a red balloon", frames=11, window=6, **how)
    assert long.array.shape[0] == 11 and (long.settings["window"], long.settings["stride"]) == (6, 3)
    both = moving(["a red balloon", "a red balloon"], frames=11, window=6, **how | {"seed": 2})
    assert np.abs(both[1].array.astype(int) - long.array).max() <= 1  # clip 1 of seed 2 is clip 0 of seed 3
    assert not np.array_equal(long.array, moving("a red balloon", frames=11, window=6, stride=2, **how).array)
    short = moving("a red balloon", frames=6, window=6, **how)
    assert np.array_equal(short.array, moving("a red balloon", frames=6, **how).array) and "window" not in short.settings
    assert np.array_equal(short.array, moving("a red balloon", frames=6, **how).array)  # nothing stays behind


@pytest.mark.parametrize("options, said", [
    ({"frames": 11}, "11 frames .* 6 positions .*window="),
    ({"frames": 11, "window": 7}, "7 frames .* 6 positions"),
    ({"frames": 11, "window": 0}, "window .* got 0"),
    ({"frames": 11, "window": 6, "stride": 0}, "stride .* got 0"),
    ({"frames": 11, "window": 6, "stride": 7}, "at most one window.* stride 7 and window 6"),
    ({"frames": 6, "stride": 3}, "stride 3 and window None"),  # it would do nothing
])
def test_windows_that_cannot_be_are_refused(moving, options, said):
    with pytest.raises(ak.AnimkitError, match=said):
        moving("a red balloon", steps=STEPS, progress=False, **options)


def test_without_motion_modules_a_clip_of_any_length_needs_no_windows():
    still = ak.Animator(make_pipe())
    how = dict(frames=11, seed=3, steps=STEPS, progress=False)
    assert np.array_equal(still("a red balloon", window=6, **how).array, still("a red balloon", **how).array)
