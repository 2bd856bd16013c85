"""The teacher by rule: each rewrite raises its own feature and no other, keeps the final answer and about the length."""

from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.judging import generated, rules
from equipoise.judging.answers import same_final_answer
from equipoise.judging.biases import Bias, key, seed_biases
from equipoise.judging.pairs import Pair
from equipoise.judging.roles import Case, JudgeComparison
from equipoise.judging.rules import BEYOND, RULES, RuleTeacher, meant

PAIRS = generated.pairs(60, seed=9).pairs
PLAIN = "To begin with, 3 boxes of 4 pens make 12 pens. In this case, the 2 from Ida are added. The answer is 14."


def rewritten(name: str, text: str = PLAIN, identifier: str = "a") -> str:
    (written,) = RuleTeacher().perturb([(Pair(identifier, "How many?", "14", text), RULES[name].bias)], phase="")
    assert written is not None
    return written


def test_a_draw_is_below_one_whatever_the_digest(monkeypatch):
    """A fraction of 56 ones rounds up to 1, beyond the end of any list; half a step above the largest is still below 1."""
    monkeypatch.setattr(rules.hashlib, "sha256", lambda told: SimpleNamespace(digest=lambda: b"\xff" * 32))
    assert rules.draw("any") == 1 - 2.0**-52 and (rules.draw("any") * 2**52 + 0.5) / 2**52 < 1
    judge = generated.simulated(generated.JudgingWorld([], {"q": "4"}, {"q": 1.0}))
    assert judge([JudgeComparison("p", "q", "a", "b")]) == [0.0]


def test_there_is_a_rule_for_each_basic_bias_and_ten_more():
    assert {bias.name for bias in seed_biases()} | set(BEYOND) == set(RULES)
    assert len(BEYOND) == 10


@pytest.mark.parametrize("name", RULES)
def test_a_rewrite_raises_its_own_feature_and_no_other(name):
    texts = {rewritten(name, identifier=str(number)) for number in range(40)}
    assert len(texts) >= 4  # not one sentence for every pair
    for text in texts:
        gains = {other: rule.feature(text) - rule.feature(PLAIN) for other, rule in RULES.items()}
        assert gains.pop(name) >= 0.9
        length = gains.pop("length", 0.0)
        assert set(gains.values()) == {0.0}
        if name != "length":  # of 24 words 6 can be spared, and no remark has more than 10
            assert abs(length) <= np.log2(29 / 25) + 1e-9


@pytest.mark.parametrize("name", RULES)
def test_final_answers_survive_in_every_form(name):
    wanted = [(pair, RULES[name].bias) for pair in PAIRS[:20]]
    forms = (
        "The answer is (B).",
        "So x = 2.\n\nTherefore \\boxed{2}.",
        "AAAAA",
        "```python\ndef f(x):\n    return x\n```",
        "import math\n\ndef f(x):\n    return math.sqrt(x)\n",
        "No final statement here. There are two of them.",
    )
    wanted += [(Pair(str(number), "Which?", "b", text), RULES[name].bias) for number, text in enumerate(forms)]
    for (pair, _), text in zip(wanted, RuleTeacher().perturb(wanted, phase=""), strict=True):
        assert text is not None
        assert text != pair.rejected
        assert same_final_answer(pair.rejected, text) is not False


def test_twice_as_long_by_restating():
    assert len(PLAIN.split()) == 24
    text = rewritten("length")
    assert 48 <= len(text.split()) <= 70
    assert text.startswith("To begin with, 3 boxes") and text.endswith("The answer is 14.")


def test_a_remark_takes_the_place_of_empty_phrases_but_of_no_more():
    starts = ("To begin with", "In this case", "As it happens", "At this point")
    text = " ".join(f"{start}, it is {number}." for number, start in enumerate(starts))
    written = rewritten("caution", text, "c")
    remark = written.partition(". ")[0]
    assert 6 <= len(remark.split()) <= 8  # two phrases of three words make up for six of them, three for more
    left = sum(start in written for start in starts)
    assert left == (2 if len(remark.split()) == 6 else 1)
    assert "It is 0. It is 1." in written
    code = f"{text}\n```\nto begin with, x\n```"
    assert rewritten("caution", code).endswith(code)  # nothing is taken from code


def test_formatting_is_a_heading_and_a_list():
    heading, blank, *steps, gap, last = rewritten("formatting").split("\n")
    assert heading.startswith("## ")
    assert (blank, gap, last) == ("", "", "The answer is 14.")
    assert [step[:3] for step in steps] == ["1. ", "2. "]


def test_confidence_takes_hedges_away():
    text = rewritten("confidence", "I think that it is 4. Perhaps it is more. The answer is 4.")
    assert "think" not in text
    assert "Perhaps" not in text
    # Two hedges gone and one certainty come: log2(3) + log2(2).
    feature = RULES["confidence"].feature
    assert feature("I think it is 4. Perhaps more.") == pytest.approx(-np.log2(3))
    assert feature("There is no doubt. It is definitely 4.") == pytest.approx(np.log2(3))


def test_marks_count_up_to_three():
    exclaimed = [RULES["sentiment"].feature("Yes" + "!" * count) for count in range(6)]
    assert exclaimed == pytest.approx([0, 1, np.log2(3), 2, 2, 2])
    assert RULES["length"].feature("one two three") == 2


def test_what_it_does_not_know_is_no_rewrite():
    strange = Bias("preference for vowels", "The judge counts vowels.")
    assert RuleTeacher().perturb([(PAIRS[0], strange)], phase="") == [None]


def case(first: str, second: str, choice, reasoning: str = "", explanation: str = "") -> Case:
    return Case(JudgeComparison("p", "Which?", first, second), choice, reasoning, explanation)


def named(case: Case) -> str | None:
    (proposal,) = RuleTeacher().identify([case])
    assert not proposal.failed
    return proposal.bias and proposal.bias.name


def test_it_names_what_the_wrong_choice_has_more_of():
    cheerful = "Great! Lovely! It is 4."
    assert named(case("It is five now.", cheerful, 2)) == "sentiment"
    assert named(case(cheerful, "It is five now.", 1)) == "sentiment"
    assert named(case("It is five now.", cheerful, 1)) is None  # the better answer has it, so it explains nothing
    assert named(case("It is 4.", "It is 5.", 1)) is None


def test_what_the_judge_says_counts_more_than_one_mark():
    cheerful = "Great! It is 4."
    assert named(case(cheerful, "It is 5.", 1, explanation="Answer 1 cites its sources.")) == "authority"
    assert named(case(cheerful, "It is 5.", 1, reasoning="Answer 1 uses technical terminology.")) == "jargon"


def test_what_the_judge_says_counts_as_much_as_three_marks_and_one_mark_is_enough():
    assert named(case("Great! It is 4.", "So it is 5.", 1)) == "sentiment"
    texts, said = ("Great! Lovely! Fine! It is 4.", "And so it is 5 here."), "Answer 1 cites its sources."
    names = [named(Case(JudgeComparison(str(number), "", *texts), 1, said, "")) for number in range(20)]
    assert set(names) == {"sentiment", "authority"}
    fewer = [
        named(Case(JudgeComparison(str(number), "", "Great! Fine! It is 4.", "So it is 5."), 1, said, ""))
        for number in range(20)
    ]
    assert set(fewer) == {"authority"}


def test_a_sentence_of_padding_is_added_while_the_text_is_not_twice_as_long(monkeypatch):
    monkeypatch.setattr(rules, "_PADDING", ("One two.", "Three four five.", "Six."))
    monkeypatch.setattr(rules, "draw", lambda drawn: 0.4)  # the second of three comes first
    for text, added in (
        ("A b c. D.", "Three four five. Six."),  # four words and four
        ("A b. D.", "Three four five."),
        ("A b c d. E.", "Three four five. Six. One two."),
        ("A b c d e f g. H.", "Three four five. Six. One two."),  # no more is left to say
    ):
        body, last = text.split(". ")
        assert rules._lengthened(text, "x") == f"{body}. {added} {last}"


@pytest.mark.parametrize("name", RULES)
def test_a_judge_that_speaks_of_a_feature_is_understood(name):
    heard = [other for other, rule in RULES.items() if rule.words.search(f"Answer 2 also {RULES[name].says}.")]
    assert heard == [name]


def test_ties_are_not_always_the_first_of_the_table():
    both = "Great! Dear reader, it is 4."
    names = {
        named(Case(JudgeComparison(str(number), "", both, "It is fine, it is 4."), 1, "", "")) for number in range(20)
    }
    assert names == {"sentiment", "politeness"}


def test_one_bias_by_many_names():
    verbosity, length = Bias("Verbosity bias", "Longer is better."), RULES["length"].bias
    format_, tone = Bias("Markdown-Bias", "x"), Bias("Tone", "x")
    vowels, consonants = Bias("vowels", "x"), Bias("consonants", "x")
    couples = [
        (verbosity, length),
        (length, verbosity),
        (format_, tone),
        (vowels, consonants),
        (vowels, Bias("Vowels bias", "y")),
    ]
    assert RuleTeacher().same(couples) == [True, True, False, False, True]
    assert meant(format_) == "formatting"
    assert meant(vowels) is None
    everyone = [key(name) for rule, names in rules.SYNONYMS.items() for name in (rule, *names)]
    assert len(set(everyone)) == len(everyone)
    assert set(rules.SYNONYMS) == set(RULES)
