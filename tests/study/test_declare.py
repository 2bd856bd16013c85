from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from equipoise.core.errors import BadInput
from equipoise.study import Arm, Claim, Outcome, Select, Study, better, both, cheaper, matched, study

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


def test_parts_have_these_defaults():
    arm, outcome, select = Arm("a"), Outcome("o", better="lower"), Select("o")
    assert (arm.name, arm.kind, arm.settings, arm.grid, arm.fixed) == ("a", "method", {}, {}, "")
    assert arm.points() == ({},) and arm == Arm("a", kind="method") != Arm("a", x=1)
    assert (outcome.chance, outcome.unit, outcome.description, outcome.log) == (None, "", "", False)
    assert (select.split, select.seeds, select.matched, select.level) == ("validation", 2, None, None)
    built = declare()
    assert (built.seeds, built.prepare, built.select, built.scale, built.without_control) == (10, None, None, "", "")
    assert (built.dial, built.name, built.paper, built.trades, built.summary) == ("step", "", "", "", "")
    assert (built.options, built.source, built.arms, built.outcomes) == ({}, None, tuple(ARMS), tuple(OUTCOMES))
    assert declare(dial=None).dial == "step" and declare(seeds=1_000_000).seeds == 1_000_000


def test_what_is_a_cost():
    built = declare(budget="tokens", outcomes=[*OUTCOMES, Outcome("calls", better="lower")])
    assert (
        built.is_cost("tokens") and built.is_cost("seconds") and not built.is_cost("kept") and not built.is_cost("step")
    )
    assert not built.is_cost("calls") and not built.dial_is_cost  # an outcome of that name goes first
    for dial in ("tokens", "generated_tokens"):
        assert declare(budget="tokens", dial=dial).dial_is_cost and declare(budget="tokens", dial=dial).is_cost(dial)
    assert not declare(dial="round").is_cost("round")


GRID = {"rate": [1, 2]}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: declare(arms=[]), "A study needs at least one arm and one outcome."),
        (lambda: declare(outcomes=[]), "A study needs at least one arm and one outcome."),
        (lambda: declare(seeds=1_000_001), "A study needs at least 1 seed, all from 0 to 999999; not 1000001 from 0."),
        (lambda: declare(arms=ARMS[:1]),
         "The study has no baseline and no control arm; add one, or say why in without_control='...'."),
        (lambda: declare(arms=[ARMS[0], ARMS[2]]),
         "The study has no baseline arm; add one, or say why in without_control='...'."),
        (lambda: declare(arms=[Arm("new", grid=GRID), *(Arm(a.name, kind=a.kind) for a in ARMS[1:])]),
         "Every arm must try the same number of settings: 'old' has 1, another has 2. An arm with nothing to tune has one "
         "and says why: Arm('old', fixed='...')."),
        (lambda: declare(arms=[Arm(a.name, kind=a.kind, grid=GRID) for a in ARMS[1:]] + [Arm("x", grid={"r": [1, 2, 3]})]),
         "Every arm must try the same number of settings: 'old' has 2, another has 3. An arm with nothing to tune has one "
         "and says why: Arm('old', fixed='...')."),
        (lambda: declare(arms=[Arm(a.name, kind=a.kind, grid=GRID) for a in ARMS]),
         "The arms have grids, so the study must say how a point is chosen: select=Select('outcome')."),
        (lambda: declare(select=Select("kept", matched="xyz", level=1)),
         "The study has no outcome 'xyz'. Known: kept, lost."),
        (lambda: declare(select=Select("seconds")), "The study has no outcome 'seconds'. Known: kept, lost."),
        (lambda: declare(claims=[claim(outcome="seconds")]),
         "Claim 'text': seconds is a cost: compare it by a factor, matched(..., by=1.25) or cheaper()."),
        (lambda: declare(claims=[Claim("t", source="s", test=cheaper("kept", arm="new", rival="old"))]),
         "Claim 't': kept is an outcome, and by= is for costs: compare it with margin=."),
        (lambda: declare(claims=[claim()] * 4),
         "The study has 4 primary claims; at most 3 get a verdict, so mark the others primary=False."),
        (lambda: declare(arms=[*ARMS, Arm("new")]), "Two arms are called 'new'; names must differ."),
        (lambda: Select("kept", seeds=0), "Select('kept'): seeds is 0; at least one tuning seed is needed."),
        (lambda: Select("kept", level=0.5), "Select('kept'): matched=None and level=0.5 come together."),
        (lambda: Arm("new", grid={"rate": []}), "Arm 'new': the grid of 'rate' is empty; give at least one value."),
        (lambda: Arm("new", rate=1, grid={"rate": [1]}), "Arm 'new': 'rate' is both a setting and in the grid; keep one."),
        (lambda: Arm("new", grid={"rate": [1, {2}]}),
         "Arm 'new': setting 'rate' is {2}; settings are JSON values (text, finite numbers, true/false, lists, objects)."),
        (lambda: Arm("new", deep=[{"a": {1: 2}}]), "Arm 'new': setting 'deep' has the key 1; keys must be strings."),
        (lambda: Arm("new", deep=({"a": [float("inf")]},)),
         "Arm 'new': setting 'deep' is inf; settings are JSON values (text, finite numbers, true/false, lists, objects)."),
        (lambda: Arm("-a"), "'-a' is no name for an arm: use letters, digits and - _ . + (it names folders and flags)."),
        (lambda: Outcome("a b", better="lower"),
         "'a b' is no name for an outcome: use letters, digits and - _ . + (it names folders and flags)."),
        (lambda: study(3, paper="", trades=""),
         "3 is no name for a study: use letters, digits and - _ . + (it names folders and flags)."),
        (lambda: declare().arm("xyz"), "The study has no arm 'xyz'. Known: coin, new, old."),
    ],
)  # fmt: skip
def test_what_is_inconsistent_is_said_in_full(make, said):
    with pytest.raises(BadInput) as caught:
        make()
    assert str(caught.value) == said


def test_settings_are_any_json_and_a_cost_may_choose():
    arm = Arm("0a_b.c+d-e", nothing=None, yes=True, whole=1, half=0.5, word="w", deep=[{"a": (1, {"b": None})}])
    assert arm.settings == {
        "nothing": None,
        "yes": True,
        "whole": 1,
        "half": 0.5,
        "word": "w",
        "deep": [{"a": (1, {"b": None})}],
    }
    select = Select("seconds", matched="kept", level="weakest")
    assert declare(select=select, outcomes=OUTCOMES).select is select
    cost = Claim("t", source="s", test=cheaper("calls", arm="new", rival="old"))
    assert declare(claims=[cost]).claims == (cost,)
    both_names = [*OUTCOMES, Outcome("calls", better="lower")]  # the budget and an outcome: by= still means the cost
    assert declare(claims=[cost], outcomes=both_names).claims == (cost,)
    fixed = Arm("one", kind="reference", fixed="nothing to tune")
    tuned = [Arm(a.name, kind=a.kind, grid=GRID) for a in ARMS]
    assert len(declare(arms=[*tuned, fixed], select=Select("kept")).arms) == 4


def test_a_built_study_is_named_as_it_was_declared():
    @study("other", paper="p", trades="t")
    def other(steps: int = 2):
        return declare(seeds=steps) if steps < 5 else declare(seeds=0) if steps == 5 else None

    built = other(steps=3)
    assert (built.seeds, built.options, built.source, built.summary) == (3, {"steps": 3}, Path(__file__), "")
    assert built.outcome("lost").better == "lower" and other.parameters.owner == "Study 'other': "
    for steps, said in (
        (5, "A study needs at least 1 seed, all from 0 to 999999; not 0 from 0."),
        (6, "test_declare.py must return a Study, not NoneType."),
    ):
        with pytest.raises(BadInput) as caught:
            other(steps=steps)
        assert str(caught.value) == f"Study 'other': {said}"
