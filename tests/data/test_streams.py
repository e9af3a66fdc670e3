import gc
import io
import json
import shutil
import tarfile
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from animkit.data.streams import StreamClips, open_shards
from animkit.data.video_clips import ClipRecipe
from animkit.errors import AnimkitError


def write_shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, data in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def shards(videos, tmp_path_factory):
    """Five shards of seven videos."""
    folder = tmp_path_factory.mktemp("shards")
    data = videos.write(folder / "v.mp4", 12, size=(32, 64)).read_bytes()
    for s in range(5):
        write_shard(folder / f"clips-{s:03}.tar", {name: content for i in range(7) for name, content in (
            (f"{s}{i}.mp4", data), (f"{s}{i}.txt", f"caption {s}{i}".encode()))})
    return str(folder / "clips-{000..004}.tar")


ALL = sorted(f"{s}{i}" for s in range(5) for i in range(7))


@pytest.mark.parametrize("world, workers, shuffle", [
    (1, 0, 0), (1, 2, 4), (5, 0, 4), (2, 0, 0), (2, 0, 4), (2, 2, 0), (2, 2, 4), (3, 1, 4), (5, 1, 0)])
def test_every_sample_exactly_once_over_ranks_and_workers(shards, world, workers, shuffle):
    for epoch in (1,) if workers else (0, 1):  # starting workers takes long
        seen = []
        for rank in range(world):
            stream = open_shards(shards, rank=rank, world=world, shuffle=shuffle, seed=1)
            stream.set_epoch(epoch)
            seen.append([s["key"] for s in DataLoader(stream, batch_size=None, num_workers=workers)])
        assert sorted(sum(seen, [])) == ALL and all(seen)


def test_nothing_is_decoded_before_it_is_wanted(shards, monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded")
    monkeypatch.setattr(ClipRecipe, "cut", refuse)
    clips = StreamClips(shards, 2, size=8, frames=2, stride=2)
    with pytest.raises(AssertionError, match="decoded"):
        clips(0)
    sample = next(iter(open_shards(shards)))
    assert isinstance(sample["video"], bytes) and sample["caption"] == f"caption {sample['key']}"


def test_batches_are_a_function_of_the_step(shards, videos):
    settings = {"size": 16, "frames": 3, "stride": 2, "seed": 4, "shuffle": 6}
    stream = StreamClips(shards, 4, **settings)
    steps = [stream(k) for k in range(18)]  # 72 samples: two epochs of 35, and 2
    keys = [key for step in steps for key in step["key"]]
    assert steps[0]["video"].shape == (4, 3, 3, 16, 16)
    assert len({tuple(videos.numbers(video)) for video in steps[0]["video"]}) > 1  # each from a place of its own
    assert sorted(keys[:35]) == ALL and sorted(keys[35:70]) == ALL and keys[:35] != keys[35:70] and keys[:35] != ALL
    resumed = StreamClips(shards, 4, workers=2, **settings)
    for k in (9, 10, 3):  # from the middle, on, and back
        again = resumed(k)
        assert again["key"] == steps[k]["key"] and torch.equal(again["video"], steps[k]["video"])
    starts = {key: set() for key in ALL}
    for step in steps:
        for key, video in zip(step["key"], step["video"]):
            starts[key].add(tuple(videos.numbers(video)))
    assert any(len(s) > 1 for s in starts.values())  # another place in the video in the second epoch


def test_a_folder_may_be_named_like_a_pattern(shards, tmp_path):
    folder = tmp_path / "clips [2024]"
    shutil.copytree(Path(shards).parent, folder)
    for pattern in ("clips-*.tar", "clips-{000..004}.tar"):
        stream = open_shards(str(folder / pattern), shuffle=0)
        assert sorted(sample["key"] for sample in stream) == ALL
    with pytest.raises(AnimkitError, match="no such shard"):
        open_shards(str(folder / "x-*.tar"))


def test_two_ranks_share_the_stream(shards, monkeypatch):
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr("animkit.data.streams.rank_and_world", lambda rank=rank: (rank, 2))
        stream = StreamClips(shards, 1, size=8, frames=2, stride=2)
        seen += [stream(k)["key"][0] for k in range(17 + (rank == 0))]
    assert sorted(seen) == ALL


def test_bad_videos_are_replaced_and_named(videos, tmp_path):
    good = videos.write(tmp_path / "v.mp4", 12, size=(32, 64)).read_bytes()
    def tar(bad):
        write_shard(tmp_path / "x.tar", {name: content for i in range(20) for name, content in (
            (f"{i:02}.mp4", b"junk" if i in bad else good),
            (f"{i:02}.json", json.dumps({"caption": f"c{i}"}).encode()))})
        return StreamClips(str(tmp_path / "x.tar"), 4, size=8, frames=2, stride=2, shuffle=0)
    stream = tar({1, 6})
    steps = [stream(k) for k in range(6)]
    assert [step["key"] for step in steps[:3]] == [["00", "02", "03", "04"], ["04", "05", "07", "08"],
                                                   ["08", "09", "10", "11"]]
    assert steps[5]["caption"] == ["c0", "c2", "c3", "c4"]
    assert "2 of 20 videos" in str(stream.skipped) and "x.tar: 06: unreadable" in str(stream.skipped)
    with pytest.raises(AnimkitError, match="over 10%(.|\n)*x.tar: 11: unreadable"):
        stream = tar({1, 6, 11})
        for k in range(6):
            stream(k)


@pytest.mark.parametrize("said", [{"caption": 3}, ["a", "b"], {"caption": ["a"]}, {"caption": 0}, 3])
def test_a_caption_that_is_no_text_is_a_bad_video(said, videos, tmp_path):
    good = videos.write(tmp_path / "v.mp4", 12, size=(32, 64)).read_bytes()
    write_shard(tmp_path / "x.tar", {name: content for i in range(20) for name, content in (
        (f"{i:02}.mp4", good), (f"{i:02}.json", json.dumps(said).encode()))})
    with pytest.raises(AnimkitError, match="over 10%(.|\n)*x.tar: 00: caption is no text"):
        StreamClips(str(tmp_path / "x.tar"), 4, size=8, frames=2, stride=2, shuffle=0)(0)


@pytest.mark.parametrize("ending, bad", [("json", b"{'caption': 'a'}"), ("json", b"\xff\xfe{"), ("json", b""), ("txt", b"caf\xe9")])
@pytest.mark.parametrize("at", [0, 12])  # among those from which the columns are read, and later
def test_a_caption_that_cannot_be_read_spoils_its_own_sample_alone(ending, bad, at, videos, tmp_path):
    good = videos.write(tmp_path / "v.mp4", 12, size=(32, 64)).read_bytes()
    caption = b"c" if ending == "txt" else b'{"caption": "c"}'
    write_shard(tmp_path / "x.tar", {name: content for i in range(20) for name, content in (
        (f"{i:02}.mp4", good), (f"{i:02}.{ending}", bad if i == at else caption))})
    stream = StreamClips(str(tmp_path / "x.tar"), 4, size=8, frames=2, stride=2, shuffle=0)
    keys = [key for k in range(5) for key in stream(k)["key"]]
    assert f"{at:02}" not in keys and len(set(keys)) == 19
    assert len(stream.skipped) == 1 and f"x.tar: {at:02}: caption is no UTF-8 or no JSON" in str(stream.skipped)


def test_captions_need_not_be_of_one_kind(videos, tmp_path):
    """Their columns are read off the first samples of a shard: what others hold is their own affair."""
    good = videos.write(tmp_path / "v.mp4", 12, size=(32, 64)).read_bytes()
    said = [b'{"caption": "a", "width": 3}'] * 6 + [b'{"text": "b", "width": "wide", "tags": ["x"]}'] * 6
    write_shard(tmp_path / "x.tar", {name: content for i, text in enumerate(said) for name, content in (
        (f"{i:02}.mp4", good), (f"{i:02}.json", text))})
    stream = StreamClips(str(tmp_path / "x.tar"), 6, size=8, frames=2, stride=2, shuffle=0)
    assert [stream(k)["caption"] for k in (0, 1)] == [["a"] * 6, ["b"] * 6] and not stream.skipped.why


def test_a_text_with_a_byte_order_mark_is_read_without_it(videos, tmp_path):
    good = videos.write(tmp_path / "v.mp4", 12, size=(32, 64)).read_bytes()
    write_shard(tmp_path / "x.tar", {name: content for i in range(4) for name, content in (
        (f"{i}.mp4", good), (f"{i}.txt", "\ufeffcafé".encode()))})
    assert StreamClips(str(tmp_path / "x.tar"), 4, size=8, frames=2, stride=2)(0)["caption"] == ["café"] * 4


@pytest.mark.parametrize("said, caption", [
    ({"caption": ""}, ""), ({"text": ""}, ""), ({"caption": "", "text": "a"}, "a"), ({"caption": None, "text": "a"}, "a"),
    ({"caption": "a", "text": "b"}, "a")])
def test_an_empty_caption_is_one(said, caption, videos, tmp_path):
    good = videos.write(tmp_path / "v.mp4", 12, size=(32, 64)).read_bytes()
    write_shard(tmp_path / "x.tar", {name: content for i in range(4) for name, content in (
        (f"{i}.mp4", good), (f"{i}.json", json.dumps(said).encode()))})
    stream = StreamClips(str(tmp_path / "x.tar"), 4, size=8, frames=2, stride=2)
    assert stream(0)["caption"] == [caption] * 4 and not stream.skipped.why


def test_what_else_is_in_a_sample_is_not_read(videos, tmp_path):
    good = videos.write(tmp_path / "v.mp4", 12, size=(32, 64)).read_bytes()
    members = (("mp4", good), ("mp3", b"sound"), ("jpg", b"a thumbnail"), ("txt", b"c"))
    write_shard(tmp_path / "x.tar", {f"{i}.{ending}": data for i in range(4) for ending, data in members})
    stream = StreamClips(str(tmp_path / "x.tar"), 4, size=8, frames=2, stride=2)
    assert stream(0)["caption"] == ["c"] * 4 and not stream.skipped.why


def test_faults_are_named(tmp_path, videos):
    with pytest.raises(AnimkitError, match="no such shard"):
        open_shards(str(tmp_path / "a-{00..03}.tar"))
    (tmp_path / "junk.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(AnimkitError, match="junk.tar"):
        open_shards(str(tmp_path / "junk.tar"))
    write_shard(tmp_path / "p.tar", {"a.png": b"x", "a.txt": b"y"})
    with pytest.raises(AnimkitError, match="they have png, txt"):
        open_shards(str(tmp_path / "p.tar"))
    good = videos.write(tmp_path / "v.mp4", 40, size=(32, 64)).read_bytes()
    write_shard(tmp_path / "cut.tar", {f"{i}.{e}": d for i in range(30) for e, d in (("mp4", good), ("txt", b"c"))})
    whole = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:len(whole) // 2 + 100])
    stream = StreamClips(str(tmp_path / "cut.tar"), 5, size=8, frames=2, stride=2, shuffle=0)
    with pytest.raises(AnimkitError, match="cannot be read on, after .* of .*cut.tar"):
        for k in range(6):
            stream(k)


def test_the_stream_ends_with_its_object_and_not_by_the_garbage_collector(shards):
    """That may come while a thread starts, and the threads which end with the stream would then wait for one another."""
    clips = StreamClips(shards, 2, size=16, frames=3, stride=1)
    clips(0)
    samples = weakref.ref(clips._samples)
    gc.disable()
    try:
        del clips
        assert samples() is None
    finally:
        gc.enable()
