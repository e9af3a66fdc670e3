"""`--config miniature` finds the shipped settings, in a clone and in an installed package."""
import pytest

from animkit.cli import main
from animkit.errors import AnimkitError
from animkit.training import load_config, presets
from animkit.training.presets import find_config


def test_shipped_settings_are_found_by_name(repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "miniature").mkdir()                       # a folder of that name, such as a model's, is no settings
    assert find_config("miniature") == repo / "configs" / "miniature.yaml"
    assert load_config("sd15", "motion-lora") == load_config(repo / "configs" / "sd15.yaml", "motion-lora")
    (tmp_path / "sd15").write_text("base: mine\n")
    assert str(find_config("sd15")) == "sd15"              # a file of one's own comes first


def test_what_is_not_there_is_refused_with_what_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnimkitError, match=r"'configs/mine.yaml' cannot be read.*\(miniature, sd15\)"):
        find_config("configs/mine.yaml")
    assert main(["train", "look", "--config", "miniatur"]) == 2
    assert "'miniatur' cannot be read" in capsys.readouterr().err


def test_without_a_clone_the_packages_own_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "CLONE", tmp_path / "configs")
    monkeypatch.setattr(presets, "INSTALLED", tmp_path / "_configs")
    with pytest.raises(AnimkitError, match="none in this copy"):
        find_config("miniature")
    for folder in ("configs", "_configs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "miniature.yaml").write_text("")
    assert find_config("miniature").parent.name == "_configs"   # a folder beside some site-packages is not a clone's
    (tmp_path / "pyproject.toml").write_text("")
    assert find_config("miniature").parent.name == "configs"


def test_training_by_a_presets_name(tmp_path, monkeypatch):
    """The run's folder and its record go by the name that was given."""
    from animkit.training import stages

    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setitem(stages.TRAIN, "look", lambda config, folder, **k: seen.append((config, folder, k["command"])))
    assert main(["train", "look", "--config", "miniature", "--set", "rank=2"]) == 0
    (config, folder, command), = seen
    assert config.rank == 2 and folder.as_posix() == "runs/miniature-look"
    assert command == "animkit train look --config miniature --set rank=2"
