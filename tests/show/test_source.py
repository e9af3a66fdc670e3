"""The package's code beside its equations: verbatim, with its place, and an error when it has moved on."""
import re

import pytest

from animkit.base import decode
from animkit.errors import AnimkitError
from animkit.show.source import beside, source
from animkit.temporal_transformer import TemporalAttention, sinusoidal_positions


def test_a_function_is_shown_as_it_stands(repo):
    shown = source(sinusoidal_positions)
    where, first, last = re.match(r"\*(\S+), lines (\d+) to (\d+)\*", shown.markdown).groups()
    lines = (repo / where).read_text().splitlines()[int(first) - 1:int(last)]
    assert where == "animkit/temporal_transformer.py" and lines[0].startswith("def sinusoidal_positions")
    assert "\n".join(lines) in shown.markdown and repr(shown).endswith(lines[-1])
    assert set(shown._repr_mimebundle_()) == {"text/plain", "text/markdown"}


def test_a_part_is_shown_without_its_indent():
    shown = source(TemporalAttention.forward, "q, k, v = self", "if self.record")
    assert shown.text.splitlines()[2].startswith("q, k, v = self.to_q(x)") and "return" not in shown.text
    assert re.search(r", line \d+\n", source(TemporalAttention.forward, "return", "return").text)


def test_equations_stand_beside_their_lines(repo):
    shown = beside(TemporalAttention.forward, {"weights @ v": r"|A| V", "self.pos_encoder(x)": r"z + PE"})
    rows = shown.markdown.splitlines()
    assert len(rows) == 4 and r"$\vert A\vert  V$".replace("  ", " ") in rows[2].replace("  ", " ")
    number = int(rows[2].split("|")[2])
    line = (repo / "animkit/temporal_transformer.py").read_text().splitlines()[number - 1]
    assert line.strip() == "y = weights @ v" and f"``{line.strip()}``" in rows[2]


def test_a_decorated_function_is_shown_from_its_own_file():
    assert "animkit/base.py" in source(decode).markdown and "scaling_factor" in source(decode).text


def test_a_line_loses_the_spaces_that_line_up_its_comment():
    """Inline code keeps them, and a table that a page has no room for is cut."""
    from animkit.sampling import sample
    said = beside(sample, {"x = scheduler.step(": "x"}).markdown
    assert "[0]  # x_t -> x_{t-1}`` |" in said


@pytest.mark.parametrize("call, message", [
    (lambda: beside(TemporalAttention.forward, {"no such piece": "x"}), "has changed"),
    (lambda: beside(TemporalAttention.forward, {"rearrange": "x"}), "in 2 lines .*longer piece"),
    (lambda: source(3), "no source"), (lambda: source(sinusoidal_positions, "absent"), "'absent'"),
    (lambda: source(sinusoidal_positions, "return", "def "), "follows")])
def test_what_cannot_be_shown_is_said(call, message):
    with pytest.raises(AnimkitError, match=message):
        call()
