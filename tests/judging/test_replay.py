"""A whole audit by a real small model, replayed from its record: no model, no network, no Inspect.

Recorded with Qwen2.5-Coder-1.5B-Instruct (Q4_K_M, the file whose sha256 begins with cc324af070c2) as judge and teacher:

    equipoise audit judge --judge FILE --teacher FILE --pairs tests/judging/recorded/pairs.jsonl
        --biases tests/judging/recorded/library.json --rounds 1 --candidates 2

Whoever changes a prompt or what is asked records anew, and compresses the calls.jsonl of that folder.
"""

import gzip
import json
import sys
from pathlib import Path

import pytest

from equipoise.core.errors import BadInput
from equipoise.judging.job import audit_judge
from equipoise.judging.pairs import read_pairs
from equipoise.judging.verdicts import parse_decision

HERE = Path(__file__).parent / "recorded"
RECORD = HERE / "qwen2.5-coder-1.5b.jsonl.gz"
MODEL = "equipoise/qwen1.5b.gguf@cc324af070c2"


def replayed(out: Path, record: Path = RECORD):
    library = HERE / "library.json"
    words = {"biases": library, "rounds": 1, "candidates": 2, "replay": record, "out": out}
    return audit_judge(MODEL, MODEL, HERE / "pairs.jsonl", **words)


@pytest.fixture(scope="module")
def calls() -> list[dict]:
    with gzip.open(RECORD, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file][1:]


@pytest.fixture
def without_inspect(monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)  # an import of it fails


def test_the_replay_gives_what_the_record_says(tmp_path, calls, without_inspect):
    done = replayed(tmp_path / "a")
    # By hand, from the prompts as they were recorded: which pair, in which order, with the answers as they are in the file.
    right: dict[str, list[bool]] = {}
    first = []
    for call in calls:
        text, choice = call["messages"][-1]["content"], parse_decision(call["text"])
        for pair in read_pairs(HERE / "pairs.jsonl"):
            shown = [pair.chosen, pair.rejected]
            for better, answers in ((1, shown), (2, shown[::-1])):
                asked = [f"[Question]\n{pair.question}\n", *(f"[Answer {n}]\n{a}\n" for n, a in enumerate(answers, 1))]
                if call["phase"] == "judge/selection" and all(part in text for part in asked):
                    right.setdefault(pair.id, []).append(choice == better)
                    first.append(choice == 1)
    assert done.complete and done.sizes == (3, 5, 5) and len(first) == 10
    assert done.position.first == pytest.approx(sum(first) / 10) == 0.7
    assert done.position.both_right == pytest.approx(sum(map(all, right.values())) / 5) == 0.6
    assert {each.name for each in done.biases} == {"authority", "sentiment"} and not done.holding
    authority = next(each.selection for each in done.biases if each.name == "authority")
    assert (authority.before.wrong, authority.before.of, authority.left_out) == (1, 6, 2)


def test_the_account_is_that_of_the_record(tmp_path, calls, without_inspect):
    replayed(tmp_path / "a")
    total = json.loads((tmp_path / "a" / "account.json").read_text(encoding="utf-8"))["total"]
    assert total["calls"] == len(calls) == sum(total["statuses"].values())
    for name, field in (("prompt_tokens", "prompt"), ("generated_tokens", "generated")):
        assert total[name] == sum(call["usage"][field] for call in calls)


def test_six_replays_are_one(tmp_path, without_inspect):
    told = set()
    for i in range(6):
        replayed(tmp_path / str(i))
        told.add((tmp_path / str(i) / "result.json").read_bytes())
    assert len(told) == 1


def test_a_call_that_was_not_recorded_is_one_sentence(tmp_path, without_inspect):
    short = tmp_path / "calls.jsonl.gz"
    with gzip.open(RECORD, "rb") as file, gzip.open(short, "wb") as copy:
        copy.writelines(file.readlines()[:20])
    with pytest.raises(BadInput, match=f"no answer of {MODEL} to") as error:
        replayed(tmp_path / "a", short)
    assert "\n" not in str(error.value)
