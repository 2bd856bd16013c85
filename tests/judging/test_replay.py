"""A whole audit of a real small model, replayed from its record: no model, no network, no Inspect.

Recorded with `equipoise audit judge --judge smollm2 --teacher smollm2 --pairs tests/judging/recorded/pairs.jsonl --biases
tests/judging/recorded/library.json --rounds 1 --candidates 2`; whoever changes a prompt or what is asked records anew and
compresses its calls.jsonl.
"""

import gzip
import json
import sys
from pathlib import Path

import pytest

from equipoise.core.errors import BadInput
from equipoise.judging.job import audit_judge
from equipoise.judging.judges import parse_decision

HERE = Path(__file__).parent / "recorded"


def replayed(out: Path, record: Path = HERE / "smollm2.jsonl.gz"):
    return audit_judge(
        "smollm2",
        "smollm2",
        HERE / "pairs.jsonl",
        biases=HERE / "library.json",
        rounds=1,
        candidates=2,
        replay=record,
        out=out,
    )


def lines() -> list[dict]:
    with gzip.open(HERE / "smollm2.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file][1:]


def test_the_replay_gives_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)  # an import of it would fail
    done = replayed(tmp_path / "a")
    calls = lines()
    # By hand from the record: the verdicts on the pairs as they are, in the order of the file.
    verdicts = [parse_decision(c["text"]) for c in calls if c["phase"] in ("judge/selection", "judge/report")]
    as_they_are = verdicts[: 2 * done.sizes[1]]
    assert done.complete and done.sizes == (3, 5, 5)
    assert done.biases[0].selection.before.no_verdict == as_they_are.count(None)
    account = json.loads((tmp_path / "a" / "account.json").read_text(encoding="utf-8"))
    assert account["total"]["calls"] == len(calls) == sum(account["total"]["statuses"].values())
    assert account["total"]["generated_tokens"] == sum(call["usage"]["generated"] for call in calls)


def test_a_call_that_was_not_recorded_is_one_sentence(tmp_path):
    short = tmp_path / "calls.jsonl.gz"
    with gzip.open(HERE / "smollm2.jsonl.gz", "rb") as file, gzip.open(short, "wb") as copy:
        copy.writelines(file.readlines()[:20])
    with pytest.raises(BadInput, match="no answer of equipoise/smollm2 to") as error:
        replayed(tmp_path / "a", short)
    assert "\n" not in str(error.value)
