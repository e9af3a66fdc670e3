"""A run's results: whole, comparable, and never a number that is none."""
import json

import numpy as np
import pytest
import torch

import animkit
from animkit.errors import AnimkitError
from animkit.record import record


def test_what_is_written_is_what_is_returned(tmp_path):
    path = tmp_path / "new" / "results.json"
    results = record(path, {"seed": 3, "looks": ["ink"]}, {"psnr": np.float32(31.5), "per": {"a": torch.tensor(2)}},
                     {"all": 1.239})
    assert json.loads(path.read_text()) == results
    assert results["parameters"] == {"seed": 3, "looks": ["ink"]}
    assert results["metrics"] == {"psnr": 31.5, "per": {"a": 2}} and results["seconds"] == {"all": 1.24}
    assert results["device"]["name"] == "cpu" and results["device"]["memory_gib"] > 0
    assert results["versions"]["animkit"] == animkit.__version__ and torch.__version__.startswith(results["versions"]["torch"])


@pytest.mark.parametrize("metrics", [{"x": float("nan")}, {"x": float("inf")}, {"x": np.zeros(3)}, {"x": object()}])
def test_what_is_not_a_number_is_refused_and_the_old_file_stays(tmp_path, metrics):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(AnimkitError, match="results for results.json cannot be written"):
        record(path, {}, metrics, {})
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["results.json"]
