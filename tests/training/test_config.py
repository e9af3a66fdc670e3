"""Settings: the shipped files hold the paper's numbers, and nothing unknown or ill-typed gets through."""
from pathlib import Path

import pytest
import torch

from animkit.errors import AnimkitError
from animkit.training import plumbing
from animkit.training.config import STAGES, WorldConfig, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = "base: miniature\nlook:\n  data: {source: images, batch: 2}\n"


@pytest.mark.parametrize("name", ["miniature", "sd15"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_the_shipped_files_reads(name, stage):
    config = load_config(CONFIGS / f"{name}.yaml", stage)
    assert type(config) is STAGES[stage] and config.training.steps > 0
    linear = torch.linspace(0.00085, 0.012, 1000)
    betas = linear if stage.startswith("motion") else torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(config.noise.scheduler().betas, betas)


def test_the_papers_numbers():
    motion = load_config(CONFIGS / "sd15.yaml", "motion-module")
    assert (motion.training.lr, motion.training.betas, motion.training.weight_decay) == (1e-4, (0.9, 0.999), 1e-2)
    assert (motion.data.batch, motion.data.size, motion.data.frames, motion.data.stride) == (4, 256, 16, 4)
    assert motion.drop_captions == 0.1 and motion.training.clip_norm == 1.0
    assert load_config(CONFIGS / "sd15.yaml", "domain-adapter").rank == 128
    lora = load_config(CONFIGS / "sd15.yaml", "motion-lora")
    assert (lora.training.steps, lora.rank, lora.data.count) == (2000, 64, 50)


@pytest.mark.parametrize("stage", STAGES)
def test_full_size_has_the_papers_loss_and_the_miniature_the_precision_that_is_fast(stage, monkeypatch):
    monkeypatch.setattr(plumbing, "fast_precision", lambda device: "fp16")
    full, small = (load_config(CONFIGS / f"{name}.yaml", stage) for name in ("sd15", "miniature"))
    assert (full.min_snr_gamma, full.snr_plus_one, full.towards_noise) == (None, False, 1)
    assert (small.min_snr_gamma, small.snr_plus_one, small.towards_noise) == \
        (None, stage != "look", 0.5 if stage == "motion_lora" else 0.6)
    assert (full.training.mixed_precision, small.training.mixed_precision) == ("bf16", "fp16")


def test_overrides_reach_their_setting():
    overrides = ["training.steps=500", "training.lr=3e-3", "rank=4", "data.count=null", "training.betas=[0.9, 0.95]"]
    config = load_config(CONFIGS / "miniature.yaml", "look", overrides)
    assert (config.training.steps, config.training.lr, config.rank, config.data.count) == (500, 3e-3, 4, None)
    assert config.training.betas == (0.9, 0.95)
    assert load_config(CONFIGS / "miniature.yaml", "look").training.lr == 3e-3


@pytest.mark.parametrize("override, message", [
    ("training.stepz=5", "no setting 'training.stepz' to override; the nearest is training.steps"),
    ("steps=5", "the nearest is training.steps"),
    ("training=5", "no setting 'training'"),
    ("xyzzy=5", "known are base, data.source"),
    ("training.steps", "reads setting=value"),
    ("training.steps=many", "training.steps is 'many'; it must be a whole number"),
    ("training.steps=1.5", "must be a whole number"),
    ("training.steps=true", "must be a whole number"),
    ("training.lr=fast", "must be a number"),
    ("training.schedule=linear", "must be one of 'constant', 'cosine'"),
    ("training.betas=[1]", "must be 2 numbers"),
    ("data.flip=1", "must be true or false"),
    ("data.source=null", "must be text"),
    ("training.steps=0", "LoopConfig.steps = 0 makes no sense; see its comment in animkit/training/loop.py"),
    ("training.mixed_precision=fast", "must be one of 'no', 'bf16', 'fp16', 'auto'"),
    ("data.batch=0", "look: DataConfig.batch = 0 makes no sense"),
    ("data.frames=0", "DataConfig.frames = 0 makes no sense"),
    ("drop_captions=10", "look: LookConfig.drop_captions = 10.0 makes no sense"),
    ("sample_steps=0", "LookConfig.sample_steps = 0 makes no sense"),
    ("towards_noise=0", "look: towards_noise = 0.0 makes no sense"),
    ("min_snr_gamma=-1", "look: min_snr_gamma = -1.0 makes no sense"),
    ("training.steps=[", "not valid YAML"),
    ("noise.beta_end=1.5", "NoiseConfig.beta_end = 1.5"), ("noise.beta_start=0.5", "NoiseConfig.beta_start = 0.5"),
    ("noise.num_train_timesteps=0", "NoiseConfig.num_train"), ("noise.steps_offset=5000", "NoiseConfig.steps_offset"),
    ("min_snr_gamma=.nan", "min_snr_gamma = nan makes no sense"), ("rank=0", "LookConfig.rank = 0"),
    ("training.seed=9223372036854775808", "LoopConfig.seed"), ("data.world=5", "no setting 'data.world' to override"),
    ("training.seed=-1", "LoopConfig.seed = -1 makes no sense"), ("data.world.seed=-1", "WorldConfig.seed = -1 makes no"),
    ("training.betas=[2, 0.9]", "LoopConfig.betas"), ("training.weight_decay=-1", "LoopConfig.weight_decay"),
    ("training.floor=-3", "LoopConfig.floor"), ("data.world.moving=7", "WorldConfig.moving = 7"),
    ("training.validate_every=-1", "LoopConfig.validate_every"), ("training.lr=.inf", "LoopConfig.lr"),
    ("training.floor=2", "LoopConfig.floor"), ("training.warmup=-1", "LoopConfig.warmup"), ("training.ema=1", "LoopConfig.ema"),
    ("training.accumulate=0", "LoopConfig.accumulate"), ("training.clip_norm=-1", "LoopConfig.clip_norm"),
    ("training.log_every=0", "LoopConfig.log_every"), ("training.prefetch=-1", "LoopConfig.prefetch"),
    ("training.checkpoint_seconds=-1", "LoopConfig.checkpoint_seconds"), ("towards_noise=5", "towards_noise = 5.0 makes"),
    ("data.size=0", "DataConfig.size"), ("data.count=0", "DataConfig.count"), ("data.stride=0", "DataConfig.stride"),
    ("data.workers=0", "DataConfig.workers"), ("data.world.moves=2", "WorldConfig.moves"),
    ("data.world.looks=[]", "must be a list of at least one"),
])
def test_a_bad_override_is_named(tmp_path, override, message):
    (tmp_path / "c.yaml").write_text(MINIMAL)
    with pytest.raises(AnimkitError) as raised:
        load_config(tmp_path / "c.yaml", "look", [override])
    assert message in str(raised.value)


@pytest.mark.parametrize("text, message", [
    (MINIMAL + "  rnak: 4\n", "look has no setting rnak; the nearest is rank"),
    (MINIMAL + "  training: {stepz: 4}\n", "no setting training.stepz; the nearest is training.steps"),
    (MINIMAL + "lok: {}\n", "section 'lok' that is not known; the nearest is look"),
    (MINIMAL + "  rank: 4\n  rank: 5\n", "'rank' is set twice"),
    ("look:\n  data: {source: images}\n", "lacks the setting data.batch"),
    ("look:\n  data: images\n", "data must hold settings"),
    ("look: 5\n", "look must hold settings"),
    ("base: miniature\n", "has no section look"),
    (MINIMAL + "motion_module: {datum: {}}\n", "motion_module has no setting datum; the nearest is data"),
    ("- look\n", "must hold sections"),
    ("look: {", "not valid YAML"),
])
def test_a_bad_file_is_named(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(AnimkitError) as raised:
        load_config(tmp_path / "c.yaml", "look")
    assert message in str(raised.value)


def test_no_is_a_precision_though_yaml_reads_it_as_false(tmp_path):
    for text, overrides in ((MINIMAL, ["training.mixed_precision=no"]), (MINIMAL + "  training: {mixed_precision: no}\n", [])):
        (tmp_path / "c.yaml").write_text(text)
        assert load_config(tmp_path / "c.yaml", "look", overrides).training.mixed_precision == "no"


def test_an_override_of_a_part_that_is_empty_or_no_part_at_all(tmp_path):
    (tmp_path / "c.yaml").write_text(MINIMAL + "  base: its own\n  training:\n")
    config = load_config(tmp_path / "c.yaml", "look", ["training.steps=5"])
    assert config.training.steps == 5 and config.base == "its own"
    (tmp_path / "c.yaml").write_text("base: miniature\nlook:\n  data: images\n")
    with pytest.raises(AnimkitError, match="data.batch=5.* sets a part of data, which is 'images'"):
        load_config(tmp_path / "c.yaml", "look", ["data.batch=5"])


def test_a_section_of_the_file_can_be_left_out():
    whole = load_config(CONFIGS / "miniature.yaml", "motion_module").data
    found = load_config(CONFIGS / "miniature.yaml", "motion_module", ["data.world=null", "data.source=videos"]).data
    assert whole.world.web and found.world == WorldConfig() and found.batch == whole.batch


@pytest.mark.parametrize("name", ["miniature", "sd15"])
@pytest.mark.parametrize("stage", STAGES)
def test_samples_are_drawn_on_the_way(name, stage):
    training = load_config(CONFIGS / f"{name}.yaml", stage).training
    assert 0 < training.validate_every < training.steps


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"look: {\xff}")
    with pytest.raises(AnimkitError, match="c.yaml is not valid YAML: 'utf-8'"):
        load_config(tmp_path / "c.yaml", "look")


def test_two_weightings_of_one_loss_are_refused_before_anything_is_made(tmp_path):
    (tmp_path / "c.yaml").write_text(MINIMAL)
    with pytest.raises(AnimkitError, match="look: min_snr_gamma and snr_plus_one are two weightings"):
        load_config(tmp_path / "c.yaml", "look", ["min_snr_gamma=5", "snr_plus_one=true"])


def test_a_missing_stage():
    with pytest.raises(AnimkitError, match="no stage 'looks'"):
        load_config(CONFIGS / "miniature.yaml", "looks")
