"""That a slow decoder is overlapped with the step: shown by counting what is under way, not by a clock."""
import tarfile
import threading
from collections import defaultdict

import pytest
import torch
from torch import nn

import animkit.data
from animkit.data import Batches, SHOTS, StreamClips, VideoClips
from animkit.training import LoopConfig, fit
from animkit.training.plumbing import fetched


class Gate:
    """Items that say when they are asked for."""
    def __init__(self):
        self.asked = defaultdict(threading.Event)

    def __len__(self):
        return 100

    def get(self, index, epoch=0):
        self.asked[index].set()
        return {"video": torch.full((1,), float(index)), "index": index}


@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_are_made_while_the_step_runs(prefetch):
    items = Gate()
    batches = Batches(items, 1)
    wanted = [batches.rows(k)[0][0] for k in range(10)]
    source = fetched(batches, LoopConfig(steps=10, prefetch=prefetch), 0)
    for k in range(5):
        assert next(source)["index"] == [wanted[k]]  # now the step of batch k "runs":
        for ahead in range(1, prefetch + 1):
            assert items.asked[wanted[k + ahead]].wait(20)  # the batches after it are fetched meanwhile
        assert not items.asked[wanted[k + prefetch + 1]].is_set()  # and no more than was said
    source.close()


@pytest.mark.parametrize("prefetch", [0, 2, 9])
def test_no_batch_is_made_that_no_step_takes(prefetch):
    made = []
    config = LoopConfig(steps=4, prefetch=prefetch)
    assert list(fetched(lambda k, generator: made.append(k) or k, config, 1)) == made == [1, 2, 3]


def test_the_items_of_a_batch_are_decoded_side_by_side():
    class Together(Gate):
        barrier = threading.Barrier(4)

        def get(self, index, epoch=0):
            self.barrier.wait(20)  # passes only when four are inside at once
            return super().get(index, epoch)
    batch = Batches(Together(), 8, workers=4)(0)
    assert batch["index"] == [row[0] for row in Batches(Gate(), 8).rows(0)]  # and their order is kept


def test_too_many_bad_videos_stop_the_training_loop_from_its_thread(videos, tmp_path):
    for i in range(9):
        videos.write(tmp_path / "v" / f"{i}.mp4", 8, size=(32, 64))
    (tmp_path / "v" / "3.mp4").write_bytes(b"junk")
    model = nn.Linear(1, 1)
    loss = lambda m, batch, g: m(batch["video"].mean().view(1, 1)).mean() ** 2  # noqa: E731
    clips = VideoClips(tmp_path / "v", size=8, frames=2, stride=2)
    with pytest.raises(ValueError, match="over 10%(.|\n)*3.mp4: unreadable"):
        fit(model, loss, Batches(clips, 2, workers=2), LoopConfig(steps=6, prefetch=2), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_broken_off_and_resumed_is_the_unbroken_run(videos, tmp_path, streamed):
    with tarfile.open(tmp_path / "clips-0.tar", "w") as tar:
        for i in range(7):
            path = videos.write(tmp_path / "v" / f"{i}.mp4", 12, size=(32, 64))
            path.with_suffix(".txt").write_text(f"clip {i}")
            tar.add(path, path.name)
            tar.add(path.with_suffix(".txt"), f"{i}.txt")

    def run(folder, *ends):
        torch.manual_seed(0)
        model = nn.Linear(12, 1)
        loss = lambda m, batch, g: m(batch["video"][..., 0, 0].flatten(1)).square().mean()  # noqa: E731
        for steps in ends:
            recipe = {"size": 8, "frames": 4, "stride": 2, "seed": 1}
            batch = StreamClips(str(tmp_path / "clips-0.tar"), 2, **recipe) if streamed else Batches(
                VideoClips(tmp_path / "v", crop="random", **recipe), 2, workers=2)
            config = LoopConfig(steps=steps, accumulate=2, lr=0.01, prefetch=2)
            history = fit(model, loss, batch, config, tmp_path / folder, quiet=True)
        return list(history.losses), model.weight.detach()
    (losses, weight), (losses_too, weight_too) = run("whole", 6), run("broken", 2, 5, 6)
    assert losses == losses_too and torch.equal(weight, weight_too) and len(set(losses)) == 6


def test_public_names():
    for name in animkit.data.__all__:
        assert getattr(animkit.data, name) is not None
    assert len(SHOTS) == 8
