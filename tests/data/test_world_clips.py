"""Clips of the cartoon world as training data: pure functions of recipe and index; whose camera moves, and whose not."""
import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch

from animkit.data.world_clips import WorldClips, WorldRecipe, draw
from animkit.errors import AnimkitError
from animkit.metrics.camera import LEAST, camera_path


def test_a_clip_is_a_function_of_recipe_and_index():
    recipe = WorldRecipe(size=32, frames=3, web=True, seed=5)
    pixels, caption = draw(recipe, 2)
    again, same = draw(recipe, 2)
    assert np.array_equal(pixels, again) and caption == same
    assert pixels.shape == (3, 32, 32, 3) and pixels.dtype == np.uint8
    assert not np.array_equal(pixels, draw(recipe, 3)[0]) and not np.array_equal(
        pixels, draw(WorldRecipe(size=32, frames=3, web=True, seed=6), 2)[0])
    clip = WorldClips(4, size=32, frames=3, web=True, seed=5).get(2)
    assert torch.equal(((clip["video"] + 1) * 127.5).round().byte(), torch.from_numpy(pixels).permute(3, 0, 1, 2))
    assert clip["caption"] == caption and clip["index"] == 2
    assert len({WorldClips(4, size=32, frames=3, seed=seed, workers=n).fingerprint() for seed, n in ((5, 1), (5, 2), (6, 1))}) == 2


def test_processes_of_a_program_that_has_used_its_threads_draw_too():
    """They are forked, and OpenMP's threads do not survive that: a crop, which torch makes, waited for them for ever."""
    program = ("import torch; from animkit.data.world_clips import WorldClips; torch.set_num_threads(2); "
               "torch.nn.functional.interpolate(torch.rand(1, 3, 512, 512), scale_factor=2, mode='bilinear'); "
               "clips = WorldClips(2, workers=2, size=128, frames=2, shot='zoom in', amount=0.3, camera='crop'); "
               "print(tuple(clips.get(0)['video'].shape))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(3, 2, 128, 128)", done.stderr


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1], [2, 4], [4]])
def test_no_process_is_left_when_all_clips_or_the_last_were_given(order):
    before = set(multiprocessing.active_children())
    alone, clips = (WorldClips(5, workers=n, size=16, frames=2) for n in (1, 2))
    for again in range(2):
        for k in order:
            assert torch.equal(clips.get(k)["video"], alone.get(k)["video"])
        if len(order) > 1 or not again:
            assert clips._pool is None and set(multiprocessing.active_children()) == before
    clips.get(1)
    assert clips._pool is not None, "made again when it is needed"


def test_threads_that_ask_at_the_same_time_get_their_clips_and_leave_no_process():
    alone, clips = (WorldClips(24, workers=n, size=16, frames=2) for n in (1, 2))
    with ThreadPoolExecutor(4) as threads:
        for again in range(2):
            for k, clip in enumerate(threads.map(clips.get, range(24), timeout=60)):
                assert torch.equal(clip["video"], alone.get(k)["video"])
    assert clips._pool is None


def test_processes_end_with_a_program_that_is_killed():
    program = ("import multiprocessing, time; from animkit.data.world_clips import WorldClips; "
               "clips = WorldClips(1000, workers=2, size=16, frames=2); clips.get(0); "
               "print(*(p.pid for p in multiprocessing.active_children()), flush=True); time.sleep(60)")
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    drawing = []
    try:
        drawing = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        assert len(drawing) == 2
        run.kill()  # SIGKILL
        run.wait()
        until = time.monotonic() + 10
        while alive(drawing) and time.monotonic() < until:
            time.sleep(0.1)
        assert not alive(drawing)
    finally:
        for process in [run, *alive(drawing)]:
            process.kill()
        run.stdout.close()


def alive(processes):
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_the_camera_moves_in_the_share_that_is_asked_for():
    def moving(moves):
        recipe = WorldRecipe(frames=8, moving=0.0, moves=moves, seed=1)
        paths = [camera_path(draw(recipe, k)[0]).moves for k in range(24)]
        return np.mean([max(map(abs, path.values())) > LEAST / 2 for path in paths])

    assert moving(0.0) < 0.1 and moving(1.0) > 0.8 and 0.2 < moving(0.5) < 0.8


@pytest.mark.parametrize("how", [{"moves": 1.5}, {"moves": -0.1}, {"moves": 0.5, "shot": "zoom in"},
                                 {"moves": 0.5, "frames": 1}])
def test_moves_that_cannot_be_are_refused(how):
    with pytest.raises(AnimkitError, match="moves is a share of clips"):
        WorldRecipe(**how)


def test_processes_that_cannot_be_started_are_named(monkeypatch):
    """As without a /dev/shm that can be written."""
    def none(*args, **how):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("animkit.data.world_clips.ProcessPoolExecutor", none)
    with pytest.raises(AnimkitError, match="cannot work here .*Read-only.* set data.workers=1"):
        WorldClips(4, workers=2, size=8, frames=2).get(0)
