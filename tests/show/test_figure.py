"""A figure becomes a picture with its words, and is shown once."""
import matplotlib.pyplot as plt
import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.show.figure import drawn


def test_a_figure_becomes_a_picture_with_words():
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1])
    picture = drawn(ax, "a line that rises")
    assert 'alt="a line that rises"' in picture._repr_html_() and not plt.fignum_exists(figure.number)
    assert np.asarray(picture).std() > 0


def test_a_figure_without_words_is_refused():
    with pytest.raises(AnimkitError, match="needs alt"):
        drawn(plt.figure(), " ")
    plt.close("all")
