"""Reading what strangers made: each kind of damage has its own sentence, and nothing in a file is ever run."""
import io
import json
import os
import pickle
import struct
import zipfile

import file_makers as make
import pytest
import torch
from animkit import AnimkitError, open_checkpoint
from animkit.checkpoints import files
from animkit.checkpoints.files import read_file
from safetensors.torch import save_file

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3).half(), "b": torch.ones(4, dtype=torch.bfloat16), "n": torch.tensor(3)}


class Evil:
    """Unpickling this runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def header(table: dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def zipped(names: list[str], how: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name in names:
            archive.writestr(name, "hello")
    return file.getvalue()


@pytest.mark.parametrize(
    "name, wrap", [("w.safetensors", ""), ("w.ckpt", ""), ("w.bin", "legacy"), ("w.pt", "legacy state_dict")]
)
def test_reads_bits_and_dtypes_and_keeps_memory(tmp_path, name, wrap):
    contents, _ = read_file(make.write(tmp_path / name, WEIGHTS, wrap))
    read = contents.get("state_dict", contents)
    assert set(read) == set(WEIGHTS)
    assert all(read[n].dtype == t.dtype and torch.equal(read[n], t) for n, t in WEIGHTS.items())


def test_the_name_does_not_matter_only_the_bytes(tmp_path):
    odd = tmp_path / "weights.ckpt"
    save_file(WEIGHTS, odd)
    assert torch.equal(read_file(odd)[0]["a.weight"], WEIGHTS["a.weight"])


@pytest.mark.parametrize("legacy", [False, True])
def test_what_plain_weights_may_come_with_is_read(tmp_path, legacy):
    kind = torch.half if legacy else torch.float8_e4m3fn  # torch itself cannot read the second in its old format
    saved = {"dtype": kind, "size": torch.Size([2]), "device": torch.device("cpu"), "bytes": b"\xff"}
    weights = {"p": torch.nn.Parameter(torch.ones(2)), "x": torch.ones(2).to(kind)}
    torch.save(saved | weights, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    read = read_file(tmp_path / "w.pt")[0]
    assert all((read.pop(name).float() == 1).all() for name in weights) and read == saved


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_reading_takes_no_memory_until_a_tensor_is_used(tmp_path, suffix):
    resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")  # noqa: E731
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("reads memory from /proc")
    make.write(tmp_path / f"one{suffix}", {"x": torch.ones(4)})
    read_file(tmp_path / f"one{suffix}")  # whatever is loaded once is loaded now
    path = make.write(tmp_path / f"big{suffix}", {"x": torch.ones(60_000_000, dtype=torch.float16)})
    before = resident()
    weights = read_file(path)[0]
    assert resident() - before < 10e6
    assert weights["x"].float().sum() == 60_000_000


def test_a_write_to_a_tensor_does_not_reach_the_file(tmp_path):
    for path in (make.write(tmp_path / "w.safetensors", WEIGHTS), make.write(tmp_path / "w.ckpt", WEIGHTS)):
        before = path.read_bytes()
        read_file(path)[0]["a.weight"].zero_()
        assert path.read_bytes() == before


DAMAGE = {
    "empty": (b"", "is empty (0 bytes)"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1672046488\n", "git-lfs pointer"),
    "page": (b"\n <!DOCTYPE html><html><head><title>Sign in</title>", "an HTML page"),
    "text": (b"Invalid username or password.", "a text file"),
    "gguf": (b"GGUF" + bytes(40), "a GGUF file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "a gzip archive"),
    "noise": (bytes(range(200, 250)) * 9, "neither safetensors nor a torch file"),
    "huge header": (struct.pack("<Q", 2**62) + b"{}", "its safetensors header claims"),
    "long header": (header({}, length=5000), "cut short: its header needs"),
    "long tensor": (
        header({"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}), "cut short: its tensors need"
    ),
    "wrong size": (
        header({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)), "does not fill its 8 bytes"
    ),
    "negative": (header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}), "no natural number"),
    "odd dtype": (
        header({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1)), "dtype 'F4', which torch cannot hold"
    ),
    "no json": (struct.pack("<Q", 9) + b"{\"x\": nul", "header is damaged"),
    "deep json": (struct.pack("<Q", 200_000) + b"{\"x\":" + b"[" * 199_995, "header is damaged"),
    "metadata": (header({"__metadata__": {"format": 3}}), "metadata is not text"),
    "a list": (struct.pack("<Q", 2) + b"[]", "header is damaged (not a table"),
    "zip": (zipped(["readme.txt"]), "a zip archive (readme.txt"),
    "TorchScript": (zipped(["a/data.pkl", "a/constants.pkl"]), "a TorchScript program"),
    "re-packed": (zipped(["a/data.pkl"], zipfile.ZIP_DEFLATED), "its records are compressed"),
    "record": (zipped(["a/data.pkl"]).replace(struct.pack("<II", 5, 5), struct.pack("<II", 999, 5)), "claims 5 bytes of"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_each_damage_has_its_sentence(tmp_path, what):
    content, sentence = DAMAGE[what]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(AnimkitError) as error:
        open_checkpoint(path)
    assert sentence in str(error.value) and str(path) in str(error.value)


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(AnimkitError, match="no such file"):
        open_checkpoint(tmp_path / "gone.ckpt")
    with pytest.raises(AnimkitError, match=f"no weights in this folder .*run, {tmp_path.name}.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(AnimkitError, match="split over several files"):
        open_checkpoint(tmp_path)
    with pytest.raises(AnimkitError, match="not a regular file"):
        read_file(tmp_path)


@pytest.mark.parametrize("name, wrap", [("w.safetensors", ""), ("w.ckpt", "state_dict"), ("w.bin", "legacy")])
def test_every_truncation_is_refused(tmp_path, name, wrap):
    whole = make.write(tmp_path / name, WEIGHTS, wrap).read_bytes()
    for end in range(0, len(whole) - 1, max(1, len(whole) // 60)):
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes(whole[:end])
        with pytest.raises(AnimkitError):
            read_file(cut)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_asks_for_more_is_refused_by_name_and_not_run(tmp_path, legacy):
    mark, path = tmp_path / "executed", tmp_path / "look.ckpt"
    torch.save({"x": torch.ones(2), "e": Evil(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(AnimkitError) as error:
        open_checkpoint(path)
    assert f"`{os.system.__module__}.system`" in str(error.value)
    assert "weights_only=False" in str(error.value) and "save_file" in str(error.value)  # how to convert it
    assert not mark.exists()


def test_the_conversion_that_the_refusal_names_works(tmp_path):
    """Lightning's checkpoints carry a callback's class; here a Counter's cousin stands for it."""
    import subprocess
    import sys

    path, out = tmp_path / "sd.ckpt", tmp_path / "sd.safetensors"
    torch.save({"state_dict": {"x": torch.arange(3.0)}, "callbacks": {pickle.PickleError: 1}}, path)
    with pytest.raises(AnimkitError) as error:
        read_file(path)
    assert "PickleError" in str(error.value)
    program = str(error.value).split('python -c "')[1].split('" IN.ckpt OUT.safetensors')[0]
    subprocess.run([sys.executable, "-c", program, path, out], check=True, timeout=120)
    assert torch.equal(read_file(out)[0]["x"], torch.arange(3.0))


def test_plain_pickles_are_not_opened(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(AnimkitError, match="a plain pickle"):
        read_file(path)


def test_a_pickle_that_promises_more_than_the_file_has(tmp_path):
    """The storage's size in the pickle is changed to one the record cannot hold: refused before torch allocates it."""
    good = make.write(tmp_path / "good.ckpt", {"x": torch.arange(4.0)})
    bad = tmp_path / "bad.ckpt"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert data.count(b"K\x04") == 2  # numel of the storage, and size of the tensor
                data = data.replace(b"K\x04", b"J" + struct.pack("<i", 2**31 - 1))
            target.writestr(entry.filename, data)
    with pytest.raises(AnimkitError, match="should have 8,589,934,588 bytes and has 16"):
        read_file(bad)


def test_a_legacy_pickle_that_promises_more_than_the_file_has(tmp_path):
    path = make.write(tmp_path / "w.bin", {"x": torch.arange(4.0)}, "legacy")
    path.write_bytes(path.read_bytes().replace(b"K\x04", b"J" + struct.pack("<i", 2**31 - 1)))
    with pytest.raises(AnimkitError, match="its tensors need 8,589,934,588 bytes"):
        read_file(path)


def bomb(middle: bytes) -> bytes:
    return b"\x80\x02" + middle + b"."


def storage(kind: bytes = b"storage", numel: bytes = b"K\x01", view: bytes = b"") -> bytes:
    """How a pickle names a storage of four bytes."""
    text = [b"X" + struct.pack("<I", len(t)) + t for t in (kind, b"0", b"cpu")]
    return b"(" + text[0] + b"ctorch\nFloatStorage\n" + text[1] + text[2] + numel + view + b"tQ"


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n("
TABLE = b"ccollections\nOrderedDict\n"


@pytest.mark.parametrize("name, program", {
    "hash of nested tuples": b"})" + 60 * b"2\x86" + b"K\x01s",
    "memory for the memo": b"}r\xff\xff\xff\x7f",
    "bytes that are not there": b"}\x8e" + struct.pack("<Q", 2**60) + b"x",
    "bytearray that is not there": b"}\x96" + struct.pack("<Q", 2**50) + b"x",
    "an extension": b"\x82\x01",
    "an object": b"ccollections\nOrderedDict\n)\x81",
    "a state on a function": b"ctorch._utils\n_rebuild_tensor_v2\n}b",
    "no stride": TENSOR + storage() + b"K\x00K\x01\x85)tR",
    "a tensor behind its storage": TENSOR + storage() + b"K\x01K\x01\x85K\x01\x85tR",
    "no storage": storage(b"what"), "less than nothing": storage(numel=b"J\xff\xff\xff\xff"),
    "a view outside": storage(view=b"K\x00K\x01K\x01\x87"),
    "a table of its own making": TABLE + b"}\x85R", "a call": b"ctorch\nFloatStorage\n)R",
    "to no list": b"}K\x01a", "all to no list": b"}(K\x01e", "in no table": b"]K\x01K\x01s", "a tuple's name": b"()K\x01d",
    "a class by name": b"(i" + TABLE[1:], "a class": b"(" + TABLE + b"o", "with names": TABLE + b")}\x92",
    "an id": b"P0\n", "a frozen set": b"(\x91", "a set": b"\x8f(K\x01\x90",
}.items())
def test_pickles_made_to_harm(tmp_path, monkeypatch, name, program):
    path = tmp_path / "w.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bomb(program))
        archive.writestr("archive/data/0", bytes(4))
        archive.writestr("archive/version", "3\n")
    if (
        name == "memory for the memo"
    ):  # harmless in Python's own machine, where the memo is a table; C's would take 32 GiB
        assert open_fails_or_is_empty(path)
        return
    monkeypatch.setattr(files, "_torch_load", lambda *args, **how: pytest.fail("torch was asked to load it"))
    with pytest.raises(AnimkitError):
        read_file(path)


def open_fails_or_is_empty(path) -> bool:
    try:
        return not read_file(path)[0]
    except AnimkitError:
        return True


def test_archives_with_paths_outside_write_nothing(tmp_path):
    path = tmp_path / "in" / "w.ckpt"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped/data.pkl", bomb(b"}"))
        archive.writestr("../escaped.txt", "x")
    open_fails_or_is_empty(path)
    tar = tmp_path / "old.pt"
    import tarfile
    with tarfile.open(tar, "w") as archive:
        archive.add(path, "../escaped.txt")
    with pytest.raises(AnimkitError, match="a tar archive"):
        read_file(tar)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "old.pt", "w.ckpt"]


def test_configs_beside_are_read_with_care(tmp_path):
    make.adapter(widths=(32, 64)).save_pretrained(tmp_path)
    for text, sentence in (("{", "cannot be read"), ("[1]", "not a table"), (" " * 1_000_001, "far too large")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(AnimkitError, match=sentence):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_one_number_is_not_stretched_to_fill_all_memory(tmp_path, legacy):
    """A stride of 0 makes a tensor of any size out of four bytes; a LoRA of that rank would be copied in full."""
    pair = {
        "unet.x.to_q.lora_A.weight": torch.zeros(1).expand(10**10, 32),
        "unet.x.to_q.lora_B.weight": torch.zeros(1).expand(32, 10**10),
    }
    torch.save(pair, tmp_path / "w.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(AnimkitError, match="in a storage of 1 numbers"):
        read_file(tmp_path / "w.ckpt")


def test_sizes_whose_product_would_take_hours(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(header({"x": {"dtype": "F32", "shape": [2**62] * 300_000, "data_offsets": [0, 4]}}, bytes(4)))
    with pytest.raises(AnimkitError, match="no natural number"):
        read_file(path)
    million = b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20)  # one integer of 2.5 million digits
    program = (
        b"}q\x00ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x01tQK\x00" + million + b"q\x01\x85h\x01\x85tR0"
    )
    with zipfile.ZipFile(tmp_path / "w.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", bomb(program))
        archive.writestr("archive/data/0", bytes(4))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(AnimkitError, match="no natural number"):
        read_file(tmp_path / "w.ckpt")


def test_what_is_no_path(tmp_path):
    for path, sentence in ((None, "takes the path"), (3, "takes the path"), ("a" * 5000, "cannot be followed"),
                           ("a\0b", "no such file")):
        with pytest.raises(AnimkitError, match=sentence):
            open_checkpoint(path)


@pytest.mark.parametrize("second", ["archive/data.pkl", "archive/DATA.PKL", "other/data.pkl"])
def test_a_second_pickle_behind_the_one_that_is_looked_at(tmp_path, second):
    """zipfile and torch need not find the same one: what has been checked is not what would be loaded."""
    import warnings

    path = make.write(tmp_path / "archive.ckpt", WEIGHTS)
    assert read_file(path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # Python's own, of a name given twice
        archive.writestr(second, bomb(b"}"))
    with pytest.raises(AnimkitError, match="two records of one name"):
        read_file(path)


def test_only_a_file_that_is_named_by_its_folder_takes_the_config_beside_it(tmp_path):
    make.unet().save_pretrained(tmp_path)
    saved = tmp_path / "diffusion_pytorch_model.safetensors"
    (tmp_path / "model-of-mine.safetensors").write_bytes(saved.read_bytes())
    (tmp_path / "diffusion_pytorch_model.bf16.safetensors").write_bytes(saved.read_bytes())
    (tmp_path / "config.json").write_text("{")
    assert open_checkpoint(tmp_path / "model-of-mine.safetensors").name == "model-of-mine"
    for file in (saved, tmp_path / "diffusion_pytorch_model.bf16.safetensors"):
        with pytest.raises(AnimkitError, match="this config cannot be read"):
            open_checkpoint(file)
