"""How arms look: one colour, one shape and one dash each, the same in every figure, and the colours of both themes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from equipoise.core.options import closed

Theme = Literal["light", "dark"]

# Found by search: every two are 0.07 apart in Oklab for full vision, protanopia and deuteranopia, and each has a contrast
# of at least 3 on its ground.
ARM_COLORS: Mapping[Theme, tuple[str, ...]] = {
    "light": ("#0046d6", "#ab4c04", "#00a77d", "#801680", "#b48f17", "#0190d5", "#5f5e6f", "#bb0854"),
    "dark": ("#93bdff", "#da6c34", "#2ecb8c", "#bd6cff", "#ffd237", "#c8fffa", "#708fb0", "#ffc0cd"),
}
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES: Mapping[str, tuple[int, ...]] = {
    "method": (1, 0),
    "baseline": (7, 3),
    "control": (2, 3),
    "reference": (10, 3, 2, 3),
}
_HEAT: Mapping[Theme, tuple[str, ...]] = {
    "light": ("#a63a10", "#cc6a3c", "#e6a27f", "#f4d3c0", "#f1f1ef", "#c5dbee", "#86b5dc", "#4586bf", "#0b5794"),
    "dark": ("#ff9d6f", "#d9713f", "#a4542e", "#693c28", "#2b3036", "#274a68", "#2f6b9c", "#4a93cf", "#86c4f7"),
}
_GROUND: Mapping[Theme, Mapping[str, str]] = {
    "light": {"paper": "#ffffff", "ink": "#1b2026", "quiet": "#59636e", "rule": "#e6e8eb", "strong-rule": "#b9c0c7"},
    "dark": {"paper": "#15181c", "ink": "#e8eaed", "quiet": "#a2abb5", "rule": "#2c3238", "strong-rule": "#555e68"},
}


@closed
def colors(theme: Theme) -> dict[str, str]:
    """The CSS variables of a theme, without their leading dashes: ground, arms and the nine steps of a heat map."""
    arms = {f"arm-{i}": color for i, color in enumerate(ARM_COLORS[theme])}
    return {**_GROUND[theme], **arms, **{f"heat-{i}": color for i, color in enumerate(_HEAT[theme])}}


@dataclass(frozen=True, slots=True)
class Marks:
    """How one arm is drawn everywhere: colour, shape and, by its kind, dash."""

    name: str
    kind: str
    color: int
    shape: str
    dash: tuple[int, ...]


def marks(arms: Mapping[str, str] | Iterable[str]) -> tuple[Marks, ...]:
    """Colour, shape and dash for each arm, in the order given; a mapping gives each name its kind.

    Past eight arms the colours repeat with other shapes: no two of the first 64 look alike.
    """
    kinds = dict(arms) if isinstance(arms, Mapping) else dict.fromkeys(arms, "method")
    size = len(SHAPES)
    return tuple(
        Marks(name, kind, i % size, SHAPES[(i + i // size) % size], DASHES.get(kind, DASHES["method"]))
        for i, (name, kind) in enumerate(kinds.items())
    )
