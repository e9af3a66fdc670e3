import json

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from animkit.data.batches import Batches
from animkit.data.images import Images
from animkit.data.tables import image_table, video_table
from animkit.data.video import to_rgb
from animkit.errors import AnimkitError


def pictures(folder, count=4, size=(24, 16)):
    for i in range(count):
        Image.new("RGB", size, (50 * i, 100, 0)).save(folder / f"{i}.png")


def test_a_png_with_too_long_a_text_inside_is_named(tmp_path):
    """As some programs write the whole graph of nodes that drew a picture; Pillow refuses it by a ValueError."""
    said = PngInfo()
    said.add_text("workflow", "x" * (2 << 20), zip=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png", pnginfo=said)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(AnimkitError, match="a.png cannot be read .*too large"):
        Images(tmp_path, size=16)[0]


def test_captions_from_csv_jsonl_or_files_beside(tmp_path):
    pictures(tmp_path, 2)
    rows = [{"file_name": "0.png", "text": "one, two"}, {"file_name": "1.png", "text": "three"}]
    (tmp_path / "metadata.csv").write_text('file_name,text\n0.png,"one, two"\n1.png,three\n')
    assert image_table(tmp_path)["caption"][:] == ["one, two", "three"]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "metadata.csv").touch()
    with pytest.raises(AnimkitError, match="both metadata.csv and metadata.jsonl: keep one"):
        image_table(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    assert image_table(tmp_path)["caption"][:] == ["one, two", "three"]
    (tmp_path / "metadata.jsonl").unlink()
    for row in rows:
        (tmp_path / row["file_name"]).with_suffix(".txt").write_text(row["text"] + "\n")
    assert image_table(tmp_path)["caption"][:] == ["one, two", "three"]


def test_what_a_mac_leaves_is_no_picture_and_a_linked_folder_is_entered(tmp_path):
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
        pictures(tmp_path / name, 1)
        (tmp_path / name / "0.txt").write_text(name)
    (tmp_path / "here" / "._0.png").write_bytes(b"of macOS")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "here")  # a loop: every picture once all the same
    assert image_table(tmp_path / "here")["caption"][:] == ["here", "elsewhere"]


def test_captions_of_a_spreadsheet_and_of_another_encoding(tmp_path):
    pictures(tmp_path, 1)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a caf\u00e9\n", encoding="utf-8-sig")  # Excel's
    assert image_table(tmp_path)["caption"][:] == ["a caf\u00e9"]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "0.txt").write_text("a caf\u00e9", encoding="latin-1")
    with pytest.raises(AnimkitError, match="0.txt is not text in UTF-8"):
        image_table(tmp_path)


def test_images_resized_cropped_and_in_batches(tmp_path):
    pictures(tmp_path)
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"c{i}")
    (tmp_path / "more").mkdir()
    (tmp_path / "3.png").rename(tmp_path / "more" / "3.PNG")
    (tmp_path / "3.txt").rename(tmp_path / "more" / "3.txt")
    images = Images(tmp_path, size=8)
    item = images[2]
    assert item["image"].shape == (3, 8, 8) and item["caption"] == "c2"
    assert torch.allclose(item["image"][:, 4, 4], torch.tensor([100, 100, 0]) / 127.5 - 1, atol=1e-6)
    batch = Batches(images, 3)(0)
    assert batch["image"].shape == (3, 3, 8, 8) and len(set(batch["index"])) == 3 and len(images) == 4
    assert Images(tmp_path, size=8).fingerprint() == images.fingerprint() != Images(tmp_path, size=9).fingerprint()


def test_crop_and_flip_are_drawn_anew_each_epoch_and_only_by_request(tmp_path):
    shades = np.arange(32, dtype=np.uint8)[None, :, None] * np.ones((16, 1, 3), np.uint8)  # column x has the shade x
    Image.fromarray(shades).save(tmp_path / "a.png")
    prints = set()

    def seen(**how):
        """The first and last column of each epoch's image."""
        images = Images(tmp_path, size=16, **how)
        prints.add(images.fingerprint())
        rows = [((images.get(0, epoch)["image"][0, 0] + 1) * 127.5).round() for epoch in range(12)]
        return [(int(row[0]), int(row[-1])) for row in rows]

    (tmp_path / "a.txt").write_text("a")
    assert set(seen()) == {(8, 23)} and set(seen(flip=True)) == {(8, 23), (23, 8)}
    cropped = seen(crop="random")
    assert len(set(cropped)) > 4 and {last - first for first, last in cropped} == {15}
    assert cropped == seen(crop="random") != seen(crop="random", seed=1)
    (tmp_path / "a.txt").write_text("b")
    seen()
    assert len(prints) == 5
    with pytest.raises(AnimkitError, match="crop is centre or random, got 'left'"):
        Images(tmp_path, crop="left")


def one_image(folder, image, name="a.png"):
    """A folder with this image alone, as Images; its pixels, 0 .. 255."""
    folder.mkdir(exist_ok=True)
    image.save(folder / name)
    (folder / "metadata.csv").write_text(f"file_name,text\n{name},a\n")
    images = Images(folder, size=image.size[::-1])
    return images, ((images[0]["image"] + 1) * 127.5).round().byte()


def test_an_image_overwritten_under_its_name_has_another_fingerprint(tmp_path):
    prints = [one_image(tmp_path, Image.new("RGB", (8, 8), colour))[0].fingerprint() for colour in ("red", "blue", "red")]
    assert prints[0] == prints[2] != prints[1]


def test_grey_of_16_bits_is_scaled(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    images, pixels = one_image(tmp_path / "16", Image.fromarray(values))
    assert pixels[:, 0].tolist() == [[0, 1, 128, 255]] * 3
    for mode, same in (("I", values.astype(np.int32)), ("I;16B", values.astype(">u2"))):  # as other Pillows and files have it
        deep = Image.frombytes(mode, (4, 1), same.tobytes())
        assert np.array_equal(np.asarray(to_rgb(deep))[..., 0], [[0, 1, 128, 255]])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white(mode, tmp_path):
    image, extra = Image.new("RGBA", (3, 1), (0, 0, 0, 255)), {}
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 51))
    if mode == "LA":
        image = image.convert("LA")
    if mode == "P":
        image = Image.new("P", (3, 1))
        image.putpalette([0, 0, 0] * 3)
        image.putdata([0, 1, 2])
        extra["transparency"] = bytes([255, 0, 51])
    if mode == "RGB":  # one colour stands for nothing
        image = Image.new("RGB", (3, 1), (0, 0, 0))
        image.putpixel((1, 0), (9, 9, 9))
        image.putpixel((2, 0), (204, 204, 204))
        extra["transparency"] = (9, 9, 9)
    image.save(tmp_path / "a.png", **extra)
    (tmp_path / "a.txt").write_text("a")
    images = Images(tmp_path, size=(1, 3))
    pixels = ((images[0]["image"] + 1) * 127.5).round().byte()
    assert pixels[:, 0].tolist() == [[0, 255, 204]] * 3


def test_an_image_larger_than_pillow_reads_is_named(tmp_path, monkeypatch):
    images, _ = one_image(tmp_path, Image.new("RGB", (20, 20)))
    before = images.fingerprint()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(AnimkitError, match="a.png cannot be read .*exceeds limit"):
        images[0]
    assert images.fingerprint() == before


def test_rows_of_metadata_that_cannot_be_meant(tmp_path):
    pictures(tmp_path, 2)

    def refused(text, why, name="metadata.csv"):
        (tmp_path / name).write_text(text)
        with pytest.raises(AnimkitError, match=why):
            image_table(tmp_path)
        (tmp_path / name).unlink()

    refused("file_name,text\n0.png,a red ball, bouncing\n1.png,b\n",
            'metadata.csv, line 2: 3 fields where the header has 2; put captions that hold a comma into "double quotes"')
    refused("file_name,text\n0.png,a\n1.png,b\n./0.png,c\n", "metadata.csv has more than one row for 0.png: keep one")
    refused("text,file_name\na\n", "metadata.csv has rows whose file_name is no text: None")
    rows = "".join(json.dumps({"file_name": name, "text": "a"}) + "\n" for name in ("0.png", 1, None, ["1.png"]))
    refused(rows, r"metadata.jsonl has rows whose file_name is no text: 1, None, \['1.png'\]", "metadata.jsonl")
    rows = '{"file_name": "0.png", "text": "a"}\n' * 2
    refused(rows, "metadata.jsonl has more than one row for 0.png", "metadata.jsonl")
    (tmp_path / "metadata.csv").mkdir()
    with pytest.raises(AnimkitError, match="metadata.csv cannot be read as a file"):
        image_table(tmp_path)


def test_faults_are_named(tmp_path):
    with pytest.raises(AnimkitError, match="no image in"):
        image_table(tmp_path)
    pictures(tmp_path, 3)
    (tmp_path / "1.txt").write_text("c")
    with pytest.raises(AnimkitError, match="2 of 3 images.*no caption: 0.png, 2.png"):
        image_table(tmp_path)
    (tmp_path / "metadata.csv").write_text("file,text\n0.png,a\n")
    with pytest.raises(AnimkitError, match="metadata.csv lacks the column file_name.*has file, text"):
        image_table(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,b\n2.png,c\n9.png,d\n")
    with pytest.raises(AnimkitError, match="not there: 9.png"):
        image_table(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,b\n2.png\n")
    with pytest.raises(AnimkitError, match="rows without a text: 2.png"):
        image_table(tmp_path)
    (tmp_path / "metadata.csv").rename(tmp_path / "metadata.jsonl")
    with pytest.raises(AnimkitError, match="metadata.jsonl is not one JSON object a line"):
        image_table(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("[1]\n")
    with pytest.raises(AnimkitError, match="lacks the columns file_name, text.*has none"):
        image_table(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "caption": "a"}\n')
    with pytest.raises(AnimkitError, match="lacks the column text"):
        image_table(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("c")
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(AnimkitError, match="1.png cannot be read"):
        Images(tmp_path, size=8)[1]
    for i in range(14):
        (tmp_path / f"{i}.mp4").touch()
    with pytest.raises(AnimkitError, match="no such folder"):
        video_table(tmp_path / "absent")
    with pytest.raises(AnimkitError, match="11 of 14 videos .* no caption: 10.mp4, .*, 8.mp4 and 1 more; write"):
        video_table(tmp_path)
