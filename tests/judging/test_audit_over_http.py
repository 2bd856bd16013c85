"""The job against a server that fails, dies in the middle and comes back: nothing lost, nothing asked twice."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from equipoise.chat import client
from equipoise.core.errors import BudgetReached, WorkFailed
from equipoise.judging import generated
from equipoise.judging.job import audit_judge
from equipoise.judging.rules import RULES
from faulty_server import FaultyServer

pytest.importorskip("inspect_ai")

KEY = "sk-test-0123456789abcdef"


class JudgeServer(FaultyServer):
    """Judges by a hash of the answers' texts; one question in five gets HTTP 500 or 429 or half an answer the first time."""

    def _answer(self, handler, body, question, times):
        odd = hashlib.sha256(question.encode()).digest()
        if times == 1 and odd[0] % 5 == 0:
            if odd[1] % 3:
                self._send(handler, (500, 429)[odd[1] % 2], '{"error": {"message": "not now"}}')
            else:
                self._send(handler, 200, '{"id": "1", "choi')
            return
        shown = [question.split(f"[Answer {n}]\n")[1].split("\n[End of answer")[0] for n in (1, 2)]
        first, second = (hashlib.sha256(text.encode()).digest() for text in shown)
        self._say(handler, question, f"Reasoning: read both.\nDecision: {1 if first > second else 2}")


@pytest.fixture
def request_for(tmp_path, monkeypatch):
    """Asks for the same audit again and again."""
    monkeypatch.setenv("LOCAL_API_KEY", KEY)
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.001)
    monkeypatch.setattr(client, "PATIENCE", 3)
    monkeypatch.setattr("inspect_ai.model._model.format_traceback", lambda *_: ("", ""), raising=False)
    library = tmp_path / "library.json"
    told = [{"name": name, "definition": RULES[name].bias.definition} for name in ("length", "authority")]
    library.write_text(json.dumps(told), encoding="utf-8")
    pairs = generated.pairs(24, seed=1).pairs

    def ask(server: FaultyServer, out: Path, **options):
        words = {"biases": library, "rounds": 0, "judge_url": server.url, "max_connections": 4, **options}
        return audit_judge("openai-api/local/m", "rules", pairs, out=out, **words)

    return ask


def test_a_server_that_dies_and_comes_back_costs_nothing_twice(tmp_path, request_for):
    with JudgeServer() as server:
        server.die_after = 30
        with pytest.raises(WorkFailed, match="stored; the same command goes on") as error:
            request_for(server, tmp_path / "a")
        assert f"{tmp_path}/a.partial/report.html" in str(error.value)
        stored = sum(server.answered.values())
        assert stored > 15
        with pytest.raises(BudgetReached):
            server.die_after = None
            failed = json.loads((tmp_path / "a.partial" / "account.json").read_text())["total"]["statuses"]["failed"]
            request_for(server, tmp_path / "a", budget=f"calls={stored + failed + 5}")
        done = request_for(server, tmp_path / "a")
        assert done.complete and set(server.answered.values()) == {1}
        assert max(Counter(server.asked).values()) <= 1 + 2 * 5  # four retries, in each of two attempts that failed
        account = json.loads((tmp_path / "a" / "account.json").read_text())["total"]
        assert account["statuses"]["answered"] == sum(server.answered.values())
        quiet = request_for(server, tmp_path / "b")
    assert quiet.biases == done.biases
    files = ("judgements.parquet", "hardened.jsonl")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    everything = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(everything) > 12 and not any(KEY.encode() in file.read_bytes() for file in everything)
