import csv
import os
import struct
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset

from animkit.data import camera
from animkit.data.batches import Batches, epoch_order
from animkit.data.tables import webvid_table
from animkit.data.video import _decord, _pyav, Skipped
from animkit.data.video_clips import VideoClips
from animkit.errors import AnimkitError


@pytest.fixture(scope="module")
def folder(videos, tmp_path_factory):
    """Twelve videos of 24 frames; the left half of each is a shade darker, by its number."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(12):
        videos.write(folder / f"{i:02}.mp4", 24, size=(32, 64), tint=0)
    return folder


def test_frames_at_the_stride_resized_and_cropped(videos, folder):
    clips = VideoClips(folder, size=16, frames=4, stride=3, start="first", dtype=torch.uint8)
    clip = clips[0]
    assert clip["video"].shape == (3, 4, 16, 16) and clip["video"].dtype == torch.uint8
    assert videos.numbers(clip["video"]) == [0, 3, 6, 9] and clip["caption"] == "" and len(clips) == 12
    floats = VideoClips(folder, size=(16, 24), frames=4, stride=3, start="first")[0]["video"]
    assert floats.shape == (3, 4, 16, 24) and floats.dtype == torch.float32
    assert -1 <= floats.min() and floats.max() <= 1 and videos.numbers(floats) == [0, 3, 6, 9]


def test_a_clip_is_a_function_of_seed_epoch_and_index(videos, folder):
    def make(seed=0):
        return VideoClips(folder, size=16, frames=4, stride=2, crop="random", seed=seed, dtype=torch.uint8)
    a, b = make(), make()
    order = [3, 0, 3, 7]
    assert all(torch.equal(a[i]["video"], b[i]["video"]) for i in order)
    starts = lambda clips, epoch=0: [videos.numbers(clips.get(i, epoch)["video"])[0] for i in range(12)]  # noqa: E731
    assert starts(a) == starts(b) and len(set(starts(a))) > 3
    assert starts(a) != starts(a, 1) and starts(a) != starts(make(seed=1))
    assert max(starts(a)) + 3 * 2 < 24  # no clip runs over the end
    assert set(starts(VideoClips(folder, size=16, frames=23, stride=1, dtype=torch.uint8))) == {0, 1}  # nor ends too soon
    assert [clip["index"] for clip in a] == list(range(12))


def test_random_crop_moves_and_flip_is_only_by_request(videos, tmp_path):
    for i in range(8):
        videos.write(tmp_path / f"{i}.mp4", 12, size=(32, 64), tint=60)  # from frame 6 on the left half is darker
    plain = VideoClips(tmp_path, size=32, frames=12, stride=1, start="first", crop="centre", dtype=torch.uint8)
    late = lambda clips, i, e=0: clips.get(i, e)["video"][:, -1].float()  # noqa: E731
    assert all(late(plain, i)[..., :12].mean() < late(plain, i)[..., -12:].mean() - 30 for i in range(8))
    flipped = VideoClips(tmp_path, size=32, frames=12, stride=1, start="first", flip=True, dtype=torch.uint8)
    turned = [bool(late(flipped, i)[..., :12].mean() > late(flipped, i)[..., -12:].mean() + 30) for i in range(8)]
    assert 0 < sum(turned) < 8
    moved = VideoClips(tmp_path, size=32, frames=12, stride=1, start="first", crop="random", dtype=torch.uint8)
    assert len({tuple(late(moved, i)[0, 16].round().tolist()) for i in range(8)}) > 3
    for one, other in (("pan left", "pan right"), ("roll clockwise", "roll anticlockwise")):
        with pytest.raises(AnimkitError, match=f"'{one}' into '{other}'"):
            VideoClips(tmp_path, shot=one, flip=True)


def test_a_shot_type_is_the_camera_rule_on_the_full_frames(folder):
    plain = VideoClips(folder, size=(32, 64), frames=6, stride=2, start="first", dtype=torch.uint8)[2]["video"]
    zoomed = VideoClips(folder, size=24, frames=6, stride=2, start="first", shot="zoom-in", amount=0.4,
                        dtype=torch.uint8)
    assert torch.equal(zoomed[2]["video"], camera.apply(plain, camera.crop_path("zoom in", 6, 0.4), 24))
    drawn = VideoClips(folder, size=24, frames=6, stride=2, shot="roll clockwise", amount=(0.1, 0.5))
    assert drawn[0]["video"].shape == (3, 6, 24, 24) and torch.equal(drawn[0]["video"], drawn[0]["video"])


def test_decord_and_pyav_read_the_same(folder):
    (n, get), (m, get_too) = _decord(folder / "00.mp4"), _pyav(folder / "00.mp4")
    assert n == m == 24 and np.abs(get([0, 7, 20]).astype(int) - get_too([0, 7, 20])).max() <= 3


@pytest.mark.parametrize("turned, matrix", [(0, (1, 0, 0, 1)), (90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)),
                                            (270, (0, -1, 1, 0))])
def test_pyav_turns_frames_as_decord_does(turned, matrix, videos, tmp_path):
    """What a phone films upright lies on its side, and the header of its track says so."""
    pyav_reads = tmp_path / "a.mp4"
    size = (64, 64) if turned in (0, 180) else (64, 128)
    data = videos.write(pyav_reads, 9, size=size, tint=60).read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # of version 0: the matrix, 9 numbers of 4 bytes
    a, b, c, d = (number * 65536 for number in matrix)
    assert data[at:at + 36] == struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    pyav_reads.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36:])
    (_, get), (_, get_too) = _decord(pyav_reads), _pyav(pyav_reads)
    one, two = get([6, 8]), get_too([6, 8])
    assert one.shape == two.shape and np.abs(one.astype(int) - two).max() <= 3
    h, w = two.shape[1:3]
    dark = {0: two[:, :, :w // 2], 90: two[:, :h // 2], 180: two[:, :, w // 2:], 270: two[:, h // 2:]}  # the left was
    assert dark[turned].mean() < two.mean() - 20


def test_what_decord_refuses_is_read_by_pyav(videos, tmp_path, monkeypatch):
    videos.write(tmp_path / "a.mp4", 8, size=(32, 48))  # a width that makes decord fail (its issue 336)
    assert videos.numbers(VideoClips(tmp_path, size=16, frames=3, stride=2, start="first")[0]["video"]) == [0, 2, 4]
    monkeypatch.setitem(sys.modules, "decord", None)  # as where it is not installed
    videos.write(tmp_path / "b.mp4", 8, size=(32, 64))
    assert videos.numbers(VideoClips(tmp_path, size=16, frames=3, stride=2, start="first")[1]["video"]) == [0, 2, 4]


def test_pyav_keeps_only_the_frames_asked_for(videos, tmp_path, monkeypatch):
    """All frames of ten minutes of 1080p, in RGB, are 112 GB: a damaged video would end the run without a word."""
    kept, turn = [], np.rot90
    monkeypatch.setattr(np, "rot90", lambda picture, times: kept.append(1) or turn(picture, times))
    for source in (path := videos.write(tmp_path / "a.mp4", 40, size=(32, 64)), path.read_bytes()):
        length, get = _pyav(source)
        assert length == 40 and not kept
        assert videos.numbers(torch.from_numpy(get(range(3, 10, 3))).permute(3, 0, 1, 2)) == [3, 6, 9] and len(kept) == 3
        kept.clear()


def spoil(videos, folder, count):
    """Put up to three bad videos, each bad in its own way, at the front of the folder."""
    (folder / "00_junk.mp4").write_bytes(b"this is no video" * 50)
    if count > 1:
        videos.write(folder / "00_short.mp4", 5, size=(32, 64))
    if count > 2:
        videos.write(folder / "00_zero.mp4", 0, size=(32, 64))


def test_bad_videos_are_skipped_counted_and_named(videos, tmp_path, capsys):
    for i in range(28):
        videos.write(tmp_path / f"good{i:02}.mp4", 12, size=(32, 64))
    spoil(videos, tmp_path, 3)
    clips = VideoClips(tmp_path, size=16, frames=4, stride=3)  # 3 of 31 are bad: under a tenth
    seen = [clips[i] for i in range(31)]
    assert len(clips.skipped) == 3 and [c["index"] for c in seen[:4]] == [3, 3, 3, 3] and seen[30]["index"] == 30
    assert [c["index"] for c in [clips.get(0, 1)]] == [3]  # a second epoch counts nothing twice
    text = str(clips.skipped)
    assert "3 of 31 videos" in text and "00_junk.mp4: unreadable" in text
    assert "00_short.mp4: 5 frames, 10 needed (4 at stride 3)" in text and "00_zero.mp4: no frames" in text
    assert "00_short.mp4: 5 frames" not in capsys.readouterr().err  # other tests' datasets may be told of at any time
    del clips
    assert "00_short.mp4: 5 frames" in capsys.readouterr().err  # the end: named without anyone asking


def test_over_a_tenth_stops_the_run_with_the_list(videos, tmp_path):
    for i in range(10):
        videos.write(tmp_path / f"good{i}.mp4", 12, size=(32, 64))
    spoil(videos, tmp_path, 2)
    clips = VideoClips(tmp_path, size=16, frames=4, stride=3)
    with pytest.raises(AnimkitError, match="over 10%(.|\n)*00_junk.mp4(.|\n)*00_short.mp4"):
        for i in range(12):
            clips[i]


def test_a_large_bad_set_stops_early():
    skipped = Skipped(total=1_000_000)
    with pytest.raises(AnimkitError, match="over 10%"):
        for i in range(100_000):
            skipped.note(str(i), "unreadable" if i % 5 == 0 else None)
    assert skipped.tried <= 5_100


def test_of_very_many_bad_videos_the_error_counts_the_reasons_and_names_some(capsys):
    """It is the last to be printed: the others stand above it, once."""
    skipped = Skipped(total=30_000)
    with pytest.raises(AnimkitError) as stopped:
        for i in range(30_000):
            skipped.note(f"{i:05}.mp4", "unreadable" if i == 7 else "no such file")
    told = str(stopped.value)
    assert told.startswith("over 10% of the videos cannot be used (1000 no such file, 1 unreadable), so this run stops.")
    assert "  00019.mp4: no such file\n  and 981 more, all named above" in told and "00020.mp4" not in told
    skipped.report()
    assert capsys.readouterr().err.count("00900.mp4: no such file") == 1


def test_a_few_bad_videos_at_the_beginning_do_not_stop_a_good_set():
    skipped = Skipped(total=1000)
    for i in range(1000):
        skipped.note(str(i), "unreadable" if i < 100 else None)
    with pytest.raises(AnimkitError, match="over 10%"):
        skipped.note("one more", "unreadable")


def webvid(folder, rows, columns=("videoid", "name", "page_dir")):
    path = folder / "table.csv"
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([columns, *rows])
    return path


def test_webvid_table(videos, tmp_path):
    videos.write(tmp_path / "v" / "007.mp4", 8, size=(32, 64))
    videos.write(tmp_path / "v" / "p1" / "12.mp4", 8, size=(32, 64))
    path = webvid(tmp_path, [("007", "A boat, at sea", "p9"), ("12", "null", "p1")])
    clips = VideoClips(path, videos=tmp_path / "v", size=16, frames=2, stride=2)
    assert [clips[i]["caption"] for i in (0, 1)] == ["A boat, at sea", "null"]  # 007 kept its zeros, "null" is a word
    assert len(clips.skipped) == 0 and clips.table.column_names == ["videoid", "caption", "page_dir"]
    from_dataset = VideoClips(clips.table, videos=tmp_path / "v", size=16, frames=2)  # one that was filtered, maybe
    assert from_dataset[1]["index"] == 1
    extra = webvid(tmp_path, [("1", "x", "d", "u")], ("videoid", "name", "page_dir", "contentUrl"))
    assert webvid_table(extra)[0]["caption"] == "x"


def test_a_folder_may_be_named_like_a_pattern(videos, tmp_path):
    folder = tmp_path / "clips [2024]*"
    folder.mkdir()
    videos.write(folder / "1.mp4", 8, size=(32, 64))
    (folder / "[a].csv").write_text("videoid,name,page_dir\n1,a boat,\n")
    assert VideoClips(folder / "[a].csv", size=16, frames=2, stride=2)[0]["caption"] == "a boat"
    (tmp_path / "x::y").mkdir()
    with pytest.raises(AnimkitError, match="table.csv cannot be read as a table"):  # datasets takes :: for an address
        webvid_table(webvid(tmp_path / "x::y", [("1", "a", "")]))


def test_webvid_faults(tmp_path):
    path = webvid(tmp_path, [("1", "a")], ("videoid", "caption"))
    with pytest.raises(AnimkitError, match="table.csv lacks the columns name, page_dir: its first line must.*has videoid, caption"):
        VideoClips(path)
    with pytest.raises(AnimkitError, match="no row"):
        VideoClips(webvid(tmp_path, []))
    with pytest.raises(AnimkitError, match="no such table"):
        VideoClips(tmp_path / "nothing.csv")
    with pytest.raises(AnimkitError, match="no such folder of videos"):
        VideoClips(webvid(tmp_path, [("1", "a", "")]), videos=tmp_path / "absent")
    with pytest.raises(AnimkitError, match="needs the columns video and caption; this one has text"):
        VideoClips(Dataset.from_dict({"text": ["a"]}))
    missing = VideoClips(webvid(tmp_path, [("1", "a", "")]), size=8)
    with pytest.raises(AnimkitError, match="no such file"):
        missing[0]


def test_settings_that_make_no_sense(folder):
    for wrong in ({"frames": 0}, {"stride": 0}, {"crop": "left"}, {"start": "last"}, {"shot": "spin"},
                  {"shot": "zoom in", "crop": "random"}, {"size": 0}):
        with pytest.raises(AnimkitError):
            VideoClips(folder, **wrong)
    (folder / "empty").mkdir()
    with pytest.raises(AnimkitError, match="no video in"):
        VideoClips(folder / "empty")


def test_batches_hold_every_clip_once_an_epoch_and_resume_anywhere(folder):
    clips = VideoClips(folder, size=8, frames=2, stride=2, dtype=torch.uint8)
    batches = Batches(clips, 5, seed=3)
    steps = [batches(k) for k in range(12)]  # 60 clips: five epochs of 12
    order = [i for step in steps for i in step["index"]]
    assert steps[0]["video"].shape == (5, 3, 2, 8, 8) and len(steps[0]["caption"]) == 5
    assert all(sorted(order[e:e + 12]) == list(range(12)) for e in range(0, 60, 12)) and order[:12] != order[12:24]
    resumed = Batches(VideoClips(folder, size=8, frames=2, stride=2, dtype=torch.uint8), 5, seed=3, workers=2)(7)
    assert torch.equal(resumed["video"], steps[7]["video"]) and resumed["index"] == steps[7]["index"]
    assert (epoch_order(12, 3, 0) != epoch_order(12, 4, 0)).any()


def test_two_processes_see_what_one_sees_with_twice_the_batch(folder, monkeypatch):
    clips = VideoClips(folder, size=8, frames=2, stride=2)
    whole = Batches(clips, 4).rows(3)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr("animkit.data.batches.rank_and_world", lambda rank=rank: (rank, 2))
        halves += Batches(clips, 2).rows(3)
    assert halves == whole


def test_fingerprint_tells_settings_and_files_apart(videos, folder, tmp_path):
    one = lambda **k: VideoClips(folder, frames=2, **k).fingerprint()  # noqa: E731
    assert one() == one() and len({one(), one(size=8), one(seed=1), one(shot="pan left"), one(stride=1)}) == 5
    videos.write(tmp_path / "a.mp4", 8)
    before = VideoClips(tmp_path, frames=2).fingerprint()
    videos.write(tmp_path / "a.mp4", 9)
    prints = {before, VideoClips(tmp_path, frames=2).fingerprint()}
    (tmp_path / "a.txt").write_text("a boat")
    prints.add(VideoClips(tmp_path, frames=2).fingerprint())
    os.utime(tmp_path / "a.mp4", (0, 0))
    assert len({*prints, VideoClips(tmp_path, frames=2).fingerprint()}) == 4


def test_tables_that_end_amiss_are_one_clear_error(tmp_path):
    table, header = tmp_path / "table.csv", "videoid,name,page_dir\n"

    def refused(text, why):
        table.write_text(text)
        with pytest.raises(AnimkitError, match=why):
            webvid_table(table)

    refused(header + '1,a,b\n2,a,"b\n', r'table.csv, line 3: a quotation mark \("\) opens here that is never closed')
    refused(header + '1,a,b\n2,"a,b\n3,c,d', r'table.csv, line 3: a quotation mark \("\) opens here that is never closed')
    refused(header + '1,"a,b\n' + "2,c,d\n" * 30_000, "table.csv, line 2: field larger than field limit")
    refused(header + "\n\n", "table.csv has its header but no row")
    refused("", "table.csv lacks the columns")
    table.write_text(header + '\n1,"a\nb",c\n\nend,end,"end"')
    assert webvid_table(table)["caption"][:] == ["a\nb", "end"]
    table.unlink()
    table.mkdir()
    with pytest.raises(AnimkitError, match="table.csv cannot be read as a file"):
        webvid_table(table)


def test_a_table_of_a_spreadsheet_and_of_another_encoding(tmp_path):
    text = "videoid,name,page_dir\n1,a caf\u00e9,b\n"
    (tmp_path / "table.csv").write_text(text, encoding="utf-8-sig")  # as Excel saves it
    assert webvid_table(tmp_path / "table.csv")[0] == {"videoid": "1", "caption": "a caf\u00e9", "page_dir": "b"}
    (tmp_path / "table.csv").write_text(text, encoding="latin-1")
    with pytest.raises(AnimkitError, match="table.csv is not text in UTF-8"):
        webvid_table(tmp_path / "table.csv")


def test_a_broken_csv_is_one_clear_error(tmp_path):
    (tmp_path / "table.csv").write_text('videoid,name,page_dir\n1,a,b\n2,a boat, at sea,b\n')
    with pytest.raises(AnimkitError, match="table.csv, line 3: 4 fields where the header has 3"):
        webvid_table(tmp_path / "table.csv")
