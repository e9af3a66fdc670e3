"""A knob draws each value once, shows it, and says what went wrong in its place."""
import numpy as np
import PIL.Image
import pytest

from animkit.errors import AnimkitError
from animkit.show.filmstrip import Picture
from animkit.show.knob import knob


def test_turning_draws_each_value_once():
    asked = []

    def draw(value):
        asked.append(value)
        if value == 3:
            raise AnimkitError("three < four")
        return Picture(PIL.Image.fromarray(np.zeros((2, 2, 3), np.uint8)), f"for {value}")

    turned = knob(draw, (1, 2, 3), 2, "alpha")
    assert 'alt="for 2"' in turned.shown.value
    for value in (1, 2, 1):
        turned.slider.value = value
        assert f'alt="for {value}"' in turned.shown.value
    assert asked == [2, 1]
    turned.slider.value = 3
    assert turned.shown.value == '<p role="alert">three &lt; four</p>'
    assert repr(turned).startswith("Knob 'alpha'")


def test_a_fault_in_the_drawing_stands_in_its_place():
    """JupyterLab tells of it in its log alone."""
    turned = knob(lambda value: Picture(PIL.Image.new("L", (2, 2)), {1: "one"}[value]), (1, 2), 1, "alpha")
    with pytest.raises(KeyError):
        turned.slider.value = 2
    assert turned.shown.value == '<p role="alert">KeyError: 2</p>'
    turned.slider.value = 1
    assert 'alt="one"' in turned.shown.value


def test_play_and_slider_go_together():
    turned = knob(lambda value: Picture(PIL.Image.new("L", (2, 2)), f"for {value}"), ("a", "b", "c"), "b", "shot")
    assert (turned.play.min, turned.play.max, turned.play.value) == (0, 2, 1)
    turned.play.value = 2
    assert turned.slider.value == "c" and 'alt="for c"' in turned.shown.value
    turned.slider.value = "a"
    assert turned.play.value == 0


def test_a_knob_starts_at_one_of_its_values():
    with pytest.raises(AnimkitError, match=r"\(1, 2\); 5 is none"):
        knob(str, (1, 2), 5, "alpha")
