"""What `prm label` counts, costs and refuses, and how it draws, by hand."""

from types import SimpleNamespace

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.problems import Problem
from equipoise.reinforcement import prm_label_drawing as drawing
from equipoise.reinforcement import prm_labeling as labeling
from equipoise.reinforcement.prm_label_drawing import Completed, Solution
from equipoise.reinforcement.prm_label_policy import ChatPolicy, Drawn
from equipoise.reinforcement.prm_label_solutions import cut

PROBLEM = Problem("p", "q?", ("7", "8"))


def solution(text="one\ntwo\nthree", place=2, number=1):
    return Solution(PROBLEM, place, number, cut(text, "\n"), True)


def test_each_beginning_has_a_number_of_its_own():
    """Place, number and steps are digits to the base 2^20: the draws of one follow from these alone."""
    base = 2**20
    found = solution()
    assert (found.id, drawing.nothing(PROBLEM, 3).number) == ("p/1", 3 * base**2)
    assert [found.beginning(steps).number for steps in (1, 3)] == [(2 * base + 1) * base + 1, (2 * base + 1) * base + 3]
    assert drawing.nothing(PROBLEM, 3).text == "" and found.beginning(1).text.startswith("one")
    assert "three" not in found.beginning(2).text


def test_outcomes_of_every_step():
    drawn = [[{"outcome": 1}, {"outcome": None}], [{"outcome": 0}, {"outcome": 0}]]
    assert Completed(solution(), None, drawn, 0).outcomes(2) == [[1, None], [0, 0]]
    assert Completed(solution(), 1, drawn, 0).outcomes(2) == [[1, None], [0, 0], [1, 1]]


def test_a_step_that_was_cut_is_no_step():
    assert drawing.written(Drawn("a\nb", True), "\n").steps == ("a", "b")
    assert drawing.written(Drawn("a\nb", False), "\n").steps == ("a",)
    assert drawing.written(Drawn("a", False), "\n") is None and drawing.written(Drawn("<think>a", True), "\n") is None


def test_what_is_drawn_together():
    def parts(sizes, most):
        return list(drawing._together("abcde"[: len(sizes)], sizes, most))

    assert parts([2, 2, 2, 2, 2], 4) == [["a", "b"], ["c", "d"], ["e"]]
    assert parts([5, 1, 3, 1], 4) == [["a"], ["b", "c"], ["d"]] and parts([9], 4) == [["a"]] and parts([], 4) == []
    assert parts([1, 1, 3], 4) == [["a", "b"], ["c"]] and parts([1, 3], 4) == [["a", "b"]]


def test_an_outcome_or_why_there_is_none():
    def score(value=0.0, missing=False, crashed=False):
        return SimpleNamespace(value=value, missing=missing, crashed=crashed)

    ended, cut_off, refused = Drawn("a", True), Drawn("a", False), Drawn("a", True, refused=True)
    assert drawing._outcome(ended, score(1.0)) == (1, "") and drawing._outcome(ended, score(0.99)) == (0, "")
    assert drawing._outcome(ended, score(1 - 1e-10)) == (1, "")
    assert drawing._outcome(cut_off, score(1.0)) == (None, drawing.CUT)
    assert drawing._outcome(refused, score(1.0)) == (None, drawing.REFUSED)
    assert drawing._outcome(ended, score(missing=True)) == (None, drawing.NO_ANSWER)
    assert drawing._outcome(ended, score(missing=True, crashed=True)) == (None, drawing.NO_ANSWER)
    assert drawing._outcome(ended, score(crashed=True)) == (None, drawing.CRASHED)


def test_silence_is_told_with_how_the_first_one_ends():
    def rows(*outcomes):
        return [{"completions": [[{"outcome": each, "why": "cut", "text": "x" + " y" * 50}]]} for each in outcomes]

    assert drawing.silence([]) == drawing.silence([{"completions": []}]) == drawing.silence(rows(None, 0)) == ""
    said = drawing.silence(rows(None, None))
    assert said.startswith("Not one of 2 completions has an answer that could be judged, the first was cut: raise")
    assert said.endswith(f"It ends with {' y' * 40!r}.")


def tally(calls, prompt=0, generated=0):
    return SimpleNamespace(calls=calls, usage=SimpleNamespace(prompt=prompt, generated=generated))


def test_what_it_took():
    by = {labeling.SOLVE: tally(2, 5, 10), labeling.COMPLETE: tally(3, 7, 20), labeling.PHASE: tally(4, 100, 30)}
    account = SimpleNamespace(total=lambda phase: by[phase], usd=lambda: 0.5)
    done = [SimpleNamespace(completions=[[1, 2], [3]]), SimpleNamespace(completions=[[4]])]
    assert labeling._cost(account, done, 1000) == {  # type: ignore[arg-type]
        "completions": 4.0, "generated tokens": 1030.0, "calls of the model": 5.0, "calls of the judge": 4.0,
        "tokens read by the judge": 100.0, "tokens written by the judge": 30.0, "usd": 0.5,
    }  # fmt: skip
    by |= dict.fromkeys(by, tally(0))
    account.usd = lambda: None
    assert labeling._cost(account, done, 7) == {"completions": 4.0, "generated tokens": 7.0}  # type: ignore[arg-type]


def test_notes_of_answers_and_turns():
    done = [SimpleNamespace(answer=1), SimpleNamespace(answer=0), SimpleNamespace(answer=None)]
    (note,) = labeling._notes(None, done)  # type: ignore[arg-type]
    assert note.startswith("The last step of 2 of 3 solutions has the outcome of the solution's own answer")
    assert labeling._notes(None, done[2:]) == []  # type: ignore[arg-type]
    chat = object.__new__(ChatPolicy)
    for by_turn in (True, False, None):
        chat.by_turn = by_turn
        assert len(labeling._notes(chat, done[2:])) == (by_turn is True)  # type: ignore[arg-type]


def test_who_is_asked_by_chat(tmp_path, monkeypatch):
    for model, engine, url, expected in (
        ("m", "auto", None, False), ("m", "auto", "http://x", True), ("m.GGUF", "auto", None, True),
        ("mockllm/m", "auto", None, True), ("mockllm/m", "transformers", None, False), ("m", "chat", None, True),
        (object(), "auto", "http://x", False), (object(), "transformers", None, False),
    ):  # fmt: skip
        assert labeling._by_chat(model, engine, url) is expected, (model, engine)
    (tmp_path / "mockllm" / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert labeling._by_chat("mockllm/m", "auto", None) is False  # a folder
    for model, engine, said in (("http://x/v1", "auto", "give it as --model-url"), (object(), "chat", "is an object")):
        with pytest.raises(BadInput, match=said):
            labeling._by_chat(model, engine, None)


def test_options_that_would_be_ignored():
    loading = {"device": "auto", "dtype": "auto", "date": None, "trust_remote_code": False}
    roles = SimpleNamespace(model_args=None, model_url=None)
    labeling._check_meaning(True, None, "turn", roles, loading)
    labeling._check_meaning(False, object(), "prefill", roles, {**loading, "device": "cpu"})
    for by_chat, tokenizer, go_on, changed, said in (
        (True, object(), "auto", {}, "^tokenizer is for a model that is rolled out here"),
        (True, None, "auto", {"dtype": "float32"}, "^dtype is for a model that is rolled out here"),
        (True, None, "auto", {"trust_remote_code": True}, "^trust_remote_code is for"),
        (False, None, "turn", {}, "goes on within its own turn"),
    ):
        with pytest.raises(BadInput, match=said):
            labeling._check_meaning(by_chat, tokenizer, go_on, roles, {**loading, **changed})
    for name in ("model_args", "model_url"):
        with pytest.raises(BadInput, match=f"{name} is for a model that is asked by chat"):
            labeling._check_meaning(False, None, "auto", SimpleNamespace(**{**vars(roles), name: "x"}), loading)


def test_separators_as_they_are_typed():
    assert [labeling._separator(each) for each in (";", "\\n", "\\t;", " ; ")] == [";", "\n", "\t;", " ; "]
    for nothing in ("", "  "):
        with pytest.raises(BadInput, match="which is in every text"):
            labeling._separator(nothing)


def test_what_was_left_out_is_told():
    said = labeling._nothing_written({"written twice": 1000, "cut": 2}, "A model.")
    assert said.startswith("Of 1,002 solutions of A model there are 1,000 written twice, 2 cut: raise max_new_tokens")


@pytest.mark.parametrize(("given", "solutions", "samples", "completions", "tokens"), [
    ((3, 2), 4, 5, 25, 25 * 9), ((3, None), 4, 5, 5 * (3 + 4 * 5), (4 + 115) * 9), ((None,), 1, 2, 10, 11 * 9),
])  # fmt: skip
def test_the_estimate_counts_steps(given, solutions, samples, completions, tokens, monkeypatch):
    """Of a solution that is still to be written, six steps, from five of which it is gone on with."""
    problems = tuple(
        SimpleNamespace(problem=PROBLEM, given=None if n is None else cut("\n".join("abcdef"[:n]), "\n")) for n in given
    )
    asked = []

    class Local:
        source, language_model = "m", "lm"

        def shown(self, begun):
            return begun.text

        def prompts(self, beginnings):
            asked.append(len(beginnings))
            return beginnings

    monkeypatch.setattr(labeling, "LocalPolicy", Local)
    monkeypatch.setattr(labeling, "tokens_per_second", lambda lm, prompts, few, temperature: asked.append(few) or 9.0)
    monkeypatch.setattr(labeling.Labeling, "_taking_part", lambda self, *_, **__: labeling.contextlib.nullcontext(
        (Local(), None)))  # fmt: skip
    settings = SimpleNamespace(
        solutions=solutions, samples=samples, max_new_tokens=9, temperature=1.0, model_dump=lambda: {"a": 1}
    )
    made = dict.fromkeys(labeling.Labeling.__dataclass_fields__) | {
        "problems": problems * 1, "settings": settings, "names": {"judge": "rules", "verifier": "v"}
    }  # fmt: skip
    plan = labeling.Labeling(**made).plan()
    written = sum(n is None for n in given) * solutions
    assert (plan.solutions, plan.given) == (
        written + sum(n is not None for n in given),
        sum(n is not None for n in given),
    )
    how = " (of 6 steps in a solution that is still to be written)" if written else ""
    assert plan.estimate.startswith(f"{completions:,} completions{how}, {tokens:,} generated tokens, ")
    assert asked == [len(given), 9] and plan.judge_estimate == "" and len(plan.first) == len(given)
    assert plan.first[0].get("steps") == (None if given[0] is None else list("abcdef"[: given[0]]))
