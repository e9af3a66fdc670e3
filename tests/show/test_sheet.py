"""A sheet puts every picture whole into its row and column, with labels where they say something new."""
import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.show.filmstrip import BAND, GAP
from animkit.show.sheet import MARGIN, sheet


def plain(*colour, h=8, w=8):
    return np.full((h, w, 3), colour, np.uint8)


def test_pictures_stand_in_their_row_and_column_and_equal_labels_once():
    drawn = sheet({"first": {"a": plain(1, 2, 3), "b": plain(4, 5, 6)}, "second": {"a": plain(7, 8, 9), "b": plain(9, 9, 9)}},
                  "four colours", size=16)
    pixels = np.asarray(drawn)
    assert drawn.alt == "four colours" and pixels.shape == (BAND + 16 + GAP + 16, MARGIN + 2 * (GAP + 16), 3)
    for (row, column), colour in {(0, 0): (1, 2, 3), (0, 1): (4, 5, 6), (1, 0): (7, 8, 9), (1, 1): (9, 9, 9)}.items():
        y, x = BAND + row * (16 + GAP), MARGIN + GAP + column * (16 + GAP)
        assert (pixels[y:y + 16, x:x + 16] == colour).all()
    assert (pixels[:BAND, MARGIN + GAP:MARGIN + GAP + 16] < 128).any(), "a column has its label"
    assert (pixels[:BAND, :MARGIN] == 255).all() and (pixels[BAND:BAND + 16, :MARGIN] < 128).any(), "a row's is beside it"


def test_other_columns_bring_their_own_labels_and_rows_without_names_no_margin():
    pixels = np.asarray(sheet({"": {"a": plain(9, 9, 9, h=4, w=16)}, " ": {"b": plain(9, 9, 9, h=4, w=16)}}, "two", size=16))
    assert pixels.shape[0] == 2 * (BAND + 4) + GAP
    assert np.asarray(sheet({"": {"a": plain(9, 9, 9, h=4, w=16)}}, "one", size=16)).shape == (BAND + 4, 16, 3)


@pytest.mark.parametrize("rows, alt, message", [
    ({}, "x", "at least one row"), ({"r": {}}, "x", "at least one picture"), ({"r": {"a": plain(1, 1, 1)}}, " ", "needs alt"),
    ({"r": {"a": np.zeros((4, 4, 3))}}, "x", "'r a' of a sheet is float64"), ({"": {"a": np.zeros((4, 4), np.uint8)}}, "x", "'a' of")])
def test_what_cannot_be_shown_is_refused(rows, alt, message):
    with pytest.raises(AnimkitError, match=message):
        sheet(rows, alt)
