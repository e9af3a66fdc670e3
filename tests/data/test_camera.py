import math

import numpy as np
import pytest
import torch

from animkit.data import camera
from animkit.data.video import resize_and_crop
from animkit.errors import AnimkitError


def coordinates(h, w, frames=5):
    """A clip whose two channels are each pixel's own x and y from the centre: a crop of it says where it looked."""
    y, x = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    return torch.stack([x, y])[:, None].repeat(1, frames, 1, 1).double().float()


def fit_similarity(src, dst):
    """Least squares dst = s R(angle) src + d over points n 2 -> (s, angle, d); in complex numbers z -> a z + b."""
    z, y = src[:, 0] + 1j * src[:, 1], dst[:, 0] + 1j * dst[:, 1]
    (a, b), *_ = np.linalg.lstsq(np.stack([z, np.ones_like(z)], 1), y, rcond=None)
    return abs(a), np.angle(a), (b.real, b.imag)


@pytest.mark.parametrize("shot", camera.SHOTS)
@pytest.mark.parametrize("size", [(24, 24), (20, 32), (32, 20)])
def test_fitted_similarity_recovers_the_rule(shot, size):
    h, w = 96, 120
    frames = 5
    aspect = size[1] / size[0]
    path = camera.crop_path(shot, frames, 0.4, aspect)
    out = camera.apply(coordinates(h, w, frames), path, size)
    half_w, half_h = (aspect, 1) if aspect >= 1 else (1, 1 / aspect)
    unit = min(w / half_w, h / half_h) / 2
    vy, vx = np.mgrid[:size[0], :size[1]]
    view = np.stack([(2 * vx + 1 - size[1]) / size[1] * half_w, (2 * vy + 1 - size[0]) / size[0] * half_h], -1)
    inside = slice(4, -4)  # the picture's own edge is blurred by the antialiasing
    for i, crop in enumerate(path):
        seen = out[:, i].permute(1, 2, 0).numpy()[inside, inside].reshape(-1, 2) / unit
        scale, angle, (dx, dy) = fit_similarity(view[inside, inside].reshape(-1, 2), seen)
        assert (scale, angle, dx, dy) == pytest.approx((crop.scale, crop.angle, crop.dx, crop.dy), abs=4e-3)


def test_any_crop_lies_inside_the_picture_in_every_framing():
    rng = np.random.default_rng(0)
    crops = [camera.any_crop(rng, 0.3) for _ in range(2000)]
    corners = np.array([camera.crop_corners(crop) for crop in crops])
    assert np.abs(corners).max() <= 1 + 1e-9 and np.abs(corners).max() > 0.99
    scale, dx, dy, angle = np.array(crops).T
    assert 0.45 < (angle == 0).mean() < 0.55
    assert np.degrees(angle).min() == pytest.approx(-13.5, abs=0.1) and np.degrees(angle).max() == pytest.approx(13.5, abs=0.1)
    upright = scale[angle == 0]
    assert upright.min() == pytest.approx(0.7, abs=0.01) and upright.max() == pytest.approx(1, abs=0.01)
    assert abs(dx.mean()) < 0.02 and abs(dy.mean()) < 0.02 and min(np.abs(dx).max(), np.abs(dy).max()) > 0.25


def dots(frames, side=160):
    """White dots at known points on black, and the points."""
    points = [(x, y) for x in (-20, 0, 25) for y in (-25, 5, 20)]
    y, x = torch.meshgrid(torch.arange(side) - (side - 1) / 2, torch.arange(side) - (side - 1) / 2, indexing="ij")
    picture = sum(torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 8) for px, py in points)
    return (picture * 255).clamp(0, 255).to(torch.uint8).expand(3, frames, side, side)


def bright_spots(frame):
    """Centroids of the bright blobs of a grey picture, by a labelled threshold."""
    import cv2
    mask = (frame > 60).astype(np.uint8)
    n, labels = cv2.connectedComponents(mask)
    yx = [np.average(np.argwhere(labels == k), axis=0, weights=frame[labels == k]) for k in range(1, n)]
    return np.array(yx)[:, ::-1] - (frame.shape[0] - 1) / 2


def picture_motion(shot):
    """How dots on the screen move from the first frame to the last: growth, turn (clockwise), shift in pixels."""
    out = camera.apply(dots(12), camera.crop_path(shot, 12, 0.25), 160)
    tracked = [bright_spots(out[0, i].numpy().astype(float)) for i in range(12)]
    assert all(len(t) == 9 for t in tracked)
    start, now = tracked[0], tracked[0]
    for later in tracked[1:]:  # follow each dot to the nearest one of the next frame
        now = later[np.argmin(((now[:, None] - later[None]) ** 2).sum(-1), axis=1)]
    return fit_similarity(start, now)


def test_what_a_viewer_sees():
    grow, turn, (x, y) = picture_motion("zoom in")
    assert grow == pytest.approx(1 / 0.75, rel=0.01) and abs(turn) < 0.01 and abs(x) < 1 and abs(y) < 1
    assert picture_motion("zoom out")[0] == pytest.approx(0.75, rel=0.01)
    grow, turn, (x, y) = picture_motion("pan right")  # scenery moves left, by 2 * 0.25 / 0.75 half sides
    assert x == pytest.approx(-2 * 0.25 / 0.75 * 80, rel=0.02) and abs(y) < 1 and grow == pytest.approx(1, abs=0.01)
    assert picture_motion("pan left")[2][0] > 50
    assert picture_motion("tilt up")[2][1] > 50  # scenery moves down
    assert picture_motion("tilt down")[2][1] < -50
    grow, turn, (x, y) = picture_motion("roll clockwise")  # y points down, so a positive angle is clockwise
    assert turn == pytest.approx(0.25 * math.pi / 2, abs=0.01) and grow == pytest.approx(1, abs=0.01) and abs(x) < 1
    assert picture_motion("roll anticlockwise")[1] == pytest.approx(-0.25 * math.pi / 2, abs=0.01)


@pytest.mark.parametrize("shot", camera.SHOTS)
@pytest.mark.parametrize("aspect", [0.6, 1.0, 16 / 9])
@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_no_window_leaves_the_picture_and_one_touches_it(shot, aspect, amount):
    half = np.array([max(1, aspect), max(1, 1 / aspect)])
    corners = np.array([camera.crop_corners(c, aspect) for c in camera.crop_path(shot, 16, amount, aspect)])
    reach = np.abs(corners / half).max()
    assert reach == pytest.approx(1, abs=1e-6)  # inside, and no smaller than it must be


def test_shrinking_is_antialiased():
    board = (torch.arange(256)[:, None] + torch.arange(256)) % 2 * 255
    clip = board.to(torch.uint8).expand(3, 4, 256, 256)
    out = camera.apply(clip, camera.crop_path("zoom in", 4, 0.2), 32).float()
    for small in (out, resize_and_crop(clip, (40, 40)).float()):
        assert (small[..., 2:-2, 2:-2] - 127.5).abs().max() < 8  # a one-pixel checkerboard becomes grey


def test_whole_view_is_the_clip_itself():
    clip = torch.randint(0, 256, (3, 2, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(camera.apply(clip, [camera.Crop(1, 0, 0, 0)] * 2, 32), clip)
    wide = torch.cat([clip, clip, clip], dim=-1)
    assert torch.equal(camera.apply(wide, [camera.Crop(1, 0, 0, 0)] * 2, 32), clip)  # the centre of a wider picture


def test_opposites_are_each_other_backwards_and_mirrored_pans_swap():
    for a, b in camera.OPPOSITE.items():
        assert camera.crop_path(a, 7) == camera.crop_path(b, 7)[::-1]
    clip = dots(4)
    left, right = (camera.apply(clip, camera.crop_path(s, 4), 64) for s in ("pan left", "pan right"))
    mirrored = camera.apply(clip.flip(-1), camera.crop_path("pan right", 4), 64).flip(-1)
    assert (mirrored.int() - left.int()).abs().max() <= 1 and (right.int() - left.int()).abs().max() > 50


def test_errors_name_what_is_wrong():
    with pytest.raises(AnimkitError, match="unknown shot type 'spin'.*zoom in"):
        camera.crop_path("spin")
    with pytest.raises(AnimkitError, match="amount"):
        camera.crop_path("zoom in", amount=1.0)
    with pytest.raises(AnimkitError, match="2 frames"):
        camera.crop_path("zoom in", frames=1)
    with pytest.raises(AnimkitError, match="5 frames"):
        camera.apply(torch.zeros(3, 4, 8, 8), camera.crop_path("zoom in", 5), 8)
    assert camera.shot_name("Zoom-In") == "zoom in"


def test_draw_path_draws_every_window():
    import matplotlib
    matplotlib.use("Agg")
    ax = camera.draw_path(camera.crop_path("roll clockwise", 6, aspect=1.5), aspect=1.5)
    assert len(ax.patches) == 6


def signs(matrix):
    """Growth, clockwise turn, shift right and down of a motion of the picture (2 3), as -1, 0 or 1."""
    scale, turn = math.hypot(matrix[0, 0], matrix[1, 0]), math.atan2(matrix[1, 0], matrix[0, 0])
    return [int(np.sign(v)) * (abs(v) > 0.01) for v in (math.log(scale), turn, matrix[0, 2], matrix[1, 2])]


@pytest.mark.parametrize("shot", camera.SHOTS)
def test_names_mean_what_they_mean_in_the_cartoon_world(shot):
    scene, render = pytest.importorskip("animkit.world.scene"), pytest.importorskip("animkit.world.render")
    assert set(scene.SHOTS) == set(camera.SHOTS)
    first, last = render.camera_matrix(scene.Scene(shot=shot), np.array([0.0, 1.0]), 2)  # pixels; the middle is at 0.5
    centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    world = np.linalg.inv(centre) @ last @ np.linalg.inv(first) @ centre

    def matrix(crop):
        c, s = crop.scale * math.cos(crop.angle), crop.scale * math.sin(crop.angle)
        return np.array([[c, -s, crop.dx], [s, c, crop.dy], [0, 0, 1]])
    path = camera.crop_path(shot)
    assert signs(world) == signs(np.linalg.inv(matrix(path[-1])) @ matrix(path[0]))
