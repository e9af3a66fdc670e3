"""The playground: drawing is a plain function that leaves the animator as it was; the view only calls it."""
from contextlib import contextmanager

import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.show import Clip, widgets


class Toy:
    """Stands for an animator: a clip whose red says the seed, green the look's alpha, blue the motion's."""
    base, defaults = "toy", {"steps": 3}

    def __init__(self):
        self.alpha, self.calls = {"motion": 1.0}, []

    def insert(self, what, name):
        if what == "damaged":
            raise AnimkitError("the file is <damaged>")
        self.alpha[name] = 1.0
        return name

    def remove(self, name):
        del self.alpha[name]

    def __call__(self, prompt, seed, steps=3, callback=None, progress=True, **guided):
        self.calls.append((prompt, seed, steps, dict(self.alpha), *guided.values()))
        if "purple" in prompt:
            raise AnimkitError("unknown word 'purple'")
        if "vast" in prompt:
            raise MemoryError("no room for <it>")
        for step in range(steps):
            if callback:
                callback(step, None, None)
        colour = [seed, round(100 * self.alpha.get("look", 0)), round(100 * self.alpha["motion"])]
        return Clip(np.full((2, 8, 8, 3), colour, np.uint8), prompt=prompt, settings={"seed": seed})


def test_draw_takes_look_and_alphas_for_one_clip():
    toy = Toy()
    clip = widgets.draw(toy, "a bird", 7, look="ink", alphas={"look": 0.5, "motion": 0.25})
    assert clip.array[0, 0, 0].tolist() == [7, 50, 25]
    assert toy.alpha == {"motion": 1.0}
    assert widgets.draw(toy, "a bird", 7, alphas={"look": 0.5}).array[0, 0, 0].tolist() == [7, 0, 100]


@pytest.mark.parametrize("options", [{"prompt": "purple", "look": "ink"}, {"prompt": "a bird", "look": "damaged"}])
def test_draw_leaves_the_animator_as_it_was_when_it_fails(options):
    toy = Toy()
    with pytest.raises(AnimkitError):
        widgets.draw(toy, alphas={"motion": 0.1, "look": 0.1}, **options)
    assert toy.alpha == {"motion": 1.0}


@contextmanager
def shown(monkeypatch):
    seen = []
    monkeypatch.setattr(widgets, "display", seen.append)
    yield seen


def test_playground_draws_what_its_controls_say(monkeypatch):
    toy = Toy()
    with shown(monkeypatch) as seen:
        play = widgets.playground(toy, "a bird", seed=3, looks={"ink": "ink.safetensors"}, steps=2)
    # stills of the first clip, as an output of its own, for where no widget runs
    assert len(seen) == 1 and seen[0].alt.startswith("Filmstrip") and "a bird" in seen[0].alt
    assert play.clip._film() in play.shown.value and list(play.alphas) == ["motion", "look"]
    play.prompt.value, play.seed.value, play.look.value = "a house", 9, "ink"
    play.alphas["look"].value, play.alphas["motion"].value = 0.75, 0.5
    assert len(toy.calls) == 1  # nothing is drawn before the button is pressed
    play.run.click()
    assert toy.calls[-1] == ("a house", 9, 2, {"motion": 0.5, "look": 0.75})
    assert play.clip.array[0, 0, 0].tolist() == [9, 75, 50] and play.clip._film() in play.shown.value
    assert play.bar.value == play.bar.max == 2 and not play.run.disabled
    assert toy.alpha == {"motion": 1.0}


def test_playground_says_what_was_wrong(monkeypatch):
    with shown(monkeypatch):
        play = widgets.playground(Toy(), "a bird", looks={"bad": "damaged"})
    before = play.clip
    play.prompt.value = "a purple bird"
    play.run.click()
    assert play.shown.value == '<p role="alert">unknown word &#x27;purple&#x27;</p>' and not play.run.disabled
    play.look.value = "bad"
    play.run.click()
    assert "&lt;damaged&gt;" in play.shown.value and play.clip is before
    play.look.value, play.prompt.value = "", "a vast bird"
    with pytest.raises(MemoryError):
        play.animate()
    assert play.shown.value == '<p role="alert">MemoryError: no room for &lt;it&gt;</p>' and not play.run.disabled


def test_playground_begins_with_the_clip_it_is_given(monkeypatch):
    toy, clip = Toy(), Clip(np.zeros((2, 8, 8, 3), np.uint8))
    with shown(monkeypatch) as seen:
        play = widgets.playground(toy, clip=clip)
    assert play.clip is clip and len(seen) == 1 and toy.calls == []
    assert list(play.looks) == [] and list(play.alphas) == ["motion"]


def test_a_playground_has_room_for_one_text():
    toy = Toy()
    with pytest.raises(AnimkitError, match="one text.* got {0: 'a bird'}"):
        widgets.playground(toy, {0: "a bird"})
    assert toy.calls == [], "before anything is drawn"


def test_sliders_wait_until_they_are_let_go(monkeypatch):
    with shown(monkeypatch):
        play = widgets.playground(Toy(), "a bird")
    assert all(not slider.continuous_update for slider in play.alphas.values())


def test_one_slider_weighs_the_guidance_towards_all_parts_at_work(monkeypatch):
    toy = Toy()
    toy.alpha |= {"pan left": 0.0, "zoom in": 1.0}
    with shown(monkeypatch):
        play = widgets.playground(toy, "a bird", guided={"pan left": 6.0, "zoom in": 6.0})
    assert toy.calls[-1][4:] == ({"pan left": 6.0, "zoom in": 6.0},)
    assert play.weight.value == 6 and play.weight in shown_controls(play)
    assert play.weight.description == "guided", "the guidance that a clip tells beneath it is the text's"
    play.alphas["pan left"].value, play.weight.value = 0.5, 4.0
    play.run.click()
    assert toy.calls[-1][4:] == ({"pan left": 4.0, "zoom in": 4.0},)
    play.weight.value = 0
    play.run.click()
    assert toy.calls[-1][4:] == (), "a weight of 0 is the paper's way"
    with shown(monkeypatch):
        without = widgets.playground(Toy(), "a bird")
    assert without.weight not in shown_controls(without)


def shown_controls(play):
    return play.children[0].children[0].children
