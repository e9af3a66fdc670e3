"""CLIP's tokenizer offline: folder, hub cache, pip package; and the error that names what was tried."""
import gzip
import sys

import pytest
from animkit import AnimkitError
from animkit.checkpoints import tokenizer as tokenizers
from animkit.checkpoints.tokenizer import clip_tokenizer
from transformers import CLIPTokenizer


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No hub cache, no pip package, no setting."""
    monkeypatch.setattr(tokenizers, "HUB", (("nobody/nothing-of-this-name", ""),))
    monkeypatch.setattr(tokenizers, "PACKAGES", (("no_such_package", "vocabulary.txt.gz"),))
    monkeypatch.delenv("ANIMKIT_TOKENIZER", raising=False)


def small():
    return CLIPTokenizer(vocab={"a": 0, "b</w>": 1, "ab</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4, "!": 5},
                         merges=[("a", "b</w>")], model_max_length=77)


def test_from_a_folder_and_from_a_pipeline_s_folder(nowhere, tmp_path, monkeypatch):
    small().save_pretrained(tmp_path / "tokenizer")
    for place in (tmp_path / "tokenizer", tmp_path):
        found = clip_tokenizer(place, pad_token="!")
        assert found("ab ab").input_ids == [3, 2, 2, 4] and found.pad_token == "!" and found.model_max_length == 77
    monkeypatch.setenv("ANIMKIT_TOKENIZER", str(tmp_path))
    assert clip_tokenizer()("ab").input_ids == [3, 2, 4]


def test_what_was_tried_is_said(nowhere, tmp_path):
    with pytest.raises(AnimkitError) as error:
        clip_tokenizer(tmp_path)
    said = str(error.value)
    for tried in (str(tmp_path), "the hub's cache of nobody/nothing-of-this-name", "the pip package no_such_package",
                  "pip install --no-deps open_clip_torch"):
        assert tried in said


def test_from_a_pip_package_that_is_not_imported(nowhere, tmp_path, monkeypatch):
    """A package with OpenAI's file: heading, then merges. Its code must not run."""
    package = tmp_path / "clip_like"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    with gzip.open(package / "bpe.txt.gz", "wt", encoding="utf-8") as f:
        f.write("\"bpe_simple_vocab_16e6.txt#version: 0.2\nc a\nca t</w>\no f</w>\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tokenizers, "PACKAGES", (("clip_like", "bpe.txt.gz"),))
    found = clip_tokenizer()
    assert "clip_like" not in sys.modules
    assert len(found) == 512 + 3 + 2
    # 256 bytes, 256 bytes that end a word, then the merges in the file's order, then the two marks
    assert found("a Cat OF a cat").input_ids == [515, 256 + _byte("a"), 513, 514, 256 + _byte("a"), 513, 516]
    padded = found("cat", padding="max_length", max_length=77, truncation=True).input_ids
    assert padded == [515, 513] + [516] * 75


def _byte(letter):
    return ord(letter) - ord("!")  # CLIP's order of bytes begins with the printable ones


@pytest.mark.skipif(all(__import__("importlib.util").util.find_spec(p) is None for p, _ in tokenizers.PACKAGES),
                    reason="neither open_clip nor clip is installed")
def test_the_real_vocabulary_gives_the_known_numbers(monkeypatch):
    monkeypatch.setattr(tokenizers, "HUB", ())
    found = clip_tokenizer()
    assert len(found) == 49408
    assert found("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert found("Pallas's cat, 4k!").input_ids[0] == 49406


def test_from_the_hub_s_cache_without_a_network(nowhere, tmp_path, monkeypatch):
    """The cache's own form: models--owner--name/refs/main and snapshots/<commit>/files."""
    import huggingface_hub.constants as hub
    cache = tmp_path / "hub" / "models--openai--clip-vit-large-patch14"
    small().save_pretrained(cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(tokenizers, "HUB", (("openai/clip-vit-large-patch14", ""),))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    if (
        tokenizers._in_cache("openai/clip-vit-large-patch14", "") is None
    ):  # some versions bind the path when they are imported
        import huggingface_hub.file_download as download
        monkeypatch.setattr(download, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
        if hasattr(download, "constants"):
            monkeypatch.setattr(download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert clip_tokenizer()("ab").input_ids == [3, 2, 4]


def test_a_damaged_tokenizer_is_not_replaced_by_an_empty_one(nowhere, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(AnimkitError, match="cannot be read"):
        clip_tokenizer(tmp_path)
