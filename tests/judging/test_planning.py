"""The calls of an audit that is not begun: counted out by hand, and beside what an audit really asks."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest

from equipoise.chat.client import resolve
from equipoise.judging.biases import Bias
from equipoise.judging.biasscope import BiasScopeSettings, biasscope
from equipoise.judging.pairs import Pair
from equipoise.judging.planning import planned
from equipoise.judging.roles import JudgeVerdict, Proposal


def pairs(count, prefix, size=8):
    return [Pair(f"{prefix}{n}", "q" * size, "c" * size, "r" * size, group=f"{prefix}{n}") for n in range(count)]


PARTS = (pairs(5, "d"), pairs(7, "s"), pairs(11, "r"))
LIBRARY = tuple(Bias(name, "x") for name in "abc")


def casting(settings=None, *, scores=False, filters=(), prices=None, **asked):
    words = {"judge": object(), "teacher": object(), "judge_kind": "pairwise", "length_control": False}
    return SimpleNamespace(
        settings=BiasScopeSettings(**{"rounds": 2, "candidates": 4, **(settings or {})}),
        library=LIBRARY,
        scores=scores,
        filters=filters,
        roles=SimpleNamespace(prices=prices),
        asked=SimpleNamespace(**(words | asked)),
    )


def calls(parts=PARTS, **words):
    return planned(parts, (), casting(**words)).calls


# Three biases to begin with, and in two rounds four more each: eleven. Two verdicts of each of 7 pairs as they are, and of
# each of 3 x 7 rewrites and of one rewrite of each of 5 pairs; in the other case of 18 pairs, of 11 x 18 and 2 x 5 and of a
# placebo of each of 11.
PLAIN = {
    "judge": (2 * 7 + 2 * (21 + 5), 2 * 18 + 2 * (198 + 10 + 11)),
    "judge, explaining": (0, 10),
    "teacher, rewriting": (21 + 5, 198 + 15 + 11),
    "teacher, naming": (0, 10),
    "teacher, comparing names": (0, 110),
}


@pytest.mark.parametrize(
    ("words", "other"),
    [
        ({}, {}),
        ({"scores": True}, {"judge": (0, 0)}),
        ({"settings": {"explain": False}}, {"judge, explaining": (0, 0)}),
        ({"filters": ("zoo/f", "zoo/g")}, {"filter zoo/f": (0, 396), "filter zoo/g": (0, 396)}),
        # As many candidates as there are pairs to find them on: thirteen biases.
        (
            {"settings": {"candidates": None}},
            {
                "judge": (66, 2 * 18 + 2 * (13 * 18 + 10 + 11)),
                "teacher, rewriting": (26, 13 * 18 + 15 + 11),
                "teacher, comparing names": (0, 130),
            },
        ),
        (
            {"settings": {"candidates": 9}},
            {
                "judge": (66, 2 * 18 + 2 * (13 * 18 + 10 + 11)),
                "teacher, rewriting": (26, 13 * 18 + 15 + 11),
                "teacher, comparing names": (0, 130),
            },
        ),
        # What holds is judged once more, cut to length: eleven biases on eleven pairs.
        ({"length_control": True}, {"judge": (66, 2 * 18 + 2 * (198 + 10 + 11 * 12))}),
        # One rating an answer; the better ones of the five pairs of discovery are rated as well.
        ({"judge_kind": "pointwise"}, {"judge": (14 + 26 + 5, 36 + 219 + 5)}),
        (
            {"settings": {"rule": "published"}},
            {
                "judge": (2 * 18 + 2 * (54 + 5), 2 * 18 + 2 * (198 + 10 + 18)),
                "teacher, rewriting": (54 + 5, 198 + 15 + 18),
            },
        ),
        # The library alone is measured: no discovery, but preferences of its five pairs.
        (
            {"settings": {"rounds": 0}},
            {
                "judge": (2 * 7 + 2 * 21, 2 * 18 + 2 * (54 + 11)),
                "judge, explaining": (0, 0),
                "teacher, rewriting": (21, 54 + 5 + 11),
                "teacher, naming": (0, 0),
                "teacher, comparing names": (0, 0),
            },
        ),
        (
            {"settings": {"rounds": 0}, "judge_kind": "pointwise"},
            {
                "judge": (14 + 21, 36 + 54 + 11),
                "judge, explaining": (0, 0),
                "teacher, rewriting": (21, 70),
                "teacher, naming": (0, 0),
                "teacher, comparing names": (0, 0),
            },
        ),
        ({"teacher": "rules"}, {name: (0, 0) for name in PLAIN if name.startswith("teacher")}),
    ],
)
def test_calls_by_hand(words, other):
    assert calls(**words) == PLAIN | other


def test_without_a_report_part_what_holds_is_measured_on_the_selection_part():
    assert calls((PARTS[0], PARTS[1], []))["judge"] == (66, 2 * 7 + 2 * (11 * 7 + 10 + 7))


class Counts:
    """A judge that every rewrite fools, and a teacher that finds something new in every case; both count."""

    name = "counts"

    def __init__(self):
        self.judged = self.explained = self.rewritten = self.named = 0

    def compare(self, comparisons, *, phase):
        self.judged += len(comparisons)
        firsts = [each.first + each.second for each in comparisons]
        wanted = ["r" if "!" in both else "c" for both in firsts]
        return [JudgeVerdict(1 if each.first[0] == it else 2) for each, it in zip(comparisons, wanted, strict=True)]

    def explain(self, cases):
        self.explained += len(cases)
        return [""] * len(cases)

    def perturb(self, wanted, *, phase):
        self.rewritten += len(wanted)
        return [f"{pair.rejected}!" for pair, _ in wanted]

    def identify(self, cases):
        self.named += len(cases)
        return [Proposal(Bias(f"new {self.named} {n}", "x")) for n in range(len(cases))]

    def same(self, couples):
        return [False] * len(couples)


def test_the_plan_is_what_an_audit_asks_that_finds_everything():
    both = Counts()
    settings = BiasScopeSettings(rounds=2, candidates=4)
    big = (PARTS[0], pairs(12, "s"), pairs(14, "r"))
    audit = biasscope(both, both, *big, library=LIBRARY, settings=settings)
    assert len(audit.accepted) == 11
    told = calls(big)
    # Beside the search the audit makes its sets: a placebo, and preferences of the discovery part.
    assert both.judged == told["judge"][1] - 2 * 14
    assert both.rewritten == told["teacher, rewriting"][1] - 14 - 5
    assert both.explained == told["judge, explaining"][1] and both.named == told["teacher, naming"][1]


def test_tokens_by_the_length_of_pairs_and_prices_of_everyone():
    models = {"judge": "openai/j", "teacher": "openai/t"}
    prices = {"openai/j": (1.0, 0.5, 10.0), "openai/t": (2.0, 1.0, 20.0), "openai/f": (4.0, 2.0, 40.0)}
    plan = planned(PARTS, ["one"], casting(filters=("openai/f",), prices=prices, **models))
    pair = 24
    # Characters of a prompt, and tokens of an answer, of each role; four characters are a token.
    sizes = {
        "judge": ("openai/j", pair + 1000, 150),
        "judge, explaining": ("openai/j", pair + 1500, 250),
        "teacher, rewriting": ("openai/t", pair / 2 + 1500, 3),
        "teacher, naming": ("openai/t", pair + 3000, 75),
        "teacher, comparing names": ("openai/t", 800, 10),
        "filter openai/f": ("openai/f", pair + 1000, 150),
    }
    for end in (0, 1):
        prompt = {role: -(-plan.calls[role][end] * size[1] // 4) for role, size in sizes.items()}
        answer = {role: plan.calls[role][end] * size[2] for role, size in sizes.items()}
        assert plan.tokens[end] == sum(prompt.values()) + sum(answer.values())
        cost = sum(
            prompt[role] * prices[size[0]][0] + answer[role] * prices[size[0]][2] for role, size in sizes.items()
        )
        assert plan.usd is not None and plan.usd[end] == pytest.approx(cost / 1e6)
    assert plan.sizes == (5, 7, 11) and plan.left_out == ("one",)
    assert plan.first == tuple(asdict(each) for each in PARTS[0][:3])
    for missing in prices:
        known = {name: each for name, each in prices.items() if name != missing}
        assert planned(PARTS, (), casting(filters=("openai/f",), prices=known, **models)).usd is None
    # Whoever is asked nothing needs no price.
    rules = casting(filters=(), prices={"openai/j": prices["openai/j"]}, judge="openai/j", teacher="rules")
    assert planned(PARTS, (), rules).usd is not None
    assert planned(PARTS, (), casting(prices=prices)).usd is None  # of objects nobody knows the price


def test_a_model_in_a_file_has_the_price_of_its_name_and_digest(tmp_path):
    model = tmp_path / "judge.gguf"
    model.write_bytes(b"weights")
    name, address = resolve(str(model))
    for priced, costs in ((name, True), (address, False)):
        plan = planned(PARTS, (), casting(judge=str(model), teacher="rules", prices={priced: (1.0, 0.5, 10.0)}))
        assert plan.usd is not None and (plan.usd[0] > 0) is costs


def test_the_length_of_pairs_is_that_of_the_first_two_hundred():
    short = planned((pairs(200, "d", 4), pairs(9, "s", 400), pairs(9, "r", 400)), (), casting(judge="openai/j"))
    alike = planned((pairs(200, "d", 4), pairs(9, "s", 4), pairs(9, "r", 4)), (), casting(judge="openai/j"))
    assert short.tokens == alike.tokens
    longer = planned((pairs(199, "d", 4), pairs(10, "s", 400), pairs(9, "r", 400)), (), casting(judge="openai/j"))
    same = planned((pairs(199, "d", 4), pairs(10, "s", 4), pairs(9, "r", 4)), (), casting(judge="openai/j"))
    assert longer.tokens > same.tokens
