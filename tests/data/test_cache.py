import json
import multiprocessing
import os
import threading
import time

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from animkit.data import cache
from animkit.data.batches import Batches, TensorClips
from animkit.data.cache import TextCache, LatentCache, cache_latents, cache_text, encode
from animkit.data.images import Images
from animkit.data.video_clips import VideoClips
from animkit.errors import AnimkitError


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                         up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
                         scaling_factor=0.5, shift_factor=0.25)


@pytest.fixture
def clips():
    video = torch.randint(0, 256, (5, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TensorClips(video, [f"clip {i}" for i in range(5)])


class Counting(nn.Module):
    """A model that counts how often it is asked."""
    def __init__(self, model, name):
        super().__init__()
        self.model, self.config, self.calls, self.name = model, model.config, 0, name

    def __getattr__(self, key):
        if key == "encode":
            self.calls += 1
            return self.model.encode
        return super().__getattr__(key)


def test_latents_are_those_of_the_vae_and_computed_once(vae, clips, tmp_path):
    counted = Counting(vae, "encode")
    latents = cache_latents(counted, clips, tmp_path, quiet=True)
    assert counted.calls == 5 and len(latents) == 5
    for i in range(5):
        with torch.no_grad():
            plain = vae.encode(clips.video[i].transpose(0, 1).float() / 127.5 - 1).latent_dist.mode() * 0.5 - 0.125  # f c h w
        item = latents.get(i)
        assert item["latents"].dtype == torch.float32 and item["latents"].shape == (4, 4, 8, 8)
        assert torch.equal(item["latents"], plain.transpose(0, 1).half().float()) and item["caption"] == f"clip {i}"
    again = cache_latents(counted, clips, tmp_path, quiet=True)
    assert counted.calls == 5 and torch.equal(again.latents, latents.latents)
    assert [p.name for p in tmp_path.iterdir()] == [latents.path.name]  # nothing left beside it


def test_the_file_is_safetensors_and_memory_mapped(vae, clips, tmp_path):
    latents = cache_latents(vae, clips, tmp_path, quiet=True)
    with safe_open(latents.path, framework="pt") as file:
        assert set(file.keys()) == {"latents", "rows", "captions"} and file.get_tensor("latents").dtype == torch.float16
    mapped = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else str(latents.path)
    assert str(latents.path) in mapped


def test_another_setting_video_or_weight_is_another_cache(vae, clips, tmp_path):
    one = cache_latents(vae, clips, tmp_path, quiet=True).path
    assert cache_latents(vae, clips, tmp_path, views=2, quiet=True).path != one
    other = TensorClips(clips.video.clone(), clips.captions)
    assert cache_latents(vae, other, tmp_path, quiet=True).path == one
    assert cache_latents(vae, TensorClips(clips.video, list("abcde")), tmp_path, quiet=True).path != one
    other.video[3, 1, 2, 5, 5] ^= 1
    assert cache_latents(vae, other, tmp_path, quiet=True).path != one
    before = cache.fingerprint_of(vae)
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 1e-3
    assert cache.fingerprint_of(vae) != before
    assert cache_latents(vae, clips, tmp_path, quiet=True).path != one
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] -= 1e-3
        vae.decoder.conv_in.bias[0] += 1e-3  # which latents do not depend on
    assert cache.fingerprint_of(vae) != before and cache_latents(vae, clips, tmp_path, quiet=True).path == one
    with torch.no_grad():
        vae.decoder.conv_in.bias[0] -= 1e-3


def test_a_model_is_the_same_in_another_folder(vae, tmp_path):
    prints = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        vae.save_pretrained(folder)
        prints.append(cache.fingerprint_of(type(vae).from_pretrained(folder)))
    assert prints == [cache.fingerprint_of(vae)] * 2


def test_bad_videos_are_left_out_and_views_take_turns(videos, vae, tmp_path):
    for i in range(10):
        videos.write(tmp_path / "v" / f"{i:02}.mp4", 12, size=(16, 32))
    (tmp_path / "v" / "03.mp4").write_bytes(b"junk")
    source = VideoClips(tmp_path / "v", size=16, frames=2, stride=1)
    latents = cache_latents(vae, source, tmp_path, views=3, quiet=True)
    assert latents.indices == [0, 1, 2, 4, 5, 6, 7, 8, 9] and latents.latents.shape == (27, 4, 2, 8, 8)
    for i, view in ((0, 0), (5, 1), (8, 2)):
        wanted = encode(vae, source.get(latents.indices[i], view)["video"]).half().float()
        assert torch.equal(latents.get(i, view)["latents"], wanted)
        assert torch.equal(latents.get(i, view + 3)["latents"], wanted)


def test_a_clip_that_is_bad_in_one_view_has_its_others(vae, clips, tmp_path):
    clips.try_get = lambda index, epoch: None if (index, epoch) == (1, 1) else clips.get(index, epoch)
    latents = cache_latents(vae, clips, tmp_path, views=2, quiet=True)
    assert latents.indices == [0, 1, 2, 3, 4] and len(latents.latents) == 9
    assert torch.equal(latents.get(1, 1)["latents"], latents.get(1, 0)["latents"])


def test_clips_read_ahead_in_threads_are_the_same_in_the_same_order(vae, clips, tmp_path):
    slow = threading.Barrier(3, timeout=20)  # passed only if three are read at a time
    plain, get = cache_latents(vae, clips, tmp_path / "one", views=3, quiet=True), clips.get

    def together(index, epoch):
        if 3 * epoch + index < 6 and index < 3:
            slow.wait()
        return get(index, epoch)

    clips.get = together
    ahead = cache_latents(vae, clips, tmp_path / "three", views=3, workers=3, quiet=True)
    assert torch.equal(ahead.latents, plain.latents) and ahead.captions == plain.captions


def test_an_error_in_a_thread_ends_the_cache_at_once(vae, clips, tmp_path):
    seen = []

    def get(index, epoch):
        seen.append(index)
        if index == 1:
            raise AnimkitError("no such clip")
        return {"video": clips.video[index % 5], "caption": "", "index": index}

    clips.get, clips.__class__ = get, type("Many", (TensorClips,), {"__len__": lambda self: 1000})
    with pytest.raises(AnimkitError, match="no such clip"):
        cache_latents(vae, clips, tmp_path, workers=2, quiet=True)
    assert len(seen) < 20 and not list(tmp_path.iterdir())


def test_images_are_clips_of_one_frame(vae, tmp_path):
    from PIL import Image
    for i in range(2):
        Image.new("RGB", (20, 16), (90 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"shade {i}")
    latents = cache_latents(vae, Images(tmp_path, size=16), tmp_path / "cache", quiet=True)
    assert latents.get(1)["latents"].shape == (4, 1, 8, 8) and latents.captions == ["shade 0", "shade 1"]


@pytest.fixture(scope="module")
def words():
    """A tokenizer and text encoder of the shape that Stable Diffusion has."""
    from transformers import CLIPTextConfig, CLIPTextModel
    torch.manual_seed(0)
    model = CLIPTextModel(CLIPTextConfig(vocab_size=300, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                                         num_attention_heads=2, max_position_embeddings=12, bos_token_id=1,
                                         eos_token_id=2))

    class Tokenizer:
        model_max_length, unk_token_id = 10 ** 30, None  # as one that states no limit

        def convert_tokens_to_ids(self, token):
            return {"a</w>": 0}.get(token)  # no "an"

        def __call__(self, captions, padding, max_length, truncation, return_tensors):
            from types import SimpleNamespace
            ids = [([1] + [ord(c) % 256 + 3 for c in text] + [2] * max_length)[:max_length] for text in captions]
            return SimpleNamespace(input_ids=torch.tensor(ids))
    return Tokenizer(), model.eval()


def test_text_embeddings_once_with_the_empty_prompt(words, tmp_path):
    tokenizer, model = words
    asked = []
    handle = model.register_forward_hook(lambda *_: asked.append(1))
    texts = cache_text(tokenizer, model, ["a cat", "a dog", "a cat"], tmp_path, quiet=True)
    for caption in ("a cat", "a dog", ""):
        with torch.no_grad():
            plain = model(tokenizer([caption], "max_length", 12, True, "pt").input_ids).last_hidden_state[0]
        assert torch.allclose(texts[caption], plain, atol=2e-3) and texts[caption].shape == (12, 8)
    assert torch.equal(texts.empty, texts[""]) and texts.text.shape[0] == 3
    assert torch.equal(cache_text(tokenizer, model, ["an dog"], tmp_path, quiet=True)["an dog"], texts["a dog"])
    count = len(asked)
    assert torch.equal(cache_text(tokenizer, model, ["a dog", "a cat"], tmp_path, quiet=True).text, texts.text)
    assert len(asked) == count
    handle.remove()
    with torch.no_grad():
        next(model.parameters())[0] += 1
    assert cache_text(tokenizer, model, ["a cat", "a dog"], tmp_path, quiet=True).path != texts.path
    with pytest.raises(AnimkitError, match="'a fish'"):
        texts["a fish"]


def test_text_goes_to_the_disk_part_by_part(words, tmp_path, monkeypatch):
    """A large set's captions have more embeddings than memory holds; the file is as safetensors writes it."""
    parts = []
    monkeypatch.setattr("animkit.data.cache._finite", lambda text, what: parts.append(len(text)))
    captions = [f"cat {i}" for i in range(9)]
    texts = cache_text(*words, captions, tmp_path, at_once=4, quiet=True)
    assert parts == [4, 4, 2]
    save_file(tensors := load_file(texts.path), tmp_path / "again.safetensors")
    again = TextCache(tmp_path / "again.safetensors")
    assert all(torch.equal(again[c], texts[c]) for c in ("", *captions)) and tensors["text"].shape == (10, 12, 8)
    whole = cache_text(*words, captions, tmp_path / "whole", quiet=True)
    assert torch.allclose(whole.text.float(), texts.text.float(), atol=1e-3) and list(tmp_path.glob("*.tmp")) == []


def test_batches_of_latents_and_text_for_the_losses(vae, clips, words, tmp_path):
    texts = cache_text(*words, clips.captions, tmp_path, quiet=True)
    batch = Batches(cache_latents(vae, clips, tmp_path, quiet=True).with_text(texts), 3)(1)
    assert batch["latents"].shape == (3, 4, 4, 8, 8) and batch["text"].shape == (3, 12, 8)
    assert torch.equal(batch["text"][2], texts[batch["caption"][2]])


def test_a_full_disk_leaves_no_half_cache(vae, clips, tmp_path, monkeypatch):
    def full(tensor, what):
        if "clip 2" in what:  # two rows are written
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(cache, "_finite", full)
    counted = Counting(vae, "encode")
    with pytest.raises(AnimkitError, match="could not write .*No space left.*goes on from them"):
        cache_latents(counted, clips, tmp_path, quiet=True)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".part", ".rows"]
    monkeypatch.undo()
    path = cache_latents(counted, clips, tmp_path, quiet=True).path
    assert counted.calls == 3 + 3 and list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(AnimkitError, match="damaged.*delete it"):
        cache_latents(counted, clips, tmp_path, quiet=True)


def killed(vae, clips, folder, at):
    """cache_latents in a process that is gone, as by kill -9, when it asks for clip `at`."""
    def get(index, epoch):
        if (index, epoch) == at:
            os._exit(9)
        return None if index == 1 else type(clips).get(clips, index, epoch)
    torch.set_num_threads(1)
    clips.try_get = get
    cache_latents(vae, clips, folder, views=2, quiet=True)


def usable(clips):
    """The same clips, the second of which is bad, and a list of what was asked for."""
    asked = []
    clips.try_get = lambda index, epoch: asked.append((index, epoch)) or (None if index == 1 else clips.get(index, epoch))
    return asked


@pytest.mark.parametrize("harm", ["none", "half a line", "half a row", "a changed row", "no file of rows"])
def test_a_kill_loses_nothing(vae, clips, tmp_path, harm):
    process = multiprocessing.get_context("fork").Process(target=killed, args=(vae, clips, tmp_path / "a", (2, 1)))
    process.start()
    process.join()
    assert process.exitcode == 9
    part, rows = sorted((tmp_path / "a").iterdir())
    assert (part.suffix, rows.suffix) == (".part", ".rows") and len(rows.read_text().splitlines()) == 7
    left = [(2, 1), (3, 1), (4, 1)]
    if harm == "half a line":  # that of the clip before, which is bad
        rows.write_bytes(rows.read_bytes()[:-3])
        left = [(1, 1), *left]
    elif harm == "half a row":
        part.write_bytes(part.read_bytes()[:-3])
        left = [(0, 1), (1, 1), *left]
    elif harm == "a changed row":  # as after a power cut: that of clip 4, the fourth that was written
        content = bytearray(part.read_bytes())
        content[-2 * 2048 + 5] ^= 1
        part.write_bytes(content)
        left = [(4, 0), (0, 1), (1, 1), *left]
    elif harm == "no file of rows":
        rows.unlink()
        left = [(i, view) for view in (0, 1) for i in range(5)]
    asked = usable(clips)
    resumed = cache_latents(vae, clips, tmp_path / "a", views=2, quiet=True)
    assert asked == left
    whole = cache_latents(vae, clips, tmp_path / "b", views=2, quiet=True)
    assert resumed.path.read_bytes() == whole.path.read_bytes() and resumed.indices == [0, 2, 3, 4]
    assert list((tmp_path / "a").iterdir()) == [resumed.path]


def test_an_interrupt_loses_nothing(vae, clips, tmp_path):
    def stop(index, epoch):
        if index == 3:
            raise KeyboardInterrupt
        return type(clips).get(clips, index, epoch)
    clips.try_get, counted = stop, Counting(vae, "encode")
    with pytest.raises(KeyboardInterrupt):
        cache_latents(counted, clips, tmp_path, quiet=True)
    del clips.try_get
    assert len(cache_latents(counted, clips, tmp_path, quiet=True)) == 5 and counted.calls == 3 + 2


def slowly(vae, clips, folder, log):
    def get(index, epoch):
        with open(log, "a") as file:
            file.write(json.dumps([os.getpid(), index]) + "\n")
        time.sleep(0.4)
        return type(clips).get(clips, index, epoch)
    torch.set_num_threads(1)
    clips.try_get = get
    assert len(cache_latents(vae, clips, folder, quiet=True)) == 5


def test_two_processes_make_one_cache_once(vae, clips, tmp_path, capfd):
    pair = [multiprocessing.get_context("fork").Process(target=slowly, args=(vae, clips, tmp_path / "c", tmp_path / "log"))
            for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    asked = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [process.exitcode for process in pair] == [0, 0] and [index for _, index in asked] == [0, 1, 2, 3, 4]
    assert len({pid for pid, _ in asked}) == 1 and len(list((tmp_path / "c").iterdir())) == 1
    assert capfd.readouterr().err.count("another process is making") == 1


def test_another_process_goes_on_when_one_is_killed(vae, clips, tmp_path):
    fork = multiprocessing.get_context("fork")
    first = fork.Process(target=slowly, args=(vae, clips, tmp_path / "c", tmp_path / "log"))
    first.start()
    while not (tmp_path / "log").exists() or len((tmp_path / "log").read_text().splitlines()) < 3:
        assert first.is_alive()
        time.sleep(0.02)
    second = fork.Process(target=slowly, args=(vae, clips, tmp_path / "c", tmp_path / "log"))
    second.start()
    time.sleep(0.1)
    first.kill()
    second.join()
    asked = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    of = [[index for pid, index in asked if pid == process.pid] for process in (first, second)]
    assert second.exitcode == 0 and of[1] and of[0] + of[1] in ([0, 1, 2, 3, 4], [*of[0], *range(of[0][-1], 5)])
    plain = cache_latents(vae, clips, tmp_path / "d", quiet=True)
    assert plain.path.read_bytes() == (tmp_path / "c" / plain.path.name).read_bytes()


@pytest.mark.parametrize("system", ["Windows", "a file system without locks"])
def test_without_locks_each_process_writes_a_file_of_its_own(vae, clips, tmp_path, monkeypatch, system):
    def refuse(file, how):
        raise OSError(38, "Function not implemented")
    plain = cache_latents(vae, clips, tmp_path / "a", quiet=True).path
    monkeypatch.setattr(*(cache, "fcntl", None) if system == "Windows" else (cache.fcntl, "flock", refuse))
    inside, get = [], clips.get
    clips.try_get = lambda index, epoch: inside.extend(p.name for p in (tmp_path / "b").iterdir()) or get(index, epoch)
    alone = cache_latents(vae, clips, tmp_path / "b", quiet=True).path
    assert alone.read_bytes() == plain.read_bytes() and list((tmp_path / "b").iterdir()) == [alone]
    assert len(inside) == 5 and all(name.endswith(".tmp") for name in inside)


def test_what_cannot_be_cached_is_named(vae, clips, tmp_path):
    broken = AutoencoderKL.from_config(vae.config)
    with torch.no_grad():
        broken.quant_conv.bias.fill_(float("nan"))
    with pytest.raises(AnimkitError, match="latents of clip 0 .'clip 0'. are not finite"):
        cache_latents(broken, clips, tmp_path, quiet=True)
    clips.get = lambda i, epoch: {"video": clips.video[i, ..., :16 - 4 * (i == 2)], "index": i}
    with pytest.raises(AnimkitError, match="clip 2 has latents .4, 4, 8, 6., those before it .4, 4, 8, 8.: give all"):
        cache_latents(vae, clips, tmp_path, quiet=True)
    with pytest.raises(AnimkitError, match="no clip to cache"):
        cache_latents(vae, TensorClips(clips.video[:0], []), tmp_path, quiet=True)
    with pytest.raises(AnimkitError, match="damaged"):
        LatentCache(tmp_path / "absent.safetensors")
    with pytest.raises(AnimkitError, match="damaged"):
        TextCache(tmp_path / "absent.safetensors")
