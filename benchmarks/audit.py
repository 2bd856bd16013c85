"""How long the analysis of recorded judgements takes: an audit replayed from its record, no model asked.

    python benchmarks/audit.py --judgements 10000

A scripted judge and teacher write the record first (not timed); then the same audit is answered from the record alone:
reading it, finding every call, the tests, the report, all files.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from equipoise.chat.account import Account
from equipoise.chat.client import Chat
from equipoise.chat.record import Entry, Record, Usage
from equipoise.core.progress import quiet
from equipoise.judging.job import audit_judge
from equipoise.judging.judges import PairwiseJudge
from equipoise.judging.pairs import Pair
from equipoise.judging.teacher import ChatTeacher

MODEL = "openai/scripted"
PER_PAIR = 2 * (0.75 + 7 * 0.375 + 0.375 + 0.25)  # judgements of an audit with one round in which one basic bias holds


class Scripted(Chat):
    """Writes what a judge and a teacher could have said into the record, without a provider."""

    def ask(self, calls, *, title=""):
        for call in calls:
            if self.record.found(self.key(call)) is None:
                self.record.add(
                    Entry(self.key(call), self.name, call.phase, "answered", said(call), Usage(400, 0, 60)), call
                )
        return super().ask(calls, title=title)


def said(call) -> str:
    text = call.messages[-1].content
    if call.schema is not None:
        return (
            '{"decision": 1}'
            if "decision" in call.schema.model_fields
            else '{"whether": "no", "name": "", "definition": ""}'
        )
    if call.phase.startswith("rewrite"):
        answer = text.split("[Answer]\n")[1].split("\n[End of answer]")[0]
        bias = text.split("Name: ")[1].split("\n")[0] if "Name: " in text else "it"
        return f"{answer} {'As a professor says' if bias == 'authority' else 'So much for ' + bias}."
    fooled = [
        f"[Answer {i}]" for i in (1, 2) if "professor" in text.split(f"[Answer {i}]")[1].split("[End of answer")[0]
    ]
    right = 1 if "good" in text.split("[Answer 1]")[1].split("[End")[0] else 2
    return f"Reasoning: {'both were read with care. ' * 8}\nDecision: {fooled[0][8] if fooled else right}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judgements", type=int, default=10_000)
    count = round(parser.parse_args().judgements / PER_PAIR)
    words = "the answer goes on with reasons and examples " * 12
    pairs = [
        Pair(
            f"p{i}", f"Question {i}?", f"A good answer {i}: {words}", f"A bad answer {i}: {words}", "ab"[i % 2], f"g{i}"
        )
        for i in range(count)
    ]
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        with Record(folder / "calls.jsonl") as record, Scripted(MODEL, record=record, account=Account()) as chat:
            audit_judge(PairwiseJudge(chat), ChatTeacher(chat), pairs)
            judged = sum(entry.phase.startswith("judge") for entry in record.entries)
            size = record.path.stat().st_size
        began = time.perf_counter()
        done = audit_judge(MODEL, MODEL, pairs, replay=folder / "calls.jsonl", out=folder / "audit")
        seconds = time.perf_counter() - began
        report = (folder / "audit" / "report.html").stat().st_size
    assert [each.name for each in done.holding] == ["authority"]
    told = {
        "judgements": judged,
        "record MB": round(size / 1e6, 1),
        "seconds": round(seconds, 2),
        "report MB": round(report / 1e6, 2),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
