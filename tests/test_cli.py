"""The command `animkit`: the table, errors in one line, the doctor, the demo."""
import argparse
import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import nbformat
import numpy as np
import pytest
from nbformat import v4
from packaging.specifiers import SpecifierSet

import animkit
from animkit import cli, demo, doctor, samples
from animkit.errors import AnimkitError


def animkit_command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "animkit", *words], capture_output=True, text=True, timeout=300)


def test_help_lists_every_command_and_imports_none_of_them():
    done = subprocess.run([sys.executable, "-c", "import sys, animkit.cli as c\n"
                           "assert c.main([]) == 0\n"
                           "assert not {'torch', 'papermill', 'animkit.doctor'} & set(sys.modules), 'imported too much'"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, (_, line) in cli.COMMANDS.items():
        assert name in done.stdout and line in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert f"usage: animkit {name}" in capsys.readouterr().out


def test_version():
    done = animkit_command("--version")
    assert done.returncode == 0 and done.stdout.strip() == f"animkit {animkit.__version__}"


def test_unknown_command_is_refused():
    done = animkit_command("train-everything")
    assert done.returncode == 2 and "train-everything" in done.stderr and "Traceback" not in done.stderr


def test_own_errors_are_one_line_and_code_2(monkeypatch, capsys):
    def fail(args):
        raise AnimkitError("the look 'x' is\nunknown")

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "animkit: the look 'x' is unknown\n"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_disk_that_takes_nothing_is_one_line_and_code_2(number, monkeypatch, capsys):
    def fail(args):
        raise OSError(number, os.strerror(number), "/a/place")

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == f"animkit: /a/place: {os.strerror(number)}; choose another folder, or make room\n"


@pytest.mark.parametrize("error", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "not there", "/a/file")])
def test_other_errors_are_not_hidden(error, monkeypatch):
    def fail(args):
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    with pytest.raises(type(error)):
        cli.main(["doctor"])


@pytest.mark.parametrize("words", [("reproduce", "--list"), ("inspect", "--tensors", "data_samples/looks/ink.safetensors")])
def test_a_reader_that_has_enough_is_one_line(words, repo):
    """As of `animkit inspect --tensors FILE | head`."""
    command = subprocess.Popen([sys.executable, "-m", "animkit", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, cwd=repo)
    command.stdout.close()
    assert command.stderr.read() == "animkit: stopped, as nobody reads on\n" and command.wait(timeout=300) == 141


def test_course_wants_a_folder_and_no_assignment(capsys):
    with pytest.raises(SystemExit):
        cli.main(["course", "release"])
    assert capsys.readouterr().err.endswith("required: DIR\n")


# --- doctor ---------------------------------------------------------------------------------------------------------

def test_doctor_finds_what_this_environment_has():
    findings = {f.subject: f for f in doctor.examine()}
    assert findings["python"].state == findings["torch"].state == doctor.OK
    assert findings["H.264 encoder"].state == findings["video reader"].state == doctor.OK
    assert "4 of 4" in findings["video reader"].value
    assert all(f.advice for f in findings.values() if f.state != doctor.OK)


def test_doctor_says_what_to_do_about_a_library():
    missing = doctor.library("no-such-library-here", SpecifierSet(">=1"))
    assert missing.state == doctor.MISSING and "no-such-library-here>=1" in missing.advice
    assert doctor.library("no-such-library-here", SpecifierSet(">=1"), "course").state == doctor.NOTE
    old = doctor.library("pytest", SpecifierSet(">=1000"))
    assert old.state == doctor.MISSING and ">=1000" in old.value
    assert doctor.library("pytest", SpecifierSet(">=1")).state == doctor.OK
    assert doctor.library("pytest", SpecifierSet(">=1000"), "dev").state == doctor.NOTE, "an extra is no need"


def test_doctor_tries_the_encoder_that_clips_are_written_with(monkeypatch):
    film = MagicMock()
    film.__enter__().add_stream.side_effect = ValueError("not in this build")
    monkeypatch.setattr("av.open", lambda *args, **how: film)
    assert [found.state for found in doctor.film()] == [doctor.MISSING]
    with pytest.raises(ValueError, match="not in this build"):
        animkit.Clip([np.zeros((8, 8, 3), np.uint8)]).encode(".mp4")
    doctors, clips = film.__enter__().add_stream.call_args_list
    assert doctors.args == clips.args


@pytest.mark.parametrize("gpus, driver, said", [(0, "", "none;"), (0, "nvidia-smi", "sees no GPU"), (1, "", "cuda:0 X, 24 GiB")])
def test_doctor_tells_of_the_gpu_and_of_one_that_torch_does_not_see(monkeypatch, gpus, driver, said):
    import torch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(name="X", total_memory=24 * 2**30))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: driver)
    found, = (f for f in doctor.devices() if f.subject == "accelerator")
    assert said in found.value and (found.state == doctor.OK) == (not driver)


def test_doctor_tells_a_kernel_of_another_environment_from_this_ones(tmp_path, monkeypatch):
    """Environments made from one Python share its file: both are links to it."""
    from jupyter_client.kernelspec import KernelSpecManager
    for name in ("ours", "another"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "pyvenv.cfg").write_text("")
        for python in ("python", "python3"):
            (tmp_path / name / "bin" / python).symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "ours" / "bin" / "python3"))
    for name, state in (("ours", doctor.OK), ("another", doctor.NOTE)):
        spec = type("Spec", (), {"argv": [str(tmp_path / name / "bin" / "python")]})
        monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, kernel: spec)
        [found] = doctor.jupyter()
        assert found.state == state, found


@pytest.mark.parametrize("damage", ["none", "no weights", "cut short", "no config"])
def test_doctor_looks_into_the_miniature(tmp_path, monkeypatch, damage):
    import torch
    from safetensors.torch import save_file
    unet = tmp_path / "miniature" / "unet"
    unet.mkdir(parents=True)
    (tmp_path / "miniature" / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
                    "safety_checker": [None, None]}))
    weights = unet / "diffusion_pytorch_model.safetensors"
    save_file({"a": torch.zeros(100)}, weights)
    (unet / "config.json").write_text("{}")
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:50])
    elif damage == "no config":
        (unet / "config.json").unlink()
    monkeypatch.setattr(samples, "root", lambda: tmp_path)
    found, *others = doctor.shipped_samples()
    assert found.subject == "miniature/unet"
    assert found.state == (doctor.OK if damage == "none" else doctor.MISSING)
    assert {f.subject: f.state for f in others} == dict.fromkeys(("motion_module", "looks", "motion_loras", "control"), doctor.MISSING)
    if damage == "none":
        for subject in ("motion_module", "looks"):
            (tmp_path / subject).mkdir()
            (tmp_path / subject / "a.safetensors").write_bytes(weights.read_bytes())
        assert [f.state for f in doctor.shipped_samples()][:3] == [doctor.OK] * 3
        (tmp_path / "motion_module" / "a.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
        assert "a.safetensors is damaged" in {f.subject: f.value for f in doctor.shipped_samples()}["motion_module"]


def test_doctor_exits_1_when_something_is_missing_and_survives_a_broken_check(monkeypatch, capsys):
    def broken():
        raise OSError("libfoo.so: cannot open")
        yield

    def well():
        yield doctor.Finding(doctor.OK, "a thing", "is here")

    for name in ("python", "libraries", "devices", "film", "jupyter", "browser"):
        monkeypatch.setattr(doctor, name, well)
    monkeypatch.setattr(doctor, "shipped_samples", broken)
    assert cli.main(["doctor"]) == 1
    assert "OSError: libfoo.so" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "shipped_samples", well)
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["subject"] == "a thing"


# --- demo -----------------------------------------------------------------------------------------------------------

def small_quickstart(path, body: str) -> None:
    cells = [v4.new_markdown_cell("# A first animation"),
             v4.new_code_cell('out: str = "."  # folder\nseed: int = 0  # noise', metadata={"tags": ["parameters"]}),
             v4.new_code_cell(body)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    path = tmp_path / "00_quickstart.ipynb"
    monkeypatch.setattr(demo, "QUICKSTART", path)
    return path


def test_demo_leaves_a_page_and_a_clip_and_says_where(quickstart, tmp_path, capsys):
    small_quickstart(quickstart, 'from pathlib import Path\nPath(out, "clip.mp4").write_text(str(seed + 1))')
    out = tmp_path / "results"
    out.mkdir()
    (out / "holidays.mp4").write_text("the reader's own")
    assert cli.main(["demo", "--out", str(out), "-p", "seed", "41", "--quiet"]) == 0
    assert (out / "clip.mp4").read_text() == "42" and (out / "holidays.mp4").read_text() == "the reader's own"
    said = capsys.readouterr().out
    assert "holidays" not in said
    assert str(out / "quickstart.html") in said and str(out / "clip.mp4") in said and "make lab" in said
    assert "<title>A first animation</title>" in (out / "quickstart.html").read_text()


@pytest.mark.parametrize("words, message", [
    (["-p", "sed", "1"], "no parameter 'sed'; it has: out, seed"),
    (["-p", "out", "elsewhere"], "--out"),
    (["-p", "seed", "many"], "'seed' is 'many'"),
])
def test_demo_refuses_parameters_before_anything_runs(quickstart, tmp_path, capsys, words, message):
    small_quickstart(quickstart, "raise RuntimeError('ran')")
    assert cli.main(["demo", "--out", str(tmp_path / "o"), "--quiet", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("body, message", [
    ("1 / 0", "the cell of 00_quickstart.ipynb that begins '1 / 0' failed with ZeroDivisionError"),
    ("pass", "left no mp4")])
def test_demo_says_what_failed(quickstart, tmp_path, capsys, body, message):
    small_quickstart(quickstart, body)
    assert cli.main(["demo", "--out", str(tmp_path / "o"), "--quiet"]) == 2
    assert message in capsys.readouterr().err


def test_demo_without_a_clone_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "QUICKSTART", tmp_path / "nowhere.ipynb")
    with pytest.raises(AnimkitError, match="clone"):
        demo.run(argparse.Namespace(parameter=[], out=tmp_path, quiet=True))
