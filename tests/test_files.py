"""Files are written whole or not at all, and a disk that is full says so in one sentence."""
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from animkit.checkpoints import save_checkpoint
from animkit.errors import AnimkitError
from animkit.files import write_atomically
from animkit.lora import LoRA

resource = pytest.importorskip("resource", reason="Windows sets no limits of this kind")


@contextmanager
def files_of_at_most(size: int):
    """As on a disk that is full: what the libraries raise then is for them to choose."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path, suffix):
    net, path = torch.nn.Sequential(torch.nn.Linear(600, 40)), tmp_path / f"x{suffix}"
    lora = LoRA.for_module(net, ["0"], rank=8)
    save_checkpoint(lora, path, "animkit")
    before = path.read_bytes()
    with files_of_at_most(4000), pytest.raises(AnimkitError, match=f"could not write .*x{suffix}.*is untouched"):
        save_checkpoint(lora, path, "animkit")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_text_and_tensors_alike(tmp_path):
    for write in (lambda file: save_file({"a": torch.zeros(2000)}, file),
                  lambda file: Path(file).write_text("a" * 8000)):
        with files_of_at_most(4000), pytest.raises(AnimkitError, match="could not write .*too large"):
            write_atomically(tmp_path / "new", write)
        assert list(tmp_path.iterdir()) == []
