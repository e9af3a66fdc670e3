"""500 small files of every format, each damaged in its own way: every one loads or raises AnimkitError; none hangs,
none runs."""
import os
import random
import struct
import time
import zipfile

import file_makers as make
import pytest
import torch
from animkit import AnimkitError, inflate, open_checkpoint

SIZES = (32, 32)
COUNT = 500


def good_files(folder) -> dict[str, bytes]:
    """Small but whole files of every format, in every container."""
    unet = make.unet("sd1", SIZES)
    motion = make.reference_motion(make.adapter(SIZES, positions=4))
    video = inflate(unet)
    video.insert(open_checkpoint(make.write(folder / "m.ckpt", motion)))
    temporal, spatial = make.pairs(video.motion, r"attention_blocks\.0\.to_q", 1), make.pairs(unet, r"attn1\.to_q$", 1)
    few = {n: t for n, t in motion.items() if "down_blocks.0.motion_modules.0" in n}
    tensors = {
        "motion": few,
        "adapter": {n.replace("temporal_transformer.", ""): t for n, t in few.items() if "attention_blocks" not in n},
        "motion_lora": make.reference_lora(temporal),
        "peft": make.peft_lora(spatial),
        "diffusers": make.diffusers_lora(spatial),
        "kohya": make.kohya_lora(spatial, 1.0),
        "base": {n: t[:2].clone() if t.ndim else t for n, t in list(make.single_file("sd1")[0].items())[::29]},
        "control": {n: t[:2].clone() for n, t in list(make.ldm_controlnet(make.controlnet().state_dict()).items())[::19]},
    }
    files = {}
    for name, weights in tensors.items():
        for suffix, wrap in ((".safetensors", ""), (".ckpt", "state_dict"), (".bin", "legacy module.")):
            path = make.write(folder / f"{name}{suffix}", weights, wrap)
            files[path.name] = path.read_bytes()
    return files


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One of the ways in which files go bad, or are made bad."""
    kind, data = rng.randrange(9), bytearray(data)
    end = min(len(data), 3000) if rng.random() < 0.7 else len(data)  # mostly where the structure is
    if kind == 0:  # cut
        return bytes(data[:rng.randrange(len(data))])
    if kind == 1:  # flipped bits
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    elif kind == 2:  # a stretch of noise
        start = rng.randrange(end)
        data[start:start + rng.randint(1, 64)] = rng.randbytes(rng.randint(1, 64))
    elif kind == 3:  # a large number in place of a small one
        start = rng.randrange(end)
        data[start:start + 8] = struct.pack("<Q", rng.choice([2**31, 2**40, 2**62, 2**64 - 1, 0]))
    elif kind == 4:  # something left out
        start = rng.randrange(end)
        del data[start:start + rng.randint(1, 200)]
    elif kind == 5:  # something twice
        start = rng.randrange(end)
        data[start:start] = data[start:start + rng.randint(1, 200)]
    elif kind == 6:  # other digits in the header's sizes
        for place in [i for i in range(end) if 48 <= data[i] <= 57][:rng.randint(1, 400)]:
            if rng.random() < 0.2:
                data[place] = rng.randrange(48, 58)
    elif kind == 7:  # other pickle instructions
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(end)] = rng.choice(b"cR0b}](\x81\x82\x85\x86\x93Qq\x8a\x8e\x95i.o\x92")
    else:  # a command, written into a pickle's place for a name
        swaps = [
            (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n"),
            (b"ctorch\nFloatStorage\n", b"cbuiltins\neval\n"),
            (b"ccollections\nOrderedDict\n", b"csubprocess\nPopen\n"),
        ]
        return _swap(bytes(data), *rng.choice(swaps))
    return bytes(data)


def _swap(data: bytes, old: bytes, new: bytes) -> bytes:
    if data[:2] != b"PK":
        return data.replace(old, new)
    import io
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry).replace(old, new))
    return out.getvalue()


@pytest.mark.timeout(300)
def test_500_damaged_files(tmp_path, monkeypatch):
    ran = []
    for module, name in ((os, "system"), (__import__("subprocess"), "Popen"), (__import__("builtins"), "eval")):
        monkeypatch.setattr(module, name, lambda *a, **k: ran.append((a, k)))
    (tmp_path / "good").mkdir()
    files = good_files(tmp_path / "good")
    for name in files:
        if not name.startswith(
            ("motion.", "adapter.", "base.", "control.")
        ):  # a few tensors of a module: recognised, not built
            open_checkpoint(tmp_path / "good" / name)
    rng, outcome, slowest = random.Random(2307_04725), {"loaded": 0, "refused": 0}, 0.0
    video = inflate(make.unet("sd1", SIZES))
    place = tmp_path / "bad"
    place.mkdir()
    for number in range(COUNT):
        name = sorted(files)[number % len(files)]
        path = place / f"{number}-{name}"
        path.write_bytes(mutate(files[name], rng))
        start = time.process_time()
        try:
            checkpoint = open_checkpoint(path)
            checkpoint.describe()
            sum(
                float(t.double().sum()) for t in checkpoint.weights.values() if t.is_floating_point()
            )  # every byte is really there
            checkpoint.build(video)
            outcome["loaded"] += 1
        except AnimkitError as error:
            assert str(error).strip() and str(path) in str(error)
            outcome["refused"] += 1
        slowest = max(slowest, time.process_time() - start)
        path.unlink()
    assert sum(outcome.values()) == COUNT and outcome["refused"] > COUNT // 2 and outcome["loaded"] > 10, outcome
    assert slowest < 10, f"one file took {slowest:.1f} s of processor time"
    assert not ran and not list(place.iterdir()) and torch.ones(1).sum() == 1
