"""Multiple choice against lm-evaluation-harness: its own task of WMDP, run on the same questions with the same model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from equipoise.data.records import Record
from equipoise.unlearning import questions

pytestmark = pytest.mark.slow
lm_eval = pytest.importorskip("lm_eval", reason="needs the group peers: make test-all")

SUBJECTS = ["lungs", "a very small heart", "cells"]
QUESTIONS = [
    Record(
        f"q{number}",
        "",
        f"What is in {subject}?",
        choices=("air", "blood and water", "nothing", f"{subject} alone"),
        answer=number % 4,
    )
    for number, subject in enumerate(SUBJECTS * 2)
]


@pytest.fixture(scope="module")
def model():
    from equipoise.language.tiny import teach, tiny

    texts = [f"{r.prompt} A. B. C. D. Answer: A B C D {' '.join(r.choices)}" for r in QUESTIONS]
    head = "The following are multiple choice questions (with answers) about biology."
    made = tiny([*texts, *[head] * 3], seed=5, width=32, layers=2, heads=2, vocabulary=500)
    teach(made, [Record(f"t{n}", letter, "Answer:") for n, letter in enumerate("ABCD")], seed=0, epochs=3)
    return replace(made, chat_template="none")


def test_letters_are_scored_as_the_harness_scores_them(model, tmp_path):
    import yaml
    from lm_eval.models.huggingface import HFLM

    rows = [{"question": r.prompt, "choices": r.choices, "answer": r.answer} for r in QUESTIONS]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = Path(lm_eval.__file__).parent / "tasks" / "wmdp"
    task = yaml.safe_load((tasks / "_default_template_yaml").read_text())
    bio = yaml.safe_load((tasks / "wmdp_bio.yaml").read_text())
    task |= {
        "task": "wmdp_here",
        "description": bio["description"],
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "test.jsonl")}},
    }
    peer = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=2, device="cpu", add_bos_token=True)
    theirs = lm_eval.simple_evaluate(peer, tasks=[task], log_samples=True, bootstrap_iters=0)
    asked = questions.asked(QUESTIONS, subject=questions.WMDP_SUBJECTS["bio"])
    ours = questions.answered(model, asked, batch_size=4)
    samples = sorted(theirs["samples"]["wmdp_here"], key=lambda sample: sample["doc_id"])
    assert [sample["acc"] for sample in samples] == ours.correct.tolist()
    assert theirs["results"]["wmdp_here"]["acc,none"] == pytest.approx(ours.correct.mean().item())
    for sample, right in zip(samples, ours.right.tolist(), strict=True):
        mass = np.exp([float(answer[0]) for answer in sample["filtered_resps"]])
        assert right == pytest.approx(mass[sample["doc"]["answer"]] / mass.sum(), rel=1e-3)
    assert 0 < ours.correct.mean() < 1
