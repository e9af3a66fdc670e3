"""Clip, filmstrip, side_by_side: what is written can be read back, and a notebook shows it without running anything."""
import base64
import io
import json
import os
import re
import struct
from html.parser import HTMLParser

import av
import numpy as np
import PIL.Image
import pytest

from animkit.errors import AnimkitError
from animkit.show import Clip, filmstrip, side_by_side


def moving(f=6, h=16, w=24, fps=8, prompt="a red ball, rising", **settings):
    """Flat colours: a red square climbs over a blue to green ground."""
    frames = np.zeros((f, h, w, 3), np.uint8)
    frames[..., 2] = 160
    frames[:, h // 2:] = (40, 150, 60)
    for i in range(f):
        frames[i, h - 5 - i:h - 1 - i, 4:10] = (220, 40, 30)
    return Clip(frames, fps, prompt, settings)


def test_is_a_sequence_of_pictures_and_an_array():
    clip = moving(f=6, seed=3)
    assert len(clip) == 6 and np.asarray(clip).shape == (6, 16, 24, 3)
    assert isinstance(clip[0], PIL.Image.Image) and clip[0].size == (24, 16)
    assert np.array_equal(np.asarray(clip[-1]), clip.array[5])
    assert [np.asarray(p).tobytes() for p in clip] == [a.tobytes() for a in clip.array]
    part = clip[1:5][::2]
    assert isinstance(part, Clip) and np.array_equal(part.array, clip.array[[1, 3]])
    assert part.settings == {"seed": 3, "frames_kept": [1, 3]}  # still says which frames of which clip
    assert np.asarray(clip, dtype=np.float32).dtype == np.float32
    with pytest.raises(IndexError):
        clip[6]


def test_indexes_as_an_array():
    clip = moving(f=6)[1:]
    chosen = [clip[[0, 3]], clip[np.array([0, 3])], clip[np.array([True, False, False, True, False])]]
    assert all(isinstance(c, Clip) and np.array_equal(c.array, clip.array[[0, 3]]) for c in chosen)
    assert all(c.settings["frames_kept"] == [1, 4] for c in chosen)
    assert np.array_equal(np.asarray(clip[np.int64(2)]), clip.array[2])
    for index in (np.s_[:, 4:8], np.s_[0, 1, 2], np.s_[..., 0], None):
        assert np.array_equal(clip[index], clip.array[index])


def test_numbers_of_numpys_come_back_as_numbers(tmp_path):
    back = Clip.load(moving(seed=np.int64(3), guidance=np.float32(2.5)).save(tmp_path / "c.gif"))
    assert back.settings == {"seed": 3, "guidance": 2.5}


def test_takes_a_list_of_pictures():
    clip = moving()
    assert np.array_equal(Clip(list(clip)).array, clip.array)


@pytest.mark.parametrize("frames, said", [
    (np.zeros((2, 4, 4, 3)), "float64"),
    (np.zeros((2, 3, 4, 4), np.uint8), r"\(2, 3, 4, 4\)"),
    (np.zeros((4, 4, 3), np.uint8), r"\(4, 4, 3\)"),
    ([], r"\(0, 0, 0, 3\)"), (None, r"object of shape \(1,\)"),
])
def test_refuses_what_is_not_frames(frames, said):
    with pytest.raises(AnimkitError, match=said):
        Clip(frames)


def test_refuses_nonsense_elsewhere(tmp_path):
    clip = moving()
    for call, said in [
        (lambda: Clip(clip.array, fps=0), "fps"),
        (lambda: Clip(clip.array, fps=float("inf")), "fps is a number above 0; got inf"),
        (lambda: Clip(clip.array, fps="8"), "fps is a number above 0; got '8'"),
        (lambda: Clip(clip.array, fps=120).save(tmp_path / "a.gif"), "hundredths of a second, and this clip shows 120"),
        (lambda: clip[9:], "No frame"),
        (lambda: clip.save(tmp_path / "a.avi"), r"\.mp4, \.gif, \.webp"),
        (lambda: clip.save(tmp_path / "a.mp4", scale=0), "scale"),
        (lambda: Clip.load(tmp_path / "nothing.mp4"), "no clip at"),
        (lambda: filmstrip(clip, n=0), "n=0"),
        (lambda: side_by_side([]), "at least one"),
        (lambda: side_by_side([clip, clip], labels=["one"]), "2 clips"),
        (lambda: side_by_side([clip, moving(f=5)]), "6 at 8 fps, 5 at 8 fps"),
        (lambda: filmstrip(clip).save(tmp_path / "a.nothing"), "suffix"),
    ]:
        with pytest.raises(AnimkitError, match=said):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["c.webp", "frames", "frames/"])
@pytest.mark.parametrize("scale", [None, 1, 3])
def test_exact_formats_come_back_equal(tmp_path, name, scale):
    clip = moving(h=15, w=23, seed=3, guidance=7.5)
    path = clip.save(f"{tmp_path}/{name}", scale=scale)
    back = Clip.load(path)
    assert np.array_equal(back.array, clip.array)
    assert (back.fps, back.prompt, back.settings) == (clip.fps, clip.prompt, clip.settings)


@pytest.mark.parametrize("name, mean, worst", [("c.mp4", 2, 12), ("c.gif", 1, 8)])
def test_other_formats_come_back_nearly_equal(tmp_path, name, mean, worst):
    clip = moving(h=15, w=23, seed=3)  # odd sizes too
    back = Clip.load(clip.save(tmp_path / name))
    error = np.abs(back.array.astype(int) - clip.array)
    assert back.array.shape == clip.array.shape and error.mean() < mean and error.max() < worst
    assert (back.fps, back.prompt, back.settings) == (clip.fps, clip.prompt, clip.settings)


@pytest.mark.parametrize("name", ["c.gif", "c.webp"])
def test_frames_that_stand_still_are_kept(tmp_path, name):
    still = Clip(moving().array[[0, 0, 0, 1, 1, 2]])
    assert len(Clip.load(still.save(tmp_path / name))) == 6


@pytest.mark.parametrize("fps", [8, 24, 60, 90])
@pytest.mark.parametrize("name", ["c.gif", "c.webp"])
def test_a_picture_that_stands_long_has_as_many_frames_as_it_had(tmp_path, name, fps):
    """Files count in whole milliseconds, a GIF in tens of them; what each frame loses by that must not add up to frames."""
    clip = Clip(moving(f=2, h=8, w=8).array[[0] * 63 + [1, 0]], fps)
    back = Clip.load(clip.save(tmp_path / name))
    assert len(back) == 65 and np.array_equal(back.array, clip.array)


def test_a_gif_plays_as_fast_as_a_gif_can(tmp_path):
    for fps, milliseconds in ((8, 120), (30, 30), (60, 20), (100, 10)):
        with PIL.Image.open(moving(fps=fps).save(tmp_path / "c.gif")) as film:
            assert film.info["duration"] == milliseconds


@pytest.mark.parametrize("side", [128, 512])
def test_a_film_that_another_program_resized_is_read_whole(tmp_path, side):
    """Such programs copy our note, which then speaks of another size."""
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, None, :, None], 64, axis=1).repeat(3, axis=-1)
    with (av.open(str(Clip(ramp, prompt="a ramp").save(tmp_path / "c.mp4"))) as film,
          av.open(str(tmp_path / "resized.mp4"), "w") as other):
        other.metadata.update(film.metadata)
        stream = other.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for frame in film.decode(video=0):
            other.mux(stream.encode(frame.reformat(width=side, height=side)))
        other.mux(stream.encode())
    back = Clip.load(tmp_path / "resized.mp4")
    assert back.array.shape == (1, side, side, 3) and back.prompt == "a ramp"
    assert back.array[0, :, -1].mean() > 240, "its right edge is lost"


@pytest.mark.parametrize("fps", [4, 8, 24, 30])
@pytest.mark.parametrize("name, count", [("c.gif", 16), ("c.webp", 16), ("c.webp", 1), ("c.gif", 1)])
def test_one_picture_repeated_is_as_long_as_it_was(tmp_path, name, count, fps):
    still = Clip(moving().array[[0] * count], fps)
    back = Clip.load(still.save(tmp_path / name))
    assert len(back) == count and back.fps == fps
    if name.endswith("webp"):
        assert np.array_equal(back.array, still.array)


def test_a_folder_of_more_frames_than_files_may_be_open_is_read(tmp_path):
    resource = pytest.importorskip("resource")
    many = Clip(np.repeat(moving(f=1, h=4, w=4).array, 120, axis=0))
    many.save(tmp_path / "many")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
        assert len(Clip.load(tmp_path / "many")) == 120
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_frames_through_a_link_go_where_it_points(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "frames").symlink_to(tmp_path / "disk")
    assert moving(f=4).save(tmp_path / "frames") == tmp_path / "frames"
    assert (tmp_path / "frames").is_symlink() and len(list((tmp_path / "disk").iterdir())) == 4
    moving(f=3).save(tmp_path / "frames")
    assert len(Clip.load(tmp_path / "frames")) == 3 and {p.name for p in tmp_path.iterdir()} == {"disk", "frames"}


def test_frames_of_others_are_never_replaced(tmp_path):
    """ffmpeg, too, names them frame_0001.png."""
    folder = tmp_path / "frames"
    moving(f=4).save(folder)
    for name, content in (("frame_0004.png", None), ("frame_0004.png", b"no picture"), ("frame_0004.txt", b"")):
        other = folder / name
        PIL.Image.new("RGB", (8, 8)).save(other) if content is None else other.write_bytes(content)
        with pytest.raises(AnimkitError, match="not a folder of a clip's frames"):
            moving(f=3).save(folder)
        assert len(list(folder.iterdir())) == 5
        other.unlink()
    assert len(Clip.load(moving(f=3).save(folder))) == 3


def test_new_frames_that_cannot_take_their_place_leave_the_old(tmp_path, monkeypatch):
    moving(f=4).save(tmp_path / "frames")
    replace, asked = os.replace, []

    def second_fails(*args):
        asked.append(args)
        if len(asked) == 2:
            raise OSError(28, "No space left on device")
        return replace(*args)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(AnimkitError, match="could not write .*frames: No space left on device"):
        moving(f=3).save(tmp_path / "frames")
    assert len(Clip.load(tmp_path / "frames")) == 4 and [p.name for p in tmp_path.iterdir()] == ["frames"]


def test_pictures_of_several_sizes_are_no_clip():
    with pytest.raises(AnimkitError, match=r"one shape; these have \(4, 4, 3\), \(5, 4, 3\)"):
        Clip([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)])


def test_labels_may_be_numbers(tmp_path):
    pair = [moving(), moving()]
    assert side_by_side(pair, labels=[0.0, 0.5]).settings["labels"] == ["0.0", "0.5"]
    assert "0.0, 0.5" in filmstrip(pair, labels=(0.0, 0.5)).alt


def test_film_is_what_browsers_play(tmp_path):
    clip = moving(h=15, w=23)
    with av.open(str(clip.save(tmp_path / "c.mp4"))) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
        assert stream.height % 2 == 0 and stream.width % 2 == 0 and stream.width >= 256
        assert float(stream.average_rate) == 8 and stream.frames == 6


def test_a_film_of_another_hand_is_read(tmp_path):
    """Nothing of ours in the file: size, speed and colours are the film's own; decord reads ours likewise."""
    path = tmp_path / "other.mp4"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=12, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for value in (30, 90, 150):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), format="rgb24")))
        film.mux(stream.encode())
    clip = Clip.load(path)
    assert clip.array.shape == (3, 32, 32, 3) and clip.fps == 12 and clip.prompt == "other"
    assert np.abs(clip.array.mean((1, 2, 3)) - [30, 90, 150]).max() < 3
    assert Clip.load(path, fps=5).fps == 5


def test_a_film_is_turned_as_the_phone_was_held(tmp_path):
    """Its frames lie on their side in the file, and the header of the track says so."""
    path = Clip(np.repeat(moving(f=1).array, 3, 0)).save(tmp_path / "c.mp4")
    upright, data = Clip.load(path).array, path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # the matrix, 9 numbers of 4 bytes
    quarter = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + quarter + data[at + 36:])
    turned = Clip.load(path).array  # at its film's size: the note in it knows nothing of the turn
    k = moving().enlargement
    assert np.array_equal(turned[:, k // 2::k, k // 2::k], np.rot90(upright, -1, (1, 2)))


@pytest.mark.parametrize("name", ["c.png", "c.gif", "c.webp", "folder/c.png"])
def test_what_is_transparent_lies_on_white(tmp_path, name):
    """As in all pictures that the kit reads (data.video.to_rgb); Pillow alone shows the colour that nobody saw."""
    (tmp_path / "folder").mkdir()
    picture = PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    picture.paste((200, 40, 40, 255), (0, 0, 4, 8))
    picture.save(tmp_path / name, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    seen = Clip.load(tmp_path / name.removesuffix("/c.png")).array[0]
    assert (seen[:, 4:] == 255).all() and np.abs(seen[:, :4].astype(int) - [200, 40, 40]).max() < 4


def test_decord_reads_our_films(tmp_path):
    decord = pytest.importorskip("decord")
    clip = moving()
    film = decord.VideoReader(str(clip.save(tmp_path / "c.mp4")))
    k = clip.enlargement
    seen = film.get_batch(range(len(film))).asnumpy()[:, k // 2::k, k // 2::k][:, :16, :24]
    assert np.abs(seen.astype(int) - clip.array).mean() < 3


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"not a film at all")
    (tmp_path / "bad.gif").write_bytes(b"GIF89a")
    (tmp_path / "empty").mkdir()
    for name in ("bad.mp4", "bad.gif", "empty"):
        with pytest.raises(AnimkitError, match=name):
            Clip.load(tmp_path / name)


def test_saving_replaces_the_old_and_leaves_no_scraps(tmp_path):
    for name in ("c.mp4", "c.gif", "c.webp", "frames"):
        moving(f=6).save(tmp_path / name)
        moving(f=3).save(tmp_path / name)
        assert len(Clip.load(tmp_path / name)) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"c.mp4", "c.gif", "c.webp", "frames"}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("dear")
    with pytest.raises(AnimkitError, match="thesis"):
        moving().save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "dear"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found[tag] = dict(attrs)


def data(uri, kind):
    head, _, content = uri.partition(",")
    assert head == f"data:{kind};base64"
    return io.BytesIO(base64.b64decode(content))


def test_notebook_shows_film_strip_and_words():
    clip = moving(prompt='a "red" <ball> & more', seed=3)
    html = clip._repr_html_()
    tags = Tags(html).found
    video, strip = tags["video"], tags["img"]
    assert {"controls", "loop", "muted", "playsinline"} <= set(video) and "autoplay" not in video
    assert "source" not in tags and "script" not in tags and "style" not in tags  # an untrusted notebook drops these
    assert clip.prompt in video["aria-label"] and clip.prompt in strip["alt"]  # escaped and back
    assert "<ball>" not in html
    with av.open(data(video["src"], "video/mp4")) as film:
        assert len(list(film.decode(video=0))) == len(clip)
    assert PIL.Image.open(data(strip["src"], "image/png")).width > 0
    bundle = clip._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"} and "6 frames" in bundle["text/plain"] and "seed 3" in repr(clip)


def test_a_film_may_be_shorter_where_pages_are_long():
    noise = Clip(np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), np.uint8), prompt="noise")
    best = len(noise.encode(".mp4"))
    noise.crf = 28
    assert len(noise.encode(".mp4")) < 0.6 * best
    strip = Tags(noise._repr_html_()).found["img"]
    assert PIL.Image.open(data(strip["src"], "image/webp")).size[0] > 256, "stills of full-sized frames are not lossless"


def test_settings_travel_in_the_film_as_json(tmp_path):
    clip = moving(prompt="ein Bär, größer", seed=3, alpha={"ink": 0.8})
    with av.open(str(clip.save(tmp_path / "c.mp4"))) as film:
        note = json.loads(re.sub("^animkit ", "", film.metadata["comment"]))
    assert note["prompt"] == "ein Bär, größer" and note["settings"] == {"seed": 3, "alpha": {"ink": 0.8}}


def test_filmstrip_takes_frames_from_first_to_last():
    clip = moving(f=6)
    strip = filmstrip(clip, n=3)
    k = clip.enlargement // 2
    pixels = np.asarray(strip)
    assert pixels.shape[0] == 16 * k and pixels.shape[1] == 3 * 24 * k + 2 * 4
    for place, i in enumerate([0, 2, 5]):
        left = place * (24 * k + 4)
        assert np.array_equal(pixels[k // 2::k, left + k // 2:left + 24 * k:k], clip.array[i])
    assert filmstrip(clip, n=50).size == filmstrip(clip, n=6).size
    two = filmstrip([clip, clip], n=3, labels=["base", "ink"])
    assert two.size[0] == strip.size[0] and two.size[1] > 2 * strip.size[1] and "base, ink" in two.alt
    assert 'alt="Filmstrip' in two._repr_html_()


def test_side_by_side_plays_clips_together(tmp_path):
    one, two = moving(seed=1), moving(seed=2)
    both = side_by_side([one, two], labels=["base", "ink"])
    k = one.enlargement
    assert len(both) == 6 and both.fps == 8 and both.array.shape[2] == 2 * 24 * k + 4
    band = both.array.shape[1] - 16 * k
    assert band > 0 and (both.array[:, :band] < 128).any()  # a label is drawn there
    assert np.array_equal(both.array[:, band + k // 2::k, k // 2:24 * k:k], one.array)
    assert [s["seed"] for s in both.settings["side_by_side"]] == [1, 2]
    assert "base, ink" in both.alt and both.prompt.startswith("a red ball")
    plain = side_by_side([one, two])
    assert plain.array.shape[1] == 16 * k
    assert side_by_side([one] * 5, columns=2).array.shape[1:3] == (3 * 16 * k + 8, 2 * 24 * k + 4)
    assert np.array_equal(Clip.load(both.save(tmp_path / "b.webp")).array, both.array)


def test_frames_that_cannot_go_where_they_should_are_one_sentence(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(AnimkitError, match="could not write .*file/frames"):
        Clip(np.zeros((2, 8, 8, 3), np.uint8)).save(tmp_path / "file" / "frames")


@pytest.mark.parametrize("suffix, fps", [(".mp4", np.float32(8)), (".gif", np.float64(12.5)), (".webp", np.int64(24)), (".webp", 120)])
def test_numbers_of_numpy_and_high_rates_are_kept(tmp_path, suffix, fps):
    back = Clip.load(Clip(moving().array, fps=fps).save(tmp_path / f"a{suffix}"))
    assert len(back) == 6 and back.fps == float(fps)
