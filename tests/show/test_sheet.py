"""A sheet puts every picture whole into its row and column, with labels where they say something new."""
import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.show.filmstrip import BAND, GAP
from animkit.show.sheet import MARGIN, sheet


def plain(*colour, h=8, w=8):
    return np.full((h, w, 3), colour, np.uint8)


def test_pictures_stand_in_their_row_and_column_and_equal_labels_once():
    drawn = sheet({"first": {"a": plain(1, 2, 3), "b": plain(4, 5, 6)},
                   "second": {"a": plain(7, 8, 9), "b": plain(9, 9, 9)}}, "four colours", size=32)
    pixels = np.asarray(drawn)
    assert drawn.alt == "four colours" and pixels.shape == (BAND + 32 + GAP + 32, MARGIN + 2 * (GAP + 32), 3)
    for (row, column), colour in {(0, 0): (1, 2, 3), (0, 1): (4, 5, 6), (1, 0): (7, 8, 9), (1, 1): (9, 9, 9)}.items():
        y, x = BAND + row * (32 + GAP), MARGIN + GAP + column * (32 + GAP)
        assert (pixels[y:y + 32, x:x + 32] == colour).all()
    assert (pixels[:BAND, MARGIN + GAP:MARGIN + GAP + 32] < 128).any(), "a column has its label"
    assert (pixels[:BAND, :MARGIN] == 255).all(), "a row's label is not above it"
    assert (pixels[BAND:BAND + 32, :MARGIN] < 128).any(), "but beside it"


def test_other_columns_bring_their_own_labels_and_rows_without_names_no_margin():
    wide = plain(9, 9, 9, h=30, w=40)
    assert np.asarray(sheet({"x": {"a": wide}, "y": {"b": wide}}, "two", size=40)).shape[0] == 2 * (BAND + 30) + GAP
    assert np.asarray(sheet({"": {"a": wide}}, "one", size=40)).shape == (BAND + 30, 40, 3)


def test_a_label_too_long_for_its_place_shows_its_beginning():
    """It used to lose both ends."""
    long, longer = "a red bird in the meadow, bouncing up and down", "a red bird in the meadow, bouncing up and down, twice"
    margins = [np.asarray(sheet({label: {"a": plain(9, 9, 9)}}, "one", size=64))[:, :MARGIN] for label in (long, longer)]
    assert np.array_equal(*margins) and (margins[0][:, :2] == 255).all() and (margins[0][:, -2:] == 255).all()


def test_pictures_lower_than_a_label_still_fit():
    pixels = np.asarray(sheet({"x": {"a": plain(9, 9, 9, h=4, w=16)}, "y": {"a": plain(9, 9, 9, h=4, w=16)}}, "two", 16))
    assert (pixels == 9).all(-1).sum() == 2 * 4 * 16


@pytest.mark.parametrize("rows, alt, message", [
    ({}, "x", "at least one row"), ({"r": {}}, "x", "at least one picture"),
    ({"r": {"a": plain(1, 1, 1)}}, " ", "needs alt"), ({"r": {"a": np.zeros((4, 4, 3))}}, "x", "'r a' of a sheet is float64"),
    ({"": {"a": np.zeros((4, 4), np.uint8)}}, "x", "'a' of")])
def test_what_cannot_be_shown_is_refused(rows, alt, message):
    with pytest.raises(AnimkitError, match=message):
        sheet(rows, alt)
