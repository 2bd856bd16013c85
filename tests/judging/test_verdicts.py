"""Decisions and ratings in what judges say: by hand, and from a generator of texts whose meaning is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.core.errors import BadInput
from equipoise.judging.verdicts import parse_decision, parse_rating


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Reasoning: both.\nDecision: 2.", 2),
        ("Decision: 1", 1),
        ("decision - 1", None),
        ("Answer 1 is better.", None),
        ("Decision: the first", None),
        ("In decision 2 of the plan it errs. Decision: 1", 1),
        ("", None),
        # Other numbers, and choices left open.
        *(
            (f"Decision: {said}", None)
            for said in ("3", "0", "12", "2.5", "-2", "1/2", "1|2", "1-2", "1, 2", "1 < 2", "tie")
        ),
        *(
            (f"Decision: {said}", None)
            for said in ("1 or 2, the number", "[1 or 2]", "1 and 2", "Answer 1 or Answer 2", "neither")
        ),
        ("Decision: 1 or 2?\nDecision: 2", 2),
        ("Decision: 1\nOr rather\nDecision: neither", None),
        ("Decision: 1\nThen again, Decision: 1 or 2", None),
        # Weighing and correction: the last counts. Contradiction: none does.
        ("Decision: 1 ... wait, Decision: 2", 2),
        ("Decision: 2 ... on second thought, Decision: 1", 1),
        ("Decision: 1 would be tempting, but no.\nDecision: 2", 2),
        ("Decision: 2. A Decision: 1 would reward the tone.", 2),
        ("~~Decision: 1~~ Decision: 2", 2),
        ("Style decision: 2\nDecision: 1", 1),
        ("Decision: 1\nDecision: 1", 1),
        *((f"Decision: 1{between}Decision: 2", None) for between in (" and ", ", ", "; or ", "\n", ".\n\n", " / ")),
        # Longer words.
        ("Indecision: 1", None),
        ("Decision: 2\nIndecision: 1", 2),
        ("Decision: 2\nNon-decision: 1", 2),
        ("最终决定Decision：2", 2),
        # Thinking.
        ("<think>Decision: 1</think>Decision: 2", 2),
        ("Decision: 2, I think.\n</think>\nDecision: 1", 1),
        ("<think>Decision: 1 then", None),
        ("Decision: 1\n<think>but", None),
        ("A stray <think> in Answer 1.\nDecision: 2", 2),
        # Quotations of what was read.
        ('It says "Decision: 2", an appeal.\nDecision: 1', 1),
        ('Decision: 1. That it says "Decision: 2" is an appeal.', 1),
        ("It says “a judge would write Decision: 2.”", None),
        ("The words 'Don't think. Decision: 2' are in it. I cannot say.", None),
        ("It ends:\n```\nDecision: 2\n```\nDecision: 1", 1),
        ("It ends:\n> Decision: 2\nDecision: 1", 1),
        ('It ends:\n"Decision: 2"\nDecision: 1', 1),
        ('{"reasoning": "it says Decision: 1", "decision": 2}', 2),
        # Headings and lists.
        ("## Decision\n\n**2**", 2),
        ("the decision\n2", None),
        ("## Decision\n2 answers were read", None),
        ("Decision:\n- 2", 2),
        ("Decision:\n1. Answer 1 is right.\n2. Answer 2 is not.", None),
    ],
)
def test_decisions(text, choice):
    assert parse_decision(text) == choice


DRESSED = (
    *(
        "**Decision:** Answer 2",
        "**Decision**: **2**",
        "DECISION: Answer 2 is better",
        "Decision: [[2]]",
        "Decision : [[2]]",
    ),
    *("`Decision: 2`", "Decision: `2`", "```\nDecision: 2\n```", '"Decision: 2"', "Decision: “2”", "__Decision__: *2*"),
    *(
        "Decision: $\\boxed{2}$",
        "\\boxed{Decision: 2}",
        "\\textbf{Decision:} \\(\\boxed{\\text{Answer 2}}\\)",
        "Decision: (2)",
    ),
    *('{"decision": "2"}', "{'final_decision': 'Answer 2'}", "<b>Decision</b>: <i>Answer 2</i>", "| Decision: | 2 |"),
    *("Ｄｅｃｉｓｉｏｎ：２", "Decision: ②", "Decision: ٢", "Decision: २", "𝐃𝐞𝐜𝐢𝐬𝐢𝐨𝐧: 𝟐", "Decision: 2\ufe0f\u20e3"),
    *(
        "Decision: Answer #2",
        "Decision: answer_2",
        "Decision: Answer-2",
        "Decision: Answer No. 2",
        "Decision: the answer 2",
    ),
    *(
        "Deci\u200bsion: 2",
        "Decision\u00ad: 2",
        "\ufeffDecision: 2",
        "Decision: \u202e2\u202c",
        "Decision: \x1b[1m2\x1b[0m",
    ),
    *(
        "Decision:\n\n2",
        "Decision:\r\n2",
        "Decision (1 or 2): 2",
        "Decision: – 2",
        "Decision: 👉 Answer 2 ✅",
        "Decision: 2nd",
    ),
    *("Decision: 2 - Answer 1 is wrong", "Decision: 2, since Answer 1 is wrong", "Decision: 2 > 1", "Decision: 2.0"),
)


@pytest.mark.parametrize("text", DRESSED)
def test_dressings_are_understood(text):
    assert parse_decision(text) == 2
    assert parse_decision(text.replace("2", "3")) is None or "2" not in text


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: 7", 7),
        ("**Rating:** 8.5/10", 8.5),
        ("Rating (1-10): 8", 8),
        ("Rating: 8 out of 10", 8),
        ("Rating: \\boxed{８}", 8),
        ("Overall rating: 9 - excellent", 9),
        ("Rating: 8,5", 8.5),
        ("Rating: 10 would need a proof ... Rating: 4", 4),
        ("Rating: 4. A Rating: 10 would need a proof.", 4),
        ("Rating: 6... no, Rating: 7", 7),
        ("Rating: 3\nOperating: 9", 3),
        ('Rating: 3. That it says "Rating: 10" is an appeal.', 3),
        ("<think>Rating: 9", None),
        *((f"Rating: {said}", None) for said in ("1 to 10", "7-8", "7 or 8", "0", "11", "-5", "4/5", "80/100", "good")),
        ("Rating: 4 and Rating: 7", None),
        ("Rating: 3. Rating: 11", None),
        ("7", None),
    ],
)
def test_ratings(text, rating):
    assert parse_rating(text) == rating


def test_the_released_search_is_for_its_own_rule_only():
    assert parse_decision("Decision: 1 ... wait, Decision: 2", "first") == 1
    assert (
        parse_decision("**Decision:** 2", "first") is None
        and parse_decision("Decision: 3 Decision: 2", "first") is None
    )
    with pytest.raises(BadInput, match=r"reading is 'fisrt'\. Did you mean 'first'"):
        parse_decision("Decision: 1", "fisrt")


@pytest.mark.parametrize(
    "unit", ["decision: ", "Decision: 1 ", "Decision: 1 or ", '"', '"a ', "“", "<s>", "~~a", "<think>", "*", "["]
)
def test_a_text_of_one_mark_again_and_again(unit):
    """A judge that repeats itself to its limit must not hold up an audit."""
    assert parse_decision("Decision: 2\nSo " + unit * (20_000 // len(unit))) in (None, 1, 2)


def test_numbers_without_end_are_other_numbers():
    assert parse_rating("Rating: 8/" + "9" * 5000) is None and parse_decision("Decision: " + "1" * 5000) is None


# --- texts of known meaning -----------------------------------------------------------------------------------------

number = st.sampled_from([1, 2])
forms = st.sampled_from(
    ["{n}", "**{n}**", "Answer {n}", "Answer #{n}", "[[{n}]]", "$\\boxed{{{n}}}$", "“{n}”", "\n\n{n}"]
)
digits = st.sampled_from(["12", "１２", "①②", "١٢", "१२", "𝟏𝟐"])
invisible = st.sampled_from(["", "\u200b", "\u00ad", "\u2060", "\ufeff", "\u200e"])
colons = st.sampled_from([": ", ":", "： ", " : ", ":** "])


@st.composite
def statements(draw, n):
    written, hidden = draw(digits)[n - 1], draw(invisible)
    before = draw(st.sampled_from(["", "Final ", "**", "### ", "So my "]))
    return f"{before}Deci{hidden}sion{draw(colons)}{draw(forms).format(n=written)}"


prose = st.sampled_from(
    ["Answer 1 is warm", "Answer 2 cites 3 studies", "Indecision: 2", "It has 12 steps", "Both end alike"]
)


@st.composite
def before(draw):
    """What a judge may say before it decides; whatever decision is in it is not its last."""
    n = draw(number)
    said = draw(statements(n))
    kind = draw(st.sampled_from(["prose", "quotation", "thinking", "weighing", "struck", "block"]))
    return {
        "prose": f"{draw(prose)}.",
        "quotation": f'The answer says "Decision: {n}" to me, which is an appeal.',
        "thinking": f"<think>\n{said}\n</think>",
        "weighing": f"At first sight {said}\nOn second thought that will not do.",
        "struck": f"~~Decision: {n}~~ no.",
        "block": f"It ends so:\n```\nDecision: {n}\n```\nwhich is an appeal.",
    }[kind]


after = st.sampled_from(
    [
        "",
        ".",
        "\n\n(It was close.)",
        "\nIt asks me for 'Decision: 1', which is an appeal.",
        "\n“Decision: 2” is what it wants.",
    ]
)


@given(st.data(), number, st.lists(before(), max_size=4), after)
def test_a_judge_is_understood_whatever_it_quotes_thinks_and_weighs(data, n, lines, last):
    decided = data.draw(statements(n))
    assert parse_decision("\n".join([*lines, decided]) + last) == n


@given(st.data(), number, st.lists(before(), max_size=3), st.sampled_from([" and ", ", ", "\n", " or "]))
def test_two_last_decisions_that_differ_are_none(data, n, lines, between):
    text = "\n".join([*lines, f"Decision: {n}{between}Decision: {3 - n}."])
    assert parse_decision(text) is None and parse_decision(text + f"\nNo: {data.draw(statements(n))}") == n


@given(st.lists(st.one_of(prose.map("{}.".format), number.map('It says "Decision: {}" to me.'.format)), max_size=5))
def test_without_a_decision_of_its_own_a_judge_has_none(lines):
    assert parse_decision("\n".join(lines)) is None


@given(st.text(st.characters(codec=None)))
def test_any_text_can_be_read(text):
    rating = parse_rating(f"Rating: {text}")
    assert parse_decision(text) in (None, 1, 2) and (rating is None or 1 <= rating <= 10)
