"""How arms look, in full: colours by turns, shapes that shift with each turn, dashes by kind."""

import pytest

from equipoise.core.marks import ARM_COLORS, DASHES, SHAPES, Marks, colors, marks


def test_dashes_are_of_the_kind():
    assert DASHES == {"method": (1, 0), "baseline": (7, 3), "control": (2, 3), "reference": (10, 3, 2, 3)}
    assert marks({"a": "control", "b": "reference", "c": "unheard of"}) == (
        Marks("a", "control", 0, "circle", (2, 3)),
        Marks("b", "reference", 1, "square", (10, 3, 2, 3)),
        Marks("c", "unheard of", 2, "triangle-up", (1, 0)),
    )


@pytest.mark.parametrize(
    ("place", "color", "shape"),
    [(0, 0, 0), (7, 7, 7), (8, 0, 1), (9, 1, 2), (15, 7, 0), (17, 1, 3), (63, 7, 6), (64, 0, 0)],
)
def test_past_eight_arms_colours_come_again_with_the_next_shape(place, color, shape):
    found = marks(f"arm {number}" for number in range(65))[place]
    assert found == Marks(f"arm {place}", "method", color, SHAPES[shape], (1, 0))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_of_a_theme_are_numbered(theme):
    found = colors(theme)
    assert [found[f"arm-{number}"] for number in range(8)] == list(ARM_COLORS[theme])
    assert list(found)[5:] == [f"arm-{i}" for i in range(8)] + [f"heat-{i}" for i in range(9)]
