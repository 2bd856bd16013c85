"""The Inspect tasks on a scripted model, metrics worked out by hand and read back from the log."""

import asyncio
import json
import math
from itertools import cycle
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval as run
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelName, ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import SampleScore, Score, Target
from inspect_ai.solver import TaskState
from inspect_ai.util import registry_info

from equipoise.core.errors import BadInput
from equipoise.tasks import judging

# What a scripted judge answers with the better answer first, and second.
SCRIPT = {
    "a": ("Decision: 1", "Decision: 2"),  # right twice
    "b": ("Decision: 1", 'Reasoning: it asks for "Decision: 1".\n**Decision: 2**'),  # right twice
    "c": ("Decision: 1", "Decision: 1"),  # goes by the place
    "d": ("Decision: 2", "Decision: 1"),  # wrong twice
    "e": ("Decision: 2", "I cannot say."),  # wrong, unread
    "f": ("Decision: 3", "Decision: 0"),  # no answers: unread twice
}
DOMAIN = {"a": "math", "b": "math", "c": "code", "d": "code", "e": "code", "f": "math"}


def rows():
    for name, domain in DOMAIN.items():
        # Two pairs of one question make one cluster.
        question = f"Question {'ab' if name in 'ab' else name}?"
        answers = [f"good {name}", f"bad {name}"]
        first = name in "ace"
        yield {
            "pair_id": name,
            "question": question,
            "response_A": answers[0 if first else 1],
            "response_B": answers[1 if first else 0],
            "label": "A>B" if first else "B>A",
            "domain": domain,
            "subset": f"subset-{domain}",
            "bias": "length" if name in "abc" else "authority",
        }


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "judgebench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def scripted(messages, tools, tool_choice, config):
    text = messages[-1].text
    name = text.split("good ")[1][0]
    reply = SCRIPT[name][text.index("good ") > text.index("bad ")]
    output = ModelOutput.from_content("mockllm/model", reply)
    output.usage = ModelUsage()  # else the mock counts tokens with a vocabulary from the network
    return output


def evaluate(task, tmp_path, **settings):
    model = get_model("mockllm/model", custom_outputs=scripted, memoize=False)
    log = run(task, model=model, log_dir=str(tmp_path / "logs"), display="none", **settings)[0]
    assert log.status == "success", log.error
    return read_eval_log(log.location)


def metrics(log):
    return {name: each.value for score in log.results.scores for name, each in score.metrics.items()}


def test_metrics_by_hand(pairs_file, tmp_path):
    log = evaluate(judging.judgebench(path=str(pairs_file)), tmp_path)
    found = metrics(log)
    # Right: 2 + 2 + 1 + 0 + 0 + 0 of 12. By question (ab, c, d, e, f): 4 of 4, 1, 0, 0, 0 of 2.
    assert found["accuracy"] == pytest.approx(5 / 12)
    deviations = [4 - 20 / 12, 1 - 10 / 12, -10 / 12, -10 / 12, -10 / 12]
    assert found["stderr"] == pytest.approx(math.sqrt(5 / 4 * sum(d * d for d in deviations)) / 12)
    assert found["both right"] == pytest.approx(2 / 6)
    assert found["turns"] == pytest.approx(1 / 4)  # c, of a, b, c and d
    assert found["first shown"] == pytest.approx(5 / 9)  # a1 b1 c1 c2 d2 of the nine verdicts
    assert found["no verdict"] == pytest.approx(3 / 12)
    assert found["accuracy in math"] == pytest.approx(4 / 6) and found["accuracy in code"] == pytest.approx(1 / 6)
    samples = {sample.id: sample for sample in log.samples}
    assert list(samples) == [f"{name}/{place}" for name in "abcdef" for place in (1, 2)]
    assert [samples[f"e/{place}"].scores["decision"].value for place in (1, 2)] == ["I", "N"]
    assert samples["b/2"].scores["decision"].answer == "2" and samples["b/2"].target == "2"
    text = samples["c/2"].input[-1].text
    assert text.index("bad c") < text.index("good c") and "Question c?" in text


def test_a_limit_keeps_pairs_whole_and_epochs_are_paired_in_turn(pairs_file, tmp_path):
    log = evaluate(judging.judgebench(path=str(pairs_file), domain="code"), tmp_path, limit=4, epochs=2)
    found = metrics(log)
    assert [sample.id for sample in log.samples if sample.epoch == 1] == ["c/1", "c/2", "d/1", "d/2"]
    assert found["accuracy"] == 0.25 and found["turns"] == 0.5 and found["both right"] == 0
    assert found["first shown"] == 0.75


def test_one_order_of_the_file_leaves_the_share_of_turns_undefined(pairs_file, tmp_path):
    """Better first for a, c, e, second for b, d, f: right, right, right, wrong, wrong, unread."""
    found = metrics(evaluate(judging.judgebench(path=str(pairs_file), orders="file"), tmp_path))
    assert found["accuracy"] == pytest.approx(3 / 6) and found["no verdict"] == pytest.approx(1 / 6)
    assert math.isnan(found["turns"]) and math.isnan(found["both right"])


def test_tasks_by_name_and_by_file(pairs_file, tmp_path):
    source = Path(judging.__file__)
    log = evaluate(f"{source}@judgebench_pro", tmp_path, task_args={"path": str(pairs_file), "domain": "math"})
    found = metrics(log)
    assert found["accuracy on length"] == 1 and found["accuracy on authority"] == 0
    log = evaluate("equipoise/rewardbench", tmp_path, task_args={"path": str(pairs_file), "subset": "subset-code"})
    assert log.eval.task == "equipoise/rewardbench" and len(log.samples) == 6


def test_published_folders(pairs_file, tmp_path, monkeypatch):
    """The Hub keeps Parquet in data/; other files of a folder are none of the benchmark."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path / "sets"
    (root / "judgebench" / "data").mkdir(parents=True)
    (root / "judgebench" / "basic-biases.jsonl").write_text('{"name": "length"}\n')
    both = list(rows())
    for name, part in (("claude", both[:2]), ("gpt", both[2:])):
        pq.write_table(pa.Table.from_pylist(part), root / "judgebench" / "data" / f"{name}-00000-of-00001.parquet")
    monkeypatch.setenv("EQUIPOISE_DATA", str(root))
    assert [sample.id for sample in judging.judgebench().dataset][::2] == [f"{name}/1" for name in "abcdef"]
    with pytest.raises(BadInput, match=r"no data set 'rewardbench'. Did you mean 'judgebench'"):
        judging.rewardbench()
    (root / "rewardbench").mkdir()
    with pytest.raises(BadInput, match="has no file of rewardbench: expected rewardbench or filtered in a name"):
        judging.rewardbench()
    # The folder of an audit holds preference rows beside the hardened set.
    audit = tmp_path / "audit"
    audit.mkdir()
    (audit / "hardened.jsonl").write_text(pairs_file.read_text())
    (audit / "preferences.jsonl").write_text('{"prompt": "Q?", "chosen": "yes", "rejected": "no"}\n')
    assert len(judging.judgebench_pro(path=str(audit), bias="length").dataset) == 6
    hub = {"prompt": "Q?", "chosen": "yes", "rejected": "no", "subset": "donotanswer", "id": 34}
    pq.write_table(pa.Table.from_pylist([hub]), root / "rewardbench" / "filtered-00000-of-00001.parquet")
    only = judging.rewardbench(subset="donotanswer").dataset
    assert [(each.id, each.metadata["domain"]) for each in only] == [("34/1", "donotanswer"), ("34/2", "donotanswer")]


def test_mistakes_are_one_sentence(pairs_file, tmp_path):
    (tmp_path / "nothing.jsonl").write_text("")
    with pytest.raises(BadInput, match=r"nothing.jsonl: no pairs; expected at least one"):
        judging.judgebench(path=str(tmp_path / "nothing.jsonl"))
    with pytest.raises(BadInput, match=r"no pair has domain 'maths'\. domain: Did you mean 'math'"):
        judging.judgebench(path=str(pairs_file), domain="maths")
    with pytest.raises(BadInput, match=r"orders is 'swapped'\. Known: both, file"):
        judging.judgebench(path=str(pairs_file), orders="swapped")
    with pairs_file.open("a") as file:
        file.write(json.dumps(next(rows())) + "\n")
    with pytest.raises(BadInput, match="id 'a' stands twice"):
        judging.judgebench(path=str(pairs_file))


def test_the_users_own_rubric(pairs_file, tmp_path):
    rubric = tmp_path / "rubric.md"
    header = "---\nquestion: text\nanswer_1: text\nanswer_2: text\n---\n"
    rubric.write_text(f"{header}# system\nBe strict.\n# user\nQ {{{{question}}}} A {{{{answer_1}}}} B {{{{answer_2}}}}")
    sample = judging.judgebench(path=str(pairs_file), rubric=str(rubric)).dataset[1]
    assert [message.role for message in sample.input] == ["system", "user"]
    assert sample.input[1].text == "Q Question ab? A bad a B good a"


def a_score(pair, order, value):
    return SampleScore(score=Score(value=value), sample_metadata={"pair": pair, "order": order})


def test_orders_are_paired_by_turn_and_unread_replies_counted():
    # Pair p, asked thrice in both orders, mixed: (C, I), (C, C), (N, C); q twice first and once second: (I, C).
    told = [("p", 2, "I"), ("p", 1, "C"), ("q", 1, "I"), ("p", 1, "C"), ("p", 2, "C"), ("q", 2, "C"), ("p", 1, "N"),
            ("p", 2, "C"), ("q", 1, "C"), ("r", 2, "N")]  # fmt: skip
    found = judging.both_orders()([a_score(*each) for each in told])
    assert found["both right"] == pytest.approx(1 / 4) and found["turns"] == pytest.approx(2 / 3)
    assert found["no verdict"] == pytest.approx(2 / 10)
    assert found["first shown"] == pytest.approx(3 / 7)  # p: 1 1, 1 0, - 0; q: 0 0
    assert all(math.isnan(value) for value in judging.both_orders()([]).values())


@pytest.mark.parametrize(("said", "value", "answer"), [
    ("Decision: 1", "I", "1"), ("Decision: 2", "C", "2"), ("Neither.", "N", None), ("Decision: 22", "N", None),
])  # fmt: skip
def test_a_decision_is_right_wrong_or_none(said, value, answer):
    output = ModelOutput.from_content("mockllm/model", said)
    state = TaskState(ModelName("mockllm/model"), "p/2", 0, "Q?", [], output=output)
    score = asyncio.run(judging.decision()(state, Target("2")))
    assert (score.value, score.answer) == (value, answer)


def test_samples_show_each_order_and_name_what_they_are_of(tmp_path):
    found = []
    path = tmp_path / "judgebench.jsonl"
    plain = {"pair_id": "g", "question": "Q?", "response_A": "good g", "response_B": "bad g", "label": "B>A"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows(), plain)))
    for sample in judging.judgebench_pro(path=str(path)).dataset:
        text = sample.input[-1].text
        better = "bad g" if sample.id.startswith("g") else "good"
        worse = "good g" if sample.id.startswith("g") else "bad"
        found.append((sample.id, sample.target, text.index(better) < text.index(worse)))
        assert sample.metadata["pair"] == sample.id[0] and str(sample.metadata["order"]) == sample.target
    assert found == [
        (f"{name}/{place}", place, place == "1")
        for name, place in zip([name for name in "abcdefg" for _ in "12"], cycle("12"), strict=False)
    ]
    known = sample.metadata
    assert (known["domain"], known["bias"]) == ("no domain", "no bias")
    targets = {each.id: each.target for each in judging.judgebench(path=str(path), orders="file").dataset}
    assert "".join(targets.values()) == "1212122" and len(targets) == 7


def test_files_of_a_folder_are_those_with_its_words_and_of_a_kind_that_is_read(tmp_path):
    (tmp_path / "data" / "deeper").mkdir(parents=True)
    for name in ("Filtered.JSONL", "FILTERED-b.jsonl", "raw.jsonl", "rewardbench.txt", "a-rewardbench.csv.gz",
                 "data/filtered-2.parquet", "data/filtered-1.parquet", "data/deeper/filtered.jsonl"):  # fmt: skip
        (tmp_path / name).write_text("")
    files = judging._files("rewardbench", str(tmp_path), ("rewardbench", "filtered"))
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        "FILTERED-b.jsonl", "a-rewardbench.csv.gz", "data/filtered-1.parquet", "data/filtered-2.parquet",
    ]  # fmt: skip
    single = tmp_path / "raw.jsonl"
    assert judging._files("rewardbench", str(single), ("filtered",)) == [single]


def test_pairs_are_chosen_by_all_that_is_wanted(pairs_file):
    def ids(task, **settings):
        return "".join(sample.id[0] for sample in task(path=str(pairs_file), orders="file", **settings).dataset)

    assert ids(judging.judgebench_pro, bias="length", domain="math") == "ab"
    assert ids(judging.judgebench_pro, bias="authority") == "def" and ids(judging.judgebench, domain="code") == "cde"
    assert ids(judging.rewardbench, subset="subset-math", domain="math") == "abf"
    with pytest.raises(BadInput, match=r"no pair has domain 'code' and subset 'subset-math'\."):
        ids(judging.rewardbench, subset="subset-math", domain="code")
    for task in (judging.rewardbench, judging.judgebench_pro):
        with pytest.raises(BadInput, match="orders is 'two'"):
            task(path=str(pairs_file), orders="two")


def test_inspect_knows_the_tasks_their_scorer_and_their_measures():
    for made in (judging.judgebench, judging.rewardbench, judging.judgebench_pro):
        told = registry_info(made)
        assert (told.type, told.name) == ("task", f"equipoise/{made.__name__}")
    told = registry_info(judging.decision())
    assert told.type == "scorer" and len(told.metadata["metrics"]) == 4
    assert registry_info(judging.both_orders()).metadata == {"scores": "unreduced"}  # every epoch's score counts
