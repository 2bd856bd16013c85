"""Terminal answers of responses, by hand and on JudgeBench, whose two answers of a pair ought to differ."""

import os
from collections import Counter
from pathlib import Path

import pytest

from equipoise.data.records import read_rows
from equipoise.judging import answers
from equipoise.judging.answers import final_answer, same_final_answer

CASES = {
    "Hence my answer is:\nFFFFF": "f",
    "The letter is (A).\n```DDDDD```": "d",
    "Answer: \\( \\boxed{5200} \\) feet. As a string:\n\\[\n\\text{HHHHH}\n\\]": "h",
    "so \\boxed{1} or rather $\\boxed{\\frac{1}{2}}$.": "\\frac{1}{2}",
    "\\boxed{\\text{B}}": "b",
    "The area is \\boxed{x^{2} + {1}": None,  # never closed
    "Thus the value is 18. Therefore, the answer is 1,018.": "1018",
    "The answer is 3.50 euros. I am sure.": "3.50euros",
    "**Final answer:** 42\n\nHope this helps!": "42",
    "Final answer is (B) 2.03": "b",
    "The answer is option C.": "c",
    "# Final Answer\n\n7 apples": "7apples",
    "10 * 4 = <<10*4=40>>40\n#### 40": "40",
    "The total is **12**, but then **4**.": "4",
    "**Conclusion**: nothing.\n\n**Steps:** none": None,
    "Thus, the answer in **bold** is:\n**yes, no, yes**": "yes,no,yes",
    "### Answer:\nThe genre is ***Reggae***. Thus:\n\n": "reggae",
    "The answer is:\n- School: yes\n- Farm: no\n\n**yes, no**": "yes,no",
    "I cannot say.": None,
    "": None,
    "yes": None,  # valid Python, and no program
    "The answer is " + "very " * 60: None,
}


@pytest.mark.parametrize("text", CASES)
def test_forms(text):
    assert final_answer(text) == CASES[text]


def test_code_is_compared_by_its_syntax():
    code = "def f(x):\n    return x+1\n"
    wordy = 'def f( x ):\n    """Return the \'AAAAA\' successor."""\n    # the answer is 5\n    return x + 1'
    assert final_answer(code) == final_answer(wordy) == "def f(x):\n    return x + 1"
    fenced = f"As experts agree, the **best** solution is:\n```python\n{wordy}\n```\nIt is fast."
    assert same_final_answer(code, fenced) is True
    assert same_final_answer(code, fenced.replace("x + 1", "x + 2")) is False
    assert final_answer(f"First\n```python\n{code}```\nthen\n```python\ng = 1\n```") == "g = 1"
    assert final_answer("```cpp\nint  main() {\n return 0; }\n```") == "int main() { return 0; }"
    assert final_answer('def f():\n    """Only words."""') == "def f():\n    pass"
    # A choice after a program is the answer, and a block of words is no program.
    assert final_answer(f"```python\n{code}```\nSo CCCCC.") == "c"
    assert final_answer("```plaintext\nAnswer: ***blueberry***\n```") == "blueberry"


@pytest.mark.parametrize("unit", ["**", "**a ", "\\boxed{", "answer ", "####\n", "```\n", "** \t", "answer: - ", "("])
def test_a_text_of_one_mark_again_and_again(unit):
    """A model that repeats itself to its limit must not hold up an audit; patterns that backtrack took minutes here."""
    found = final_answer(unit * 4000 + " " * 10_000)
    assert found is None or len(found) < 10


def test_text_that_the_parser_of_python_chokes_on():
    assert final_answer("x = " + "(" * 5000) is None
    assert final_answer("x = 1\0") is None


def test_a_rewrite_that_loses_or_changes_the_answer():
    assert same_final_answer("The answer is 4.", "Clearly, experts say the answer is **4**!") is True
    assert same_final_answer("The answer is 4.", "The answer is 5.") is False
    assert same_final_answer("The answer is 4.", "Who knows?") is False
    assert same_final_answer("Who knows?", "Nobody.") is None
    assert same_final_answer("So the best choice is", "So the best choice is C: CCCCC") is False


def test_the_answer_that_stands_last_counts_besides_a_box_in_the_working():
    working = "First \\boxed{3} boxes. "
    assert final_answer(f"{working}The answer is 5.") == "5"
    assert same_final_answer(f"{working}The answer is 5.", f"{working}So the answer is 5!") is True
    assert same_final_answer(f"{working}The answer is 5.", f"{working}The answer is 6.") is False
    assert same_final_answer(f"{working}The answer is 5.", "First \\boxed{4} boxes. The answer is 5.") is False
    assert same_final_answer("So \\boxed{5}.", "So \\boxed{5}. Correction: the answer is 6.") is False
    assert same_final_answer("So \\boxed{5}.", "So \\boxed{5}. The answer is clear to experts.") is True
    assert same_final_answer("Hence my answer is:\nFFFFF", "All said, the answer is F.") is True


def test_what_reads_the_same_is_the_same_answer():
    for rewritten in ("The answer is 4\u200b2.", "The answer is ４２.", "The an\u00adswer is ٤٢."):
        assert same_final_answer("The answer is 42.", rewritten) is True
    assert same_final_answer("The answer is 42.", "The answer is ４３.") is False


def test_emphasis_is_no_other_answer():
    """A rewrite may add bold words, on open questions and after a bold answer; it may not replace that answer."""
    assert same_final_answer("Try Kyoto in spring.", "Try **Kyoto** in spring, **experts** agree.") is None
    assert same_final_answer("So it is **yes, no**.", "So it is **yes, no**. I am **certain**.") is True
    assert same_final_answer("So it is **yes, no**.", "I am **certain**: the answer is yes, no.") is True
    assert same_final_answer("So it is **yes, no**.", "So it is **no, no**. I am **certain**.") is False
    assert same_final_answer("The answer is 4.", "Surely **4**, **without doubt**.") is True


def test_judgebench_answers():
    """All forms of JudgeBench: 1,230 of 1,240 answers. One of a pair is right and one is not, so that they must differ; in
    24 pairs they do not (four letters in place of five, the same number marked right and wrong), all read by eye."""
    root = os.environ.get("EQUIPOISE_DATA")
    if not root:
        pytest.skip("EQUIPOISE_DATA does not name the folder that holds judgebench/.")
    found, differ = Counter(), Counter()
    for _, _, row in read_rows(Path(root) / "judgebench" / "judgebench.jsonl.gz"):
        answers = [final_answer(row[side]) for side in ("response_A", "response_B")]
        found[row["domain"]] += sum(answer is not None for answer in answers)
        if None not in answers:
            differ[row["domain"], answers[0] != answers[1]] += 1
    assert found == {"knowledge": 571, "reason": 296, "math": 217, "code": 146}
    assert {domain: differ[domain, False] for domain in found} == {"knowledge": 1, "reason": 8, "math": 14, "code": 1}
    assert sum(differ.values()) == 610


def test_an_answer_has_120_characters_at_most():
    assert answers._sentence("a" * 120) == "a" * 120 and answers._sentence("a" * 121) == ""
    assert answers._sentence(f"{'a' * 120}. And so on.") == "a" * 120
