from typing import Annotated, Literal

import pytest
from pydantic import Field

from equipoise.core.errors import BadInput
from equipoise.study import Arm, Claim, Outcome, Select, Study, better, both, matched, study

ARMS = [Arm("new"), Arm("old", kind="baseline"), Arm("coin", kind="control")]
OUTCOMES = [Outcome("kept", better="higher"), Outcome("lost", better="lower")]


def declare(**changes) -> Study:
    parts = {"arms": ARMS, "outcomes": OUTCOMES, "claims": [], "run": lambda run: None, "budget": "calls"}
    return Study(**{**parts, **changes})


def claim(outcome="kept", arm="new", rival="old", **more) -> Claim:
    return Claim("text", source="abstract", test=better(outcome, arm=arm, rival=rival), **more)


def test_grid_points_are_the_product_over_the_settings():
    arm = Arm("new", depth=2, grid={"rate": [1e-4, 3e-4], "beta": [0, 1]})
    assert arm.points() == (
        {"depth": 2, "rate": 1e-4, "beta": 0},
        {"depth": 2, "rate": 1e-4, "beta": 1},
        {"depth": 2, "rate": 3e-4, "beta": 0},
        {"depth": 2, "rate": 3e-4, "beta": 1},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [*ARMS, Arm("new")]}, "Two arms are called 'new'"),
        ({"outcomes": [*OUTCOMES, Outcome("kept", better="lower")]}, "Two outcomes are called 'kept'"),
        ({"arms": ARMS[:2]}, "no control arm"),
        ({"arms": ARMS[:1]}, "no baseline and no control arm"),
        ({"claims": [claim(arm="newer")]}, "no arm 'newer'. Did you mean 'new'"),
        ({"claims": [claim(outcome="keep")]}, "no outcome 'keep'. Did you mean 'kept'"),
        ({"claims": [Claim("t", source="s", test=both(claim().test, claim(rival="cion").test))]}, "no arm 'cion'"),
        (
            {"claims": [Claim("t", source="s", test=matched("lots", arm="new", rival="old", judge="kept"))]},
            "no outcome 'lots'",
        ),
        ({"claims": [claim()] * 4}, "4 primary claims; at most 3"),
        ({"arms": [Arm("new", grid={"rate": [1, 2]}), *ARMS[1:]]}, "'old' has 1, another has 2"),
        ({"arms": [Arm(a.name, kind=a.kind, grid={"rate": [1, 2]}) for a in ARMS]}, "how a point is chosen"),
        ({"select": Select("keptt")}, "no outcome 'keptt'"),
        ({"seeds": 0}, "not 0 from 0"),
        ({"first_seed": -1}, "all from 0 to 999999; not 10 from -1"),
        ({"first_seed": 999_991}, "not 10 from 999991"),
    ],
)
def test_inconsistent_studies_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        declare(**changes)


def test_what_is_consistent_is_not_refused():
    grid = {"rate": [1, 2]}
    arms = [Arm(a.name, kind=a.kind, grid=grid) for a in ARMS] + [
        Arm("oracle", kind="reference", fixed="nothing to tune")
    ]
    known = [Claim("t", source="card, known in advance", test=claim().test)] * 2
    untested = [Claim("t", source="s", untested="needs 8 GPUs")]
    declare(arms=arms, select=Select("kept"), claims=[claim()] * 3 + [claim(primary=False), *known, *untested])
    declare(arms=ARMS[:1], without_control="deterministic")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Arm("new", kind="methode"), "Did you mean 'method'"),
        (lambda: Arm("a/b"), "no name for an arm"),
        (lambda: Arm("new", loss=print), "JSON values"),
        (lambda: Arm("new", rate=float("nan")), "JSON values"),
        (lambda: Arm("new", rate=1, grid={"rate": [1]}), "both a setting and in the grid"),
        (lambda: Arm("new", grid={"rate": []}), "empty"),
        (lambda: Outcome("kept", better="more"), "outcome 'kept' is 'more'. Known: higher, lower"),
        (lambda: Outcome("kept", better="highr"), "Did you mean 'higher'"),
        (lambda: Select("kept", matched="lost"), "come together"),
        (lambda: Select("kept", matched="lost", level="strongest"), "Known: weakest. It may also be a float."),
    ],
)
def test_parts_are_checked_when_they_are_made(make, message):
    with pytest.raises(BadInput, match=message):
        make()


@study("choices", paper="arXiv:1", trades="a for b")
def choices(
    steps: Annotated[int, Field(ge=1, le=10)] = 3,
    rate: float = 0.1,
    how: Literal["fast", "slow"] = "fast",
    careful: bool = False,
    layers: list[int] = [1, 2],  # noqa: B006 (pydantic copies defaults)
    limit: int | None = None,
) -> Study:
    """First line.

    More.
    """
    assert isinstance(steps, int) and isinstance(layers, list)
    return declare(seeds=steps)


def test_options_from_the_command_line_get_their_types():
    given = {"steps": "7", "rate": "1e-3", "how": "slow", "careful": "true", "layers": "[4, 5]", "limit": "null"}
    assert choices.options(given, text=True) == {
        "steps": 7,
        "rate": 1e-3,
        "how": "slow",
        "careful": True,
        "layers": [4, 5],
        "limit": None,
    }
    assert choices.options({"layers": "4,5"}, text=True)["layers"] == [4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 1}, "no option 'step'. Did you mean 'steps'"),
        ({"steps": 0}, "'steps' should be at least 1, but got '?0'?"),
        ({"steps": "many"}, "'steps' should be a valid integer.*'many'"),
        ({"how": "quick"}, "'how' is 'quick'. Known: fast, slow"),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(BadInput, match=message):
        choices.build(**options)
    with pytest.raises(BadInput, match=message):
        choices.options({key: str(value) for key, value in options.items()}, text=True)


def test_a_built_study_knows_what_it_is_and_rebuilds_from_its_options():
    built = choices.build(steps=4)
    assert (built.name, built.paper, built.trades, built.summary) == ("choices", "arXiv:1", "a for b", "First line.")
    assert built.seeds == 4
    assert choices.build(**built.options).options == built.options


def test_options_need_types_and_defaults():
    with pytest.raises(BadInput, match="'steps' needs a default"):

        @study("x", paper="", trades="")
        def without(steps: int) -> Study: ...


def test_options_are_described_with_their_ranges():
    rows = {row["name"]: (row["type"], row["default"]) for row in choices.parameters.described()}
    assert rows["steps"] == ("integer from 1 to 10", 3)
    assert rows["how"] == ("one of fast, slow", "fast")
    assert rows["limit"] == ("integer or null", None)
