"""The Inspect task on a scripted model and on stored scores: its measures are the library's, read back from the log."""

import asyncio
import json
import math

import numpy as np
import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval as run
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelName, ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import SampleScore, Score, Target
from inspect_ai.solver import TaskState
from inspect_ai.util import registry_info

from equipoise.core.errors import BadInput
from equipoise.routing import routerxbench as bench
from equipoise.tasks.routerxbench import axes, confidence, routerxbench, unasked

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


def sure(said, **known):
    output = ModelOutput.from_content("mockllm/model", said)
    state = TaskState(ModelName("mockllm/model"), "7", 0, "Q?", [], output=output, metadata=known)
    return asyncio.run(confidence()(state, Target(""))), state


def test_a_reply_without_a_number_is_a_half_and_counted():
    for said, value, unread in (
        ("Confidence: 35", 0.35, False),
        ("I cannot say.", 0.5, True),
        ("Confidence: 50", 0.5, False),
    ):
        score, _ = sure(said)
        assert (score.value, score.metadata["unread"], score.answer) == (value, unread, said)
    score, state = sure("Confidence: 35", score=-3)
    assert score.value == -3.0 and not score.metadata
    assert asyncio.run(unasked()(state, None)) is state


def test_axes_are_the_librarys_over_all_and_by_domain():
    def rows(domains):
        return [
            SampleScore(
                score=Score(value=0.5 if said is None else said / 100, metadata={"unread": said is None}),
                sample_metadata={"weak": weak / 2, "strong": strong, "solved": weak, "domain": domain},
            )
            for said, weak, strong, domain in zip(SAID, WEAK, STRONG, domains, strict=True)
        ]

    score = np.array([0.5 if each is None else each / 100 for each in SAID])
    weak, strong, solved = np.array(WEAK) / 2, np.array(STRONG, float), np.array(WEAK, float)

    def expected(inside):
        return {
            "AUROC": bench.auroc(score[inside], solved[inside]),
            "LPM": bench.lpm(score[inside], weak[inside], strong[inside], band=(0.1, 0.6)),
            "MPM": bench.mpm(score[inside], weak[inside], strong[inside], band=(0.2, 0.7), budget=(0.1, 0.6)),
            "HCR": bench.hcr(score[inside], weak[inside], strong[inside], band=(0.2, 0.7)),
            "weak": weak[inside].mean(),
            "strong": strong[inside].mean(),
        }

    found = axes((0.1, 0.6), (0.2, 0.7))(rows("xyzxyzxy"))
    wanted = expected(slice(None)) | {"no number": 1 / 8}
    for start, name in enumerate("xyz"):
        wanted |= {f"{measure} in {name}": value for measure, value in expected(slice(start, None, 3)).items()}
    assert found == pytest.approx(wanted, nan_ok=True) and list(found) == list(wanted)
    assert list(axes()(rows("xxxxxxxx"))) == list(wanted)[:7]
    two = axes()(rows("xxxxxxxy"))
    assert two["weak in y"] == 0.5 and two["strong in x"] == pytest.approx(5 / 7)
    assert all(math.isnan(value) for value in axes()([]).values())


def test_samples_hold_what_the_axes_need(labels):
    task = routerxbench(str(labels), score="mine", domain="b")
    assert [sample.id for sample in task.dataset] == ["1", "3", "5", "7"]
    assert [sample.metadata["score"] for sample in task.dataset] == [-1.0, -3.0, -5.0, -7.0]
    assert [sample.metadata["weak"] for sample in task.dataset] == WEAK[1::2]
    assert [sample.metadata["strong"] for sample in task.dataset] == STRONG[1::2]
    assert [sample.metadata["solved"] for sample in task.dataset] == WEAK[1::2]
    asked = routerxbench(str(labels)).dataset
    assert len(asked) == 8 and "score" not in asked[3].metadata and "Question 3?" in asked[3].input
    for part in ("budget", "quality"):
        with pytest.raises(BadInput, match="band"):
            routerxbench(str(labels), **{f"{part}_low": 0.5, f"{part}_high": 0.4})


def test_inspect_knows_the_task_and_its_parts():
    told = registry_info(routerxbench)
    assert (told.type, told.name) == ("task", "equipoise/routerxbench") and registry_info(unasked()).type == "solver"
    assert registry_info(confidence()).type == "scorer" and len(registry_info(confidence()).metadata["metrics"]) == 1
    assert registry_info(axes()).metadata == {"scores": "unreduced"}  # every epoch's score counts


def test_a_stored_score_asks_no_model_and_replies_are_the_likeliest(labels):
    asked, stored = routerxbench(str(labels)), routerxbench(str(labels), score="mine")
    assert registry_info(stored.solver).name.endswith("unasked") and asked.config.temperature == 0.0
    assert registry_info(asked.solver).name.endswith("generate")
