import json

import pytest
import torch
from PIL import Image

from animkit.data.batches import Batches
from animkit.data.images import Images
from animkit.data.tables import image_table, video_table
from animkit.errors import AnimkitError


def pictures(folder, count=4, size=(24, 16)):
    for i in range(count):
        Image.new("RGB", size, (50 * i, 100, 0)).save(folder / f"{i}.png")


def test_captions_from_csv_jsonl_or_files_beside(tmp_path):
    pictures(tmp_path, 2)
    rows = [{"file_name": "0.png", "text": "one, two"}, {"file_name": "1.png", "text": "three"}]
    (tmp_path / "metadata.csv").write_text('file_name,text\n0.png,"one, two"\n1.png,three\n')
    assert image_table(tmp_path)["caption"][:] == ["one, two", "three"]
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert image_table(tmp_path)["caption"][:] == ["one, two", "three"]
    (tmp_path / "metadata.jsonl").unlink()
    for row in rows:
        (tmp_path / row["file_name"]).with_suffix(".txt").write_text(row["text"] + "\n")
    assert image_table(tmp_path)["caption"][:] == ["one, two", "three"]


def test_captions_of_a_spreadsheet_and_of_another_encoding(tmp_path):
    pictures(tmp_path, 1)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a caf\u00e9\n", encoding="utf-8-sig")  # Excel's
    assert image_table(tmp_path)["caption"][:] == ["a caf\u00e9"]
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a caf\u00e9\n", encoding="latin-1")
    with pytest.raises(AnimkitError, match="metadata.csv is not text in UTF-8"):
        image_table(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "0.txt").write_text("a caf\u00e9", encoding="latin-1")
    with pytest.raises(AnimkitError, match="0.txt is not text in UTF-8"):
        image_table(tmp_path)


def test_images_resized_cropped_and_in_batches(tmp_path):
    pictures(tmp_path)
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"c{i}")
    images = Images(tmp_path, size=8)
    item = images[2]
    assert item["image"].shape == (3, 8, 8) and item["caption"] == "c2"
    assert torch.allclose(item["image"][:, 4, 4], torch.tensor([100, 100, 0]) / 127.5 - 1, atol=1e-6)
    batch = Batches(images, 3)(0)
    assert batch["image"].shape == (3, 3, 8, 8) and len(set(batch["index"])) == 3
    assert Images(tmp_path, size=8).fingerprint() == images.fingerprint() != Images(tmp_path, size=9).fingerprint()


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
    with pytest.raises(AnimkitError, match="no such folder"):
        video_table(tmp_path / "absent")
