"""The Inspect task on a scripted model and on stored scores: its measures are the library's, read back from the log."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval as run
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from equipoise.core.errors import BadInput
from equipoise.routing import routerxbench as bench
from equipoise.tasks.routerxbench import routerxbench

SAID = [90, 80, 35, 60, None, 20, 10, 55]
WEAK = [1, 1, 0, 1, 0, 0, 0, 1]
STRONG = [1, 0, 1, 1, 1, 1, 0, 1]


@pytest.fixture
def labels(tmp_path):
    rows = [
        {
            "id": f"{i}",
            "prompt": f"Question {i}?",
            "domain": "ab"[i % 2],
            "weak": WEAK[i],
            "strong": STRONG[i],
            "scores": {"mine": -i},
        }
        for i in range(8)
    ]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scripted(messages, tools, tool_choice, config):
    stated = SAID[int(messages[-1].text.split("Question ")[1][0])]
    output = ModelOutput.from_content("mockllm/model", "I cannot say." if stated is None else f"Confidence: {stated}")
    output.usage = ModelUsage()
    return output


def measured(task, tmp_path):
    model = get_model("mockllm/model", custom_outputs=scripted, memoize=False)
    log = run(task, model=model, log_dir=str(tmp_path / "logs"), display="none")[0]
    assert log.status == "success", log.error
    log = read_eval_log(log.location)
    return {name: each.value for score in log.results.scores for name, each in score.metrics.items()}


def test_a_model_that_states_its_confidence_is_a_router(labels, tmp_path):
    found = measured(routerxbench(str(labels), budget_high=0.5), tmp_path)
    score = np.array([0.5 if each is None else each / 100 for each in SAID])
    assert found["AUROC"] == pytest.approx(bench.auroc(score, WEAK)) and found["no number"] == 1 / 8
    assert found["LPM"] == pytest.approx(bench.lpm(score, WEAK, STRONG, band=(0, 0.5)))
    assert found["HCR"] == pytest.approx(bench.hcr(score, WEAK, STRONG), nan_ok=True)
    assert found["weak"] == 0.5 and found["strong"] == 0.75
    even = slice(0, None, 2)
    assert found["AUROC in a"] == pytest.approx(bench.auroc(score[even], WEAK[even]))


def test_a_stored_score_is_measured_without_a_question(labels, tmp_path):
    found = measured(routerxbench(str(labels), score="mine", domain="b"), tmp_path)
    odd = slice(1, None, 2)
    assert found["AUROC"] == pytest.approx(bench.auroc(-np.arange(8.0)[odd], WEAK[odd]))
    assert found["no number"] == 0 and not any(name.endswith(" in b") for name in found)
    with pytest.raises(BadInput, match="no score 'yours' is stored; known: mine"):
        routerxbench(str(labels), score="yours")
    with pytest.raises(BadInput, match="no prompt is of the domain"):
        routerxbench(str(labels), domain="c")
    with pytest.raises(BadInput, match="band"):
        routerxbench(str(labels), budget_low=0.5)
    assert math.isfinite(found["LPM"])
