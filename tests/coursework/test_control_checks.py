"""The exercises of notebook 08: the right answer is right, each planted wrong one is told what is wrong with it."""
import pytest
import torch
from einops import repeat
from torch import nn

from animkit.coursework import control_checks as checks


def conv(zero=("weight", "bias"), train=True, k=1, out=None):
    def answer(c):
        layer = nn.Conv2d(c, out or c, k, padding=k // 2)
        for name in zero:
            nn.init.zeros_(getattr(layer, name))
        return layer.requires_grad_(train)
    return answer


ANSWERS = [
    (checks.depth_picture, lambda d: 255 * d.min() / d, None),
    (checks.depth_picture, lambda d: 255 * d / d.max(), "far is white"),
    (checks.depth_picture, lambda d: 255 / d, "1 / depth"),
    (checks.depth_picture, lambda d: 255 * d.amin((1, 2), keepdim=True) / d, "flicker"),
    (checks.depth_picture, lambda d: 255 * (1 - (d - d.min()) / (d.max() - d.min())), "straight line"),
    (checks.depth_picture, lambda d: None, "return"),
    (checks.zero_convolution, conv(), None),
    (checks.zero_convolution, conv(zero=("weight",)), "bias is not zero"),
    (checks.zero_convolution, conv(zero=("bias",)), "weight is not zero"),
    (checks.zero_convolution, conv(train=False), "let it learn"),
    (checks.zero_convolution, conv(k=3), "3 x 3"),
    (checks.zero_convolution, lambda c: nn.Linear(c, c), "Conv2d"),
    (checks.pictures_for_frames, lambda p, b: repeat(p, "f c h w -> (b f) c h w", b=b), None),
    (checks.pictures_for_frames, lambda p, b: p.repeat_interleave(b, 0), "repeat_interleave"),
    (checks.pictures_for_frames, lambda p, b: p, "shape"),
    (checks.pictures_for_frames, lambda p, b: p[:1].repeat(b * len(p), 1, 1, 1), "the first picture"),
    (checks.pictures_for_frames, lambda p, b: p.expand(b, *p.shape), "an axis of their own"),
    (checks.mask_overlap, lambda a, b: (a & b).sum((1, 2)) / (a | b).sum((1, 2)), None),
    (checks.mask_overlap, lambda a, b: (a & b).sum((1, 2)) / b.sum((1, 2)), "covers everything"),
    (checks.mask_overlap, lambda a, b: (a & b).sum((1, 2)) / a.sum((1, 2)), "single pixel"),
    (checks.mask_overlap, lambda a, b: 2 * (a & b).sum((1, 2)) / (a.sum((1, 2)) + b.sum((1, 2))), "Dice"),
    (checks.mask_overlap, lambda a, b: (a & b).sum() / (a | b).sum(), "one number"),
    (checks.mask_overlap, lambda a, b: (a == b).float().mean((1, 2)), "agree"),
]


@pytest.mark.parametrize("check, answer, said", ANSWERS)
def test_answers_are_told_apart(check, answer, said):
    verdict = check(answer)
    assert verdict.ok == (said is None), verdict
    assert said is None or said in verdict.message, verdict


CHECKS = [check for check in vars(checks).values() if hasattr(check, "exercise")]


def test_every_exercise_has_a_right_answer_and_three_wrong_ones_here():
    for check in CHECKS:
        told = [said for of, _, said in ANSWERS if of is check]
        assert told.count(None) == 1 and len(told) >= 4, check.exercise


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_answer_that_is_not_written_yet_is_to_do_and_nonsense_is_wrong(check):
    def later(*_):
        raise NotImplementedError
    assert check(later).state == "to do"
    for nonsense in (lambda *a: None, lambda *a: "word", lambda *a: torch.zeros(7, 7), lambda: 1, lambda *a: float("nan"), 3):
        assert check(nonsense).state == "wrong"
