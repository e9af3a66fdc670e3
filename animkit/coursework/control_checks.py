"""The exercises of notebook 08, control, checked in the cell where they are answered, as those in checks.py are."""
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from animkit.coursework.verdict import Wrong, compare, exercise


@exercise("a picture of depth", "near is white, far is black, and the unit of length does not matter.")
def depth_picture(answer: Callable[[Tensor], Tensor]) -> None:
    """answer(depth) -> 255 * nearest / depth, for distances f h w; the nearest point is that of the whole clip."""
    depth = torch.tensor([[[2.0, 4.0], [8.0, 16.0]], [[4.0, 4.0], [10.0, 40.0]]]).double()
    least = depth.min()
    each = rearrange(depth, "f h w -> f (h w)").min(1).values[:, None, None]
    span = (depth - least) / (depth.max() - least)
    for unit in (1.0, 100.0):
        compare(f"the picture of depths in {'metres' if unit == 1 else 'centimetres'}", answer(depth.clone() * unit),
                255 * least / depth, "f h w", {
            "far is white and near is black: a depth ControlNet is shown inverse depth.": 255 * depth / depth.max(),
            "that is 1 / depth: the nearest point must be 255, whatever the unit of depth is.":
                255 / (depth * unit),
            "every frame has a nearest point of its own: the clip would flicker. Take that of the whole clip.":
                255 * each / depth,
            "that falls in a straight line from near to far; inverse depth has most of its contrast where things are near.":
                255 * (1 - span),
            "the nearest point is 1, and it must be 255.": least / depth})


@exercise("a zero convolution", "it adds nothing at first, and learns from the first step on.")
def zero_convolution(answer: Callable[[int], nn.Module]) -> None:
    """answer(c) -> a new 1 x 1 convolution c -> c whose output is zero whatever comes in, and which can be trained."""
    conv = answer(4)
    if not isinstance(conv, nn.Conv2d):
        raise Wrong(f"give an nn.Conv2d, not a {type(conv).__name__}: did you forget `return`?")
    if conv.kernel_size != (1, 1) or (conv.in_channels, conv.out_channels) != (4, 4):
        raise Wrong(f"it must go from c to c channels, 1 x 1 pixels; yours goes from {conv.in_channels} to "
                    f"{conv.out_channels} with {conv.kernel_size[0]} x {conv.kernel_size[1]}.")
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    if not bool((conv.weight == 0).all()):
        raise Wrong("its weight is not zero: nn.init.zeros_ sets it in place.")
    compare("its output", conv(x), torch.zeros_like(x), "b c h w", {
        "its bias is not zero: every channel is shifted by a constant.": repeat(
            torch.zeros(4) if conv.bias is None else conv.bias.detach(), "c -> b c h w", b=2, h=3, w=3)})
    if not all(p.requires_grad for p in conv.parameters()):
        raise Wrong("it has requires_grad = False: its values must be zero, but let it learn.")
    (conv(x) - x).pow(2).mean().backward()
    if conv.weight.grad is None or not conv.weight.grad.any():
        raise Wrong("no gradient reaches its weight: it would stay zero for ever.")


@exercise("a picture for every frame of every clip", "clip after clip, and within each the pictures in their order.")
def pictures_for_frames(answer: Callable[[Tensor, int], Tensor]) -> None:
    """answer(pictures, b) -> (b f) c h w: the same f pictures (f c h w) for each of b clips."""
    pictures = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    compare("your batch", answer(pictures.clone(), 2), repeat(pictures, "f c h w -> (b f) c h w", b=2), "(b f) c h w", {
        "the batch is (b f): all pictures of the first clip come first. You repeat each picture b times in a row "
        "(repeat_interleave); repeat the whole list.": pictures.repeat_interleave(2, 0),
        "every frame gets the first picture: each frame has its own.": pictures[:1].repeat(6, 1, 1, 1),
        "the clips stand on an axis of their own, b f c h w: merge the first two, (b f).": pictures.expand(2, -1, -1, -1, -1)},
        b=2, f=3)


@exercise("intersection over union", "1 for equal masks, 0 for masks that do not overlap; too large a mask lowers it too.")
def mask_overlap(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """answer(found, given) -> f numbers, for two masks f h w of booleans."""
    found, given = torch.zeros(2, 6, 6, dtype=torch.bool), torch.zeros(2, 6, 6, dtype=torch.bool)
    found[0, :3, :4], given[0, 1:4, 1:5] = True, True
    found[1, :2, :2], given[1, :3, :3] = True, True
    both, either = (found & given).sum((1, 2)).double(), (found | given).sum((1, 2)).double()
    areas = found.sum((1, 2)) + given.sum((1, 2))
    compare("the overlap", answer(found.clone(), given.clone()), both / either, "f", {
        "divide by the union, not by the mask that was given: one that covers everything would be perfect.":
            both / given.sum((1, 2)),
        "divide by the union, not by the mask that was found: one that covers a single pixel would be perfect.":
            both / found.sum((1, 2)),
        "that is the Dice coefficient, 2 both / (one + other); the union counts what both share only once.":
            2 * both / areas,
        "the union counts what both share only once: found | given, not the sum of the areas.": both / areas,
        "that is one number for all frames: sum over height and width only.": both.sum() / either.sum(),
        "that is the share of pixels on which the masks agree; pixels where both are empty do not count here.":
            (found == given).double().mean((1, 2))})
