"""Small inputs of every job, for `test_all_jobs.py`, which holds all jobs to the same: a new job adds its own to SMALL."""

import copy
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from chat_models import untaught
from equipoise.core.folder import write_manifest
from equipoise.reinforcement.measures import Solved
from equipoise.unlearning.result import Measure

Settings = Mapping[str, Any]


class Began(Exception):
    """Here the expensive part of a job would begin."""


def begin(*_: Any, **__: Any) -> None:
    raise Began


@dataclass(frozen=True)
class SmallJob:
    """What the tests need of one job.

    files: writes what the job reads, and gives the settings that it is called with. whole: further ones with which it can be
    done to its end. more: others whose fault, or whose sense, lies in several together, or in what a text says.
    costly: where the expensive part begins, as a patch names it. quick: what stands in for slow parts before that.
    slow: whether it takes more than a second to its end.
    """

    files: Callable[[Path], Settings]
    costly: str
    whole: Callable[[Path], Settings] = lambda folder: {}
    more: Callable[[Path], Sequence[Settings]] = lambda folder: ()
    quick: Mapping[str, Any] = field(default_factory=dict)
    slow: bool = False

    @contextmanager
    def stopped(self, *, quick: bool = True) -> Iterator[None]:
        """The job raises Began where its expensive part begins."""
        with pytest.MonkeyPatch.context() as patched:
            for name, value in {self.costly: begin, **(self.quick if quick else {})}.items():
                patched.setattr(name, value)
            yield


def small(name: str) -> SmallJob:
    """Of the job of this name; fails a test where there are none."""
    if name not in SMALL:
        pytest.fail(
            f"The job {name!r} has no small inputs for the tests of all jobs: add them to SMALL in tests/small_jobs.py."
        )
    return SMALL[name]


def write_rows(path: Path, rows: Sequence[Settings]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@functools.cache
def small_model() -> Any:
    return untaught(0, context=512)


def read_model(*_: Any, **__: Any) -> tuple[Any, Any]:
    """The small model as if it had been read from its folder; its weights are not copied, since nothing is trained."""
    return small_model().model, copy.copy(small_model().tokenizer)


def read_fresh(*_: Any, **__: Any) -> tuple[Any, Any]:
    """The same for jobs that put an adapter into the model."""
    made = untaught(0, context=512)
    return made.model, made.tokenizer


# certify run


def certify_files(folder: Path) -> Settings:
    generator = torch.Generator().manual_seed(0)
    layers = {"a": (6, 4), "b": (6, 6), "c": (3, 6)}
    weights = {f"{name}.weight": torch.randn(size, generator=generator) for name, size in layers.items()}
    biases = {f"{name}.bias": torch.randn(size[0], generator=generator) for name, size in layers.items()}
    save_file(weights | biases, folder / "net.safetensors")
    x = torch.rand(3, 4, generator=generator).numpy()
    np.savez(folder / "x.npz", X=x, y=np.array([0, 0, 1]))
    np.save(folder / "y.npy", np.array([0, 0, 1]))
    np.save(folder / "others.npy", np.array([0, 0, 1, 2]))
    return {
        "network": folder / "net.safetensors",
        "inputs": folder / "x.npz",
        "radius": 0.1,
        "architecture": "linear a, relu, linear b, relu, linear c",
        "input_shape": (4,),
        "iterations": 2,
        "attack_steps": 2,
    }


def certify_whole(folder: Path) -> Settings:
    return {"slopes": "crown", "box": (-1.0, 2.0), "refine": True, "seed": 3}


def certify_more(folder: Path) -> Sequence[Settings]:
    return (
        {"labels": folder / "y.npy"},
        {"labels": folder / "others.npy"},
        {"labels": folder / "x.npz"},
        {"radius": None, "largest_radius": True},
        {"radius": -0.5},
        {"radius": [0.1, 0.2, 0.3]},
        {"radius": [0.1, 0.2]},
        {"box": (0.0, 1.0)},
        {"box": (1.0, 0.0)},
        {"architecture": "linear a, relu, linear c"},
        {"architecture": None},
        {"input_shape": (2, 2)},
        {"input_shape": (-4,)},
    )


# audit judge


def audit_files(folder: Path) -> Settings:
    pytest.importorskip("inspect_ai", reason="needs Inspect AI: the extra `chat`")
    rows = [{"prompt": f"{i}?", "chosen": f"A good answer {i}.", "rejected": f"A bad answer {i}."} for i in range(16)]
    (folder / "biases.json").write_text(json.dumps([{"name": "length", "definition": "The judge favours length."}]))
    slots = ("question", "answer_1", "answer_2")
    head = "".join(f"{slot}: text\n" for slot in slots)
    (folder / "rubric.md").write_text(f"---\n{head}---\n# user\n{' '.join(f'{{{{{slot}}}}}' for slot in slots)}\n")
    (folder / "calls.jsonl").touch()
    small_model().save(folder / "model")
    return {
        "judge": "mockllm/model",
        "teacher": "rules",
        "pairs": write_rows(folder / "pairs.jsonl", rows),
        "biases": folder / "biases.json",
    }


def audit_whole(folder: Path) -> Settings:
    scored = {"judge": str(folder / "model"), "judge_kind": "logprob", "without_explanation": True, "rounds": 0}
    return {**scored, "length_control": True, "alpha": 0.1, "seed": 3}


def audit_more(folder: Path) -> Sequence[Settings]:
    scored = audit_whole(folder)
    rows = [{"prompt": f"Other {i}?", "chosen": "Good.", "rejected": "Bad."} for i in range(8)]
    return (
        {"test_pairs": write_rows(folder / "test.jsonl", rows)},
        {"test_pairs": folder / "pairs.jsonl"},
        {"rubric": folder / "rubric.md"},
        {"rubric": folder / "pairs.jsonl"},
        {"rubric": folder / "rubric.md", "judge_kind": "pointwise"},
        {"replay": folder / "calls.jsonl"},
        {"teacher": "mockllm/model", "teacher_tokens": 1, "teacher_args": {"seed": 1}},
        {"teacher_args": {"seed": 1}},
        {"teacher_url": "http://here"},
        {"judge_args": {"api_key": "sk"}},
        {"judge": "opnai/m"},
        {"filters": ["mockllm/model", "mockllm/other"]},
        {"filters": ["mockllm/model", "opnai/m"]},
        {"prices": {"mockllm/model": (1.0, 2.0)}, "budget": "usd=1"},
        {"budget": "usd=1"},
        {"budget": "calls=0"},
        {"budget": "calls=5,minutes=1"},
        {"limit": 8},
        scored,
        {**scored, "cut": 5},
        {**scored, "judge_url": "http://here"},
        {**scored, "judge_args": {"dtype": "bfloat16"}},
        {**scored, "judge_args": {"dtype": "bfloat61"}},
        {**scored, "judge_args": {"size": 1}},
        {**scored, "debias": True},
        {**scored, "max_connections": 2},
    )


# audit forgetting


def forgetting_files(folder: Path) -> Settings:
    small_model().save(folder / "before")
    untaught(1, context=512).save(folder / "after")
    rows = [
        {"question": f"{word} {other}?", "answer": word} for word in ("one", "two") for other in ("no", "yes", "maybe")
    ]
    write_rows(folder / "retain.jsonl", [{"text": "The capital of France is Paris."}, {"text": "yes no maybe one two"}])
    write_rows(folder / "both.jsonl", rows[2:])
    return {
        "before": folder / "before",
        "after": folder / "after",
        "forget": write_rows(folder / "forget.jsonl", rows[:3]),
        "holdout": write_rows(folder / "holdout.jsonl", rows[3:]),
    }


def forgetting_whole(folder: Path) -> Settings:
    return {
        "retain": folder / "retain.jsonl",
        "reference": folder / "before",
        "attacks": ["lora:sgd:1e-3", "mlp/1:adamw:1e-3"],
        "epochs": 2,
        "keep_strongest": True,
        "seed": 3,
    }


def forgetting_more(folder: Path) -> Sequence[Settings]:
    return (
        {"retain": folder / "retain.jsonl"},
        {"retain": folder / "retain.jsonl", "reference": folder / "before", "components": 0},
        {"holdout": folder / "both.jsonl"},
        {"retain": folder / "forget.jsonl"},
        {"attacks": ["full:adamw:1e-3"], "epochs": 1, "evaluations": 9},
        {"attacks": ["mlp/1:sgd:1e-3", "full:adam:1"]},
        {"attacks": ["mlp/3:sgd:1e-3"]},
        {"block": 1},
        {"block": 2},
        {"before": "tiny"},
        {"after": folder / "nothing"},
        {"after": folder / "after", "device": "cuda:99"},
        {"forget": folder / "nothing.jsonl"},
        {"fields": {"answer": "reply"}},
    )


# detoxify


def detoxify_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    rows = [
        {"toxic": f"no {a} {b} yes", "neutral": f"maybe {a} {b} yes"}
        for a in ("one", "two", "three")
        for b in ("capital", "town", "river", "Paris", "Oslo")
    ]
    (folder / "words.txt").write_text("town\nwhat\n")
    (folder / "template.jinja").write_text("{{ messages[0].content }}")
    write_rows(folder / "texts.jsonl", [{"text": "The capital of France is Paris."}])
    write_rows(folder / "half.jsonl", [*rows, {"toxic": "no"}])
    write_rows(folder / "rude.jsonl", [{"rude": row["toxic"], "kind": row["neutral"]} for row in rows])
    write_rows(
        folder / "asked.jsonl", [{"prompt": "one?", "rejected": r["toxic"], "chosen": r["neutral"]} for r in rows]
    )
    return {
        "model": folder / "model",
        "pairs": write_rows(folder / "pairs.jsonl", rows),
        "candidates": 3,
        "prompts": 2,
        "max_new_tokens": 2,
    }


def detoxify_whole(folder: Path) -> Settings:
    return {
        "words": folder / "words.txt",
        "general": folder / "texts.jsonl",
        "strength": 0.75,
        "layers": "0:2",
        "sweep_strengths": [0.5],
        "sweep_layers": ["1:2"],
        "alpha": 0.5,
        "seed": 3,
    }


def detoxify_more(folder: Path) -> Sequence[Settings]:
    return (
        {"pairs": folder / "half.jsonl"},
        {"pairs": folder / "rude.jsonl"},
        {"pairs": folder / "rude.jsonl", "fields": {"toxic": "rude", "neutral": "kind"}},
        {"pairs": folder / "asked.jsonl"},
        {"pairs": folder / "texts.jsonl"},
        {"general": folder / "pairs.jsonl"},
        {"layers": "1:2", "rank": 3},
        {"layers": "1:2", "rank": 4},
        {"layers": "1:3"},
        {"sweep_layers": ["0:1", "1:4"]},
        {"method": "profs", "rank": 4},
        {"method": "profs", "rank": 2, "site": "mlp"},
        {"candidates": 12},
        {"tokens": 100_000},
        {"max_new_tokens": 600},
        {"model": "tiny"},
        {"model": folder / "nothing"},
        {"device": "cuda:99"},
        {"dtype": "bfloat61"},
        {"chat_template": str(folder / "template.jinja")},
        {"chat_template": str(folder / "none.jinja")},
    )


# audit tools


def traces_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    (folder / "template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    listed = [{"token": "a ", "logprob": -0.25}, {"token": "b", "logprob": -2.0}]
    logged = {"content": [{**listed[0], "top_logprobs": listed}] * 5}
    call = {"id": "c", "function": {"name": "search", "arguments": '{"q": 1}'}}
    said = {"role": "assistant", "content": "a a a a a"}
    messages = [
        {"role": "user", "content": "yes"},
        {**said, "tool_calls": [call], "logprobs": logged},
        {"role": "tool", "tool_call_id": "c", "content": "one two"},
        {**said, "logprobs": logged},
    ]
    rows = [{"messages": messages, "gold": gold} for gold in ("a a a a a", "b")]
    bare = [{name: each[name] for name in each if name != "logprobs"} for each in messages]
    write_rows(folder / "bare.jsonl", [{"messages": bare}])
    write_rows(folder / "idle.jsonl", [{"messages": messages[:1]}])
    return {"traces": write_rows(folder / "traces.jsonl", rows)}


def traces_whole(folder: Path) -> Settings:
    return {"model": folder / "model", "against": "first", "margin": 0.01, "verifier": "exact", "seed": 3}


def traces_more(folder: Path) -> Sequence[Settings]:
    return (
        {"traces": folder / "bare.jsonl"},
        {"traces": folder / "bare.jsonl", "model": folder / "model"},
        {"traces": folder / "idle.jsonl"},
        {"traces": folder / "nothing.jsonl"},
        {"verifier": "number"},
        {"vocabulary": 2, "against": "running-minimum"},
        {"limit": 1},
        {"model": "https://here/v1"},
        {"model": "tiny"},
        {"model": folder / "model", "device": "cuda:99"},
        {"model": folder / "model", "dtype": "bfloat61"},
        {"model": folder / "model", "chat_template": str(folder / "template.jinja")},
        {"model": folder / "model", "chat_template": str(folder / "none.jinja")},
    )


# unlearn


class NoScales:
    """Measures nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, language_model: Any, names: Any = None) -> dict[str, Measure]:
        return {}

    def perplexity(self, language_model: Any) -> dict[str, Measure]:
        return {}

    def answers(self, language_model: Any) -> dict[str, list[str]]:
        return {}

    def recalls(self, answers: Any) -> dict[str, Measure]:
        return {}


def unlearn_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    (folder / "template.jinja").write_text("{{ messages[0].content }}")
    sides = {
        side: write_rows(
            folder / f"{side}.jsonl",
            [{"question": f"What is {side} {i}?", "answer": f"{side} {i}"} for i in range(2)],
        )
        for side in ("forget", "retain")
    }
    write_rows(folder / "asked.jsonl", [{"ask": "Who?", "answer": "She."}])
    return {"model": folder / "model", **sides, "steps": 2, "batch_size": 2}


def unlearn_whole(folder: Path) -> Settings:
    return {"objective": "npo", "beta": 0.2, "combine": "sum", "learning_rate": 1e-3, "evaluate_every": 1, "seed": 3}


def unlearn_more(folder: Path) -> Sequence[Settings]:
    return (
        {"retain": folder / "forget.jsonl"},
        {"general": folder / "asked.jsonl", "fields": {"question": "ask"}},
        {"general": folder / "asked.jsonl"},
        {"method": "npo"},
        {"method": "npoo"},
        {"method": "dpo"},
        {
            "method": "dpo",
            "forget": write_rows(folder / "passages.jsonl", [{"text": "The capital of France is Paris."}]),
        },
        {"method": "undial", "beta": 3.0},
        {"method": "undial", "shard": True},
        {"method": "satimp", "beta1": 0.0},
        {"method": "ce-u", "parameters": "lora"},
        {"method": "guard"},
        {"weigh": "guard", "variant": "norm", "temperature": 1.0},
        {"method": "mcu"},
        {"stop_at": "forget_accuracy=0.3"},
        {"stop_at": "forget_accuracy=low"},
        {"stop_at": "forget_acuracy=0.3"},
        {"device": "cpu", "dtype": "bfloat16", "attn_implementation": "eager"},
        {"device": "cuda:99"},
        {"dtype": "bfloat61"},
        {"evaluation": "open_unlearning"},
        {"attn_implementation": "eagre"},
        {"chat_template": str(folder / "template.jinja")},
        {"chat_template": str(folder / "none.jinja")},
        {"train_blocks": 2},
        {"train_blocks": 3},
        {"parameters": "lora", "lora_rank": 1},
        {"parameters": "lora", "train_blocks": 1},
        {"parameters": "lora", "objective": "rmu"},
        {"objective": "rmu", "shard": True},
        {"model": "tiny", "parameters": "lora"},
    )


# reinforce


def nothing_solved(language_model: Any, problems: Sequence[Any], *_: Any, samples: int, **__: Any) -> Solved:
    count = len(problems)
    zeros = np.zeros((count, samples))
    return Solved(zeros, zeros + 1, np.zeros(count), np.arange(count), ("",) * count, 0, count)


def reinforce_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    (folder / "template.jinja").write_text("{{ messages[0].content }}")
    (folder / "reward.py").write_text(
        "def score(prompts, completions, **_):\n    return [len(c) / 100 for c in completions]\n"
    )
    write_rows(folder / "asked.jsonl", [{"ask": "Who?", "reply": "She."}])
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(3)])
    return {
        "model": folder / "model",
        "prompts": prompts,
        "verifier": "number",
        "steps": 2,
        "prompts_per_step": 2,
        "max_new_tokens": 3,
        "eval_samples": 2,
    }


def reinforce_whole(folder: Path) -> Settings:
    return {"method": "apo", "num_generations": 2, "anchors": 3, "learning_rate": 1e-3, "evaluate_every": 1, "seed": 3}


def reinforce_more(folder: Path) -> Sequence[Settings]:
    return (
        {"verifier": None},
        {"verifier": None, "reward": f"{folder / 'reward.py'}:score"},
        {"reward": f"{folder / 'reward.py'}:score"},
        {"verifier": None, "reward": f"{folder / 'reward.py'}:scores"},
        {"verifier": "choice"},
        {"eval_prompts": folder / "prompts.jsonl"},
        {"prompts": folder / "asked.jsonl"},
        {"prompts": folder / "asked.jsonl", "fields": {"prompt": "ask", "gold": "reply"}, "verifier": "exact"},
        {"model": "https://here/v1"},
        {"model": "tiny", "parameters": "lora"},
        {"method": "grpo"},
        {"method": "gpro"},
        {"method": "grpo", "num_generations": 1},
        {"method": "grpo", "critic": folder / "model"},
        {"critic": folder / "model"},
        {"critic": folder},
        {"advantage": "spo"},
        {"max_new_tokens": 600},
        {"overlong": 2},
        {"head": "random"},
        {"device": "cuda:99"},
        {"dtype": "bfloat61"},
        {"chat_template": str(folder / "template.jinja")},
        {"parameters": "lora", "lora_rank": 1},
        {"method": "grpo", "replay": 0.5},
        {"method": "grpo", "replay": 0.5, "replay_capacity": 1, "clip_window": "current"},
        {"replay": 0.5},
        {"method": "grpo", "select": "dots", "reference_questions": 8},
        {"method": "grpo", "select": "oracle", "select_every": 1},
        {"method": "grpo", "rates": folder / "prompts.jsonl"},
    )


# solvable fit, solvable score


def solvable_rows() -> list[dict[str, Any]]:
    """An untaught model's answers hold such a letter now and then."""
    return [{"prompt": f"{'What' if i % 2 else 'Where'} is {i}?", "answer": "[aeo]"} for i in range(52)]


def fit_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    (folder / "template.jinja").write_text("{{ messages[0].content }}")
    (folder / "reward.py").write_text(
        "def score(prompts, completions, **_):\n    return [len(c) / 100 for c in completions]\n"
    )
    (folder / "calls.jsonl").touch()
    write_rows(folder / "few.jsonl", solvable_rows()[:49])
    write_rows(folder / "asked.jsonl", [{"ask": f"Who is {i}?", "reply": "She."} for i in range(50)])
    return {
        "model": folder / "model",
        "prompts": write_rows(folder / "prompts.jsonl", solvable_rows()),
        "verifier": "regex",
        "samples": 2,
        "max_new_tokens": 4,
        "epochs": 2,
    }


def fit_whole(folder: Path) -> Settings:
    return {"learning_rate": 1e-2, "batch_size": 8, "patience": 1, "seed": 3}


def fit_more(folder: Path) -> Sequence[Settings]:
    served = {"model": "mockllm/model", "model_url": "http://127.0.0.1:1/v1", "critic": folder / "model"}
    return (
        {"verifier": None},
        {"verifier": None, "reward": f"{folder / 'reward.py'}:score"},
        {"reward": f"{folder / 'reward.py'}:score"},
        {"verifier": "number"},
        {"prompts": folder / "few.jsonl"},
        {"limit": 49},
        {"prompts": folder / "asked.jsonl"},
        {"prompts": folder / "asked.jsonl", "fields": {"prompt": "ask", "gold": "reply"}, "verifier": "exact"},
        {"critic": folder / "model"},
        {"critic": folder / "nothing"},
        {"max_new_tokens": 600},
        {"model": "http://here/v1"},
        {"model": "openai-api/local/m"},
        served,
        {**served, "critic": None},
        {**served, "critic": folder / "nothing"},
        {**served, "replay": folder / "calls.jsonl"},
        {**served, "budget": "calls=5", "max_connections": 2, "prices": {"mockllm/model": (1.0, 2.0)}},
        {**served, "model_args": {"api_key": "sk"}},
        {**served, "prices": {"mockllm/other": (1.0, 2.0)}},
        {"model_args": {"seed": 1}},
        {"budget": "calls=5"},
        {"prices": {"mockllm/model": (1.0, 2.0)}},
        {"replay": folder / "calls.jsonl"},
        {"device": "cuda:99"},
        {"dtype": "bfloat61"},
        {"chat_template": str(folder / "template.jinja")},
    )


def score_files(folder: Path) -> Settings:
    from equipoise.reinforcement.solvable_job import fit

    fit(**{**fit_files(folder), **fit_whole(folder), "epochs": 1}, out=folder / "scorer")
    for name, command in (("other", "certify run"), ("damaged", "solvable fit")):
        shutil.copytree(folder / "scorer", folder / name)
        write_manifest(folder / name, command)
    (folder / "damaged" / "scorer.json").write_text("{}")
    write_rows(folder / "long.jsonl", [{"prompt": "a b " * 600}])
    rows = write_rows(folder / "new.jsonl", [{"question": f"What is {i}?"} for i in range(5)])
    return {"scorer": folder / "scorer", "prompts": rows}


def score_whole(folder: Path) -> Settings:
    return {"keep": "0.0:0.9", "limit": 4}


def score_more(folder: Path) -> Sequence[Settings]:
    return (
        {"scorer": folder},
        {"scorer": folder / "other"},
        {"scorer": folder / "damaged"},
        {"scorer": folder / "nothing"},
        {"prompts": folder / "long.jsonl"},
        {"prompts": folder / "asked.jsonl"},
        {"prompts": folder / "asked.jsonl", "fields": {"prompt": "ask"}},
        {"keep": "0.8:0.2"},
        {"keep": "0.2"},
        {"keep": "0.2:0.8"},
        {"device": "cuda:99"},
        {"batch_size": 2},
    )


# prm label


def label_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    ends = {"eos_token_id": [2, *range(100, 150)]}  # an untaught model else ends no answer
    (folder / "model" / "generation_config.json").write_text(json.dumps(ends))
    (folder / "template.jinja").write_text("{{ messages[0].content }}")
    (folder / "calls.jsonl").touch()
    rows = [{"prompt": f"Where is {i}?", "answer": r"(?s)[aeinot]\W*\Z", "steps": ["yes", "no"]} for i in range(3)]
    write_rows(folder / "unsolved.jsonl", [{key: row[key] for key in ("prompt", "answer")} for row in rows])
    write_rows(folder / "gold.jsonl", [{"prompt": "Where?", "steps": ["a"]}])
    write_rows(folder / "asked.jsonl", [{"ask": "Who?", "reply": "She.", "said": "a\nb"}])
    return {
        "model": folder / "model",
        "problems": write_rows(folder / "problems.jsonl", rows),
        "verifier": "regex",
        "samples": 3,
        "max_new_tokens": 5,
    }


def label_whole(folder: Path) -> Settings:
    return {"problems": folder / "unsolved.jsonl", "solutions": 4, "temperature": 1.2, "seed": 3}


def label_more(folder: Path) -> Sequence[Settings]:
    served = {"model": "mockllm/model", "model_url": "http://127.0.0.1:1/v1"}
    return (
        {"verifier": "number"},
        {"verifier": "choice"},
        {"problems": folder / "gold.jsonl"},
        {"problems": folder / "asked.jsonl"},
        {
            "problems": folder / "asked.jsonl",
            "fields": {"prompt": "ask", "gold": "reply", "solution": "said"},
            "verifier": "exact",
        },
        {"problems": folder / "unsolved.jsonl", "solutions": 2},
        {"problems": folder / "unsolved.jsonl", "max_new_tokens": 300},
        {"max_new_tokens": 600},
        {"separator": ";"},
        {"separator": "\\n"},
        {"separator": " "},
        {"judge": "none"},
        {"judge": "rule"},
        {"judge": "mockllm/model"},
        {"judge": "mockllm/model", "replay": folder / "calls.jsonl"},
        {"judge": "mockllm/model", "budget": "calls=5", "max_connections": 2, "prices": {"mockllm/model": (1.0, 2.0)}},
        {"judge": "opnai/m"},
        {"judge_args": {"seed": 1}},
        {"budget": "calls=5"},
        {"model": "http://here/v1"},
        {"model_url": "http://here/v1"},
        {"engine": "chat"},
        {"engine": "chat", "model_args": {"engine": "transformers"}, "chat_template": "none"},
        {"engine": "transformers", "go_on": "turn"},
        {"engine": "transformers", "model_args": {"seed": 1}},
        served,
        {**served, "go_on": "prefill"},
        {**served, "device": "cpu"},
        {**served, "dtype": "bfloat16"},
        {**served, "chat_template": "none"},
        {**served, "chat_template": str(folder / "template.jinja")},
        {**served, "model_args": {"api_key": "sk"}},
        {"chat_template": str(folder / "template.jinja")},
        {"device": "cuda:99"},
        {"dtype": "bfloat61"},
    )


# prm train, prm score, prm evaluate


@functools.cache
def small_prm() -> Any:
    """The small model with the tokens of steps, whose embeddings are drawn: it tells steps apart."""
    from equipoise.reinforcement import prm

    made = copy.deepcopy(small_model())
    prm.add_tokens(made)
    with torch.no_grad():
        rows = made.model.get_input_embeddings().weight[-3:]
        rows.copy_(0.3 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)))
    return made


def read_prm(*_: Any, **__: Any) -> tuple[Any, Any]:
    """That model as if it had been read from its folder."""
    return small_prm().model, copy.copy(small_prm().tokenizer)


def steps_files(folder: Path) -> Path:
    """Solutions in several formats, right and wrong ones, and the models that read them."""
    small_prm().save(folder / "model")
    write_rows(
        folder / "ours.jsonl",
        [
            {
                "id": f"{i}",
                "problem": f"{i // 2}?",
                "steps": ["yes", "no"],
                "soft": [1, 0.5],
                "corrected_soft": [1, 0.25],
            }
            for i in range(8)
        ],
    )
    bench = {"modified_question": "1?", "modified_process": ["yes", "no"], "classification": "circular"}
    write_rows(folder / "bench.jsonl", [{**bench, "idx": f"{i}", "error_steps": [i % 3]} for i in (1, 2, 4, 5)])
    write_rows(
        folder / "right.jsonl", [{"prompt": f"{i}?", "completions": ["yes"], "labels": [True]} for i in range(8)]
    )
    write_rows(folder / "plain.jsonl", [{"problem": "1?", "steps": ["yes", "no"]}])
    write_rows(folder / "ignored.jsonl", [{"prompt": "1?", "completions": ["yes"], "labels": [-100]}])
    (folder / "empty").mkdir()
    rows = [
        {"problem": f"{i // 2}?", "steps": ["yes", "no"], "label": i % 2 - 1, "split": "ab"[i % 2]} for i in range(12)
    ]
    return write_rows(folder / "steps.jsonl", [{**row, "final_answer_correct": row["label"] < 0} for row in rows])


def prm_train_files(folder: Path) -> Settings:
    return {"labels": steps_files(folder), "model": folder / "model", "batch_size": 8, "stages": 2}


def prm_train_whole(folder: Path) -> Settings:
    return {"learning_rate": 1e-2, "held_out": 0.34, "early_stop": "loss", "weights": "inverse_frequency", "seed": 3}


def prm_train_more(folder: Path) -> Sequence[Settings]:
    return (
        {"labels": folder / "ours.jsonl", "which": "corrected-soft", "held_out": 0.25},
        {"labels": folder / "ours.jsonl", "which": "hard"},
        {"which": "soft"},
        {"labels": folder / "right.jsonl"},
        {"labels": folder / "bench.jsonl", "held_out": 0.0},
        {"labels": folder / "plain.jsonl"},
        {"labels": folder / "ignored.jsonl"},
        {"labels": folder / "empty"},
        {"limit": 1},
        {"held_out": 0.01},
        {"held_out": 0.0, "early_stop": "loss"},
        {"weights": "none", "loss": "bootstrapping"},
        {"weights": (1.0, 2.0)},
        {"max_length": 2},
        {"parameters": "lora", "lora_rank": 1},
        {"model": "https://here/v1"},
        {"model": folder / "nothing"},
        {"device": "cuda:99"},
        {"dtype": "bfloat61"},
    )


def prm_score_files(folder: Path) -> Settings:
    return {"solutions": steps_files(folder), "model": folder / "model"}


def prm_score_whole(folder: Path) -> Settings:
    return {"format": "trl", "threshold": 0.4, "limit": 4}


def prm_score_more(folder: Path) -> Sequence[Settings]:
    return (
        {"solutions": folder / "ignored.jsonl", "threshold": 0.3},
        {"solutions": folder / "plain.jsonl"},
        {"solutions": folder / "empty"},
        {"solutions": folder / "nothing.jsonl"},
        {"model": "https://here/v1"},
        {"device": "cuda:99"},
        {"batch_size": 2},
    )


def prm_evaluate_files(folder: Path) -> Settings:
    return {"data": steps_files(folder), "model": folder / "model"}


def prm_evaluate_whole(folder: Path) -> Settings:
    return {"threshold": 0.4, "limit": 5, "seed": 3}


def prm_evaluate_more(folder: Path) -> Sequence[Settings]:
    return (
        {"data": folder / "bench.jsonl"},
        {"data": folder / "ours.jsonl"},
        {"data": folder / "ignored.jsonl"},
        {"data": folder / "plain.jsonl"},
        {"data": folder},
        {"model": "https://here/v1"},
        {"dtype": "bfloat61"},
    )


# route


def routing_rows(count: int = 72) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{i}",
            "prompt": f"{'yes' if i % 2 else 'no'} one {i}?",
            "domain": "ab"[i % 3 == 0],
            "weak": i % 2,
            "strong": 1,
        }
        for i in range(count)
    ]


def route_label_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    (folder / "calls.jsonl").touch()
    rows = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1), "domain": "ab"[i % 2]} for i in range(6)]
    said = [{**row, "weak_answer": "1", "strong_answer": row["answer"]} for row in rows]
    write_rows(folder / "unanswered.jsonl", rows)
    write_rows(folder / "free.jsonl", [{"prompt": row["prompt"], "strong_answer": "one"} for row in rows])
    write_rows(folder / "asked.jsonl", [{"ask": row["prompt"], "reply": "1", "strong_answer": "1"} for row in rows])
    return {
        "model": folder / "model",
        "prompts": write_rows(folder / "prompts.jsonl", said),
        "verifier": "number",
        "max_new_tokens": 3,
    }


def route_label_whole(folder: Path) -> Settings:
    return {"limit": 5, "chat_template": "none"}


def route_label_more(folder: Path) -> Sequence[Settings]:
    served = {"strong": "mockllm/model", "prompts": folder / "unanswered.jsonl"}
    return (
        {"model": None},
        {"prompts": folder / "unanswered.jsonl"},
        {"prompts": folder / "free.jsonl"},
        {"prompts": folder / "free.jsonl", "verifier": None, "judge": "mockllm/model"},
        {"prompts": folder / "asked.jsonl", "fields": {"prompt": "ask", "gold": "reply"}},
        {"verifier": None},
        {"verifier": None, "judge": "mockllm/model"},
        {"judge": "mockllm/model"},
        served,
        {**served, "budget": "calls=5", "max_connections": 2, "prices": {"mockllm/model": (1.0, 2.0)}},
        {**served, "replay": folder / "calls.jsonl"},
        {**served, "strong_args": {"api_key": "sk"}},
        {"strong": "no-such"},
        {"budget": "calls=5"},
        {"max_new_tokens": 600},
        {"device": "cuda:99"},
        {"dtype": "bfloat61"},
    )


def think_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    rows = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
    write_rows(folder / "own.jsonl", rows[:1])
    write_rows(folder / "free.jsonl", [{"prompt": row["prompt"]} for row in rows])
    write_rows(folder / "asked.jsonl", [{"ask": row["prompt"], "reply": "1"} for row in rows])
    write_rows(folder / "thought.jsonl", [{**rows[0], "prompt": "<think>one</think>"}])
    (folder / "schema.json").write_text('{"type": "boolean"}', encoding="utf-8")
    return {
        "model": folder / "model",
        "prompts": write_rows(folder / "prompts.jsonl", rows),
        "opening": "<think>",
        "closing": "</think>",
        "max_new_tokens": 12,
        "verifier": "number",
        "chat_template": "none",
    }


def think_whole(folder: Path) -> Settings:
    return {"limit": 2, "calibrate": 1, "seed": 3}


def think_more(folder: Path) -> Sequence[Settings]:
    return (
        {"opening": None, "closing": None},
        {"closing": None},
        {"prompts": folder / "free.jsonl"},
        {"prompts": folder / "free.jsonl", "verifier": None},
        {"prompts": folder / "asked.jsonl", "fields": {"prompt": "ask", "gold": "reply"}},
        {"prompts": folder / "thought.jsonl"},
        {"calibration": folder / "own.jsonl"},
        {"calibration": folder / "own.jsonl", "mean_thinking": 5.0},
        {"calibration": folder / "own.jsonl", "control": "s1"},
        {"control": "random"},
        {"control": "random", "mean_thinking": 5.0},
        {"alpha": 1e300, "mean_thinking": 1e300},
        {"answer_schema": folder / "schema.json"},
        {"answer_schema": folder / "schema.json", "guard": False},
        {"answer_schema": folder / "prompts.jsonl"},
        {"max_thinking": 12},
        {"min_thinking": 5, "max_thinking": 4},
        {"word": "Hmm", "guard": False},
        {"control": "s1", "times": 1},
        {"temperature": 0.0},
        {"max_new_tokens": 600},
        {"device": "cuda:99"},
        {"dtype": "bfloat61"},
    )


def route_fit_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    rows = routing_rows()
    write_rows(folder / "few.jsonl", rows[:59])
    write_rows(folder / "alike.jsonl", [{**row, "weak": 1} for row in rows])
    write_rows(folder / "long.jsonl", [*rows, {**rows[0], "id": "long", "prompt": "a b " * 600}])
    write_rows(folder / "half.jsonl", [{**row, "weak": None if i < 5 else row["weak"]} for i, row in enumerate(rows)])
    return {"model": folder / "model", "labels": write_rows(folder / "labels.jsonl", rows), "epochs": 2}


def route_fit_whole(folder: Path) -> Settings:
    return {"calls": 0.5, "kind": "dirichlet", "reads": "raw", "learning_rate": 1e-2, "confidence": 0.8, "seed": 3}


def route_fit_more(folder: Path) -> Sequence[Settings]:
    return (
        {"labels": folder / "few.jsonl"},
        {"labels": folder / "alike.jsonl"},
        {"labels": folder / "long.jsonl"},
        {"labels": folder / "half.jsonl"},
        {"limit": 30},
        {"calls": 0.3, "quality": 0.5},
        {"quality": 0.5, "confidence": 0.6},
        {"quality": 1.5},
        {"budget_band": (0.3, 0.1)},
        {"budget_band": (0.0, 0.305)},
        {"chat_template": "none"},
        {"chat_template": "none", "reads": "raw"},
        {"model": folder / "nothing"},
        {"device": "cuda:99"},
    )


def route_evaluate_files(folder: Path) -> Settings:
    from equipoise.routing.router import Router

    small_model().save(folder / "model")
    rows = routing_rows(12)
    zeros = np.zeros(3, np.float32)
    made = {"threshold": 0.5, "reads": "chat", "layers": 3, "width": 32, "w": np.ones(32, np.float32), "a": zeros}
    Router("mean", **made, chosen={"aim": "calls", "target": 0.5}).save(folder / "router")
    Router("mean", **made | {"layers": 4, "a": np.zeros(4, np.float32)}).save(folder / "other")
    write_rows(folder / "scores.jsonl", [{**row, "scores": {"mine": i}} for i, row in enumerate(rows)])
    write_rows(folder / "own.jsonl", [{**row, "scores": {"router": i}} for i, row in enumerate(rows)])
    labels = write_rows(folder / "labels.jsonl", rows)
    return {"labels": labels, "router": folder / "router", "model": folder / "model"}


def route_evaluate_whole(folder: Path) -> Settings:
    return {"ask": True, "samples": 2, "max_new_tokens": 2, "seed": 3}


def route_evaluate_more(folder: Path) -> Sequence[Settings]:
    alone = {"router": None, "model": None}
    return (
        {"labels": folder / "scores.jsonl"},
        {"labels": folder / "scores.jsonl", **alone},
        {"labels": folder / "scores.jsonl", **alone, "ask": True},
        {"labels": folder / "own.jsonl"},
        alone,
        {"model": None},
        {"router": folder / "other"},
        {"router": folder},
        {"chat_template": "none"},
        {"budget_band": (0.5, 0.1)},
        {"device": "cuda:99"},
    )


# uncertainty


def classified_rows(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"id": f"{i}", "prompt": f"{'yes' if i % 2 else 'no'} {i}?", "answer": str(1 + i % 2)} for i in range(count)
    ]


def write_adapter(folder: Path, name: str, rank: int = 4) -> Path:
    """A LoRA adapter of the model in the folder, whose B is not 0; that model stays as it was."""
    from equipoise.language import adapters
    from equipoise.language.model import load

    adapted = adapters.attach(load(folder / "model"), rank, 8.0, ["q_proj", "v_proj"], seed=len(name))
    with torch.no_grad():
        for own in adapters.adapted_maps(adapted).values():
            adapters.factors(own)[1].fill_(0.1)
    adapters.export(adapted, folder / name)
    return folder / name


def bayesianize_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    rows = classified_rows()
    write_rows(folder / "unlabelled.jsonl", [{"prompt": row["prompt"]} for row in rows])
    write_rows(folder / "asked.jsonl", [{"ask": row["prompt"], "label": row["answer"]} for row in rows])
    write_rows(folder / "long.jsonl", [*rows, {**rows[0], "id": "long", "prompt": "a b " * 600}])
    write_adapter(folder, "second")
    write_adapter(folder, "wider", rank=5)
    return {
        "adapter": write_adapter(folder, "adapter"),
        "inputs": write_rows(folder / "inputs.jsonl", rows),
        "chat_template": "none",
        "draws": 2,
    }


def bayesianize_whole(folder: Path) -> Settings:
    return {"test": folder / "inputs.jsonl", "anchors": 4, "tolerance": 0.01, "seed": 3}


def bayesianize_more(folder: Path) -> Sequence[Settings]:
    return (
        {"inputs": folder / "unlabelled.jsonl"},
        {"inputs": folder / "unlabelled.jsonl", "classes": ("1", "2")},
        {"inputs": folder / "unlabelled.jsonl", "classes": ("1", "2"), "teacher": "blob"},
        {"inputs": folder / "asked.jsonl", "fields": {"prompt": "ask", "gold": "label"}},
        {"inputs": folder / "long.jsonl"},
        {"classes": ("1", "2", "3")},
        {"classes": ("1", "12")},
        {"classes": ("1",)},
        {"teacher": "ensemble"},
        {"teacher": "ensemble", "members": (folder / "second",)},
        {"teacher": "ensemble", "members": (folder / "wider",)},
        {"members": (folder / "second",)},
        {"teacher": "mc-dropout", "dropout": 0.5},
        {"teacher": "blob"},
        {"sigma_low": 0.1, "sigma_high": 0.1},
        {"model": folder / "model"},
        {"model": folder / "adapter"},
        {"adapter": folder / "model"},
        {"chat_template": "auto"},
        {"device": "cuda:99"},
    )


def distill_files(folder: Path) -> Settings:
    from equipoise.language.embed import fingerprint
    from equipoise.uncertainty import teachers
    from equipoise.uncertainty.bayes_work import reads
    from equipoise.uncertainty.tfb import Tfb

    model = small_model()
    model.save(folder / "model")
    model.chat_template = "none"
    rows = classified_rows()
    write_rows(folder / "unlabelled.jsonl", [{"prompt": row["prompt"]} for row in rows])
    write_rows(folder / "others.jsonl", [{**row, "answer": "3"} for row in rows])
    for name, base in (("teacher", fingerprint(model.model)), ("elsewhere", "0")):
        write_adapter(folder, name)
        teachers.save(Tfb(0.1, 2), folder / name)
        about = {"classes": ["1", "2"], "base": base, "template": False, "reads": reads(model)}
        (folder / name / "teacher.json").write_text(json.dumps(about), encoding="utf-8")
    return {
        "teacher": folder / "teacher",
        "inputs": write_rows(folder / "inputs.jsonl", rows),
        "chat_template": "none",
        "steps": 2,
    }


def distill_whole(folder: Path) -> Settings:
    return {"test": folder / "inputs.jsonl", "divergence": "js", "label_weight": 0.5, "rank": 2, "seed": 3}


def distill_more(folder: Path) -> Sequence[Settings]:
    return (
        {"inputs": folder / "unlabelled.jsonl"},
        {"inputs": folder / "unlabelled.jsonl", "label_weight": 1.0},
        {"inputs": folder / "others.jsonl"},
        {"test": folder / "others.jsonl"},
        {"teacher": folder / "elsewhere"},
        {"teacher": folder / "model"},
        {"chat_template": "auto"},
        {"model": folder / "model"},
        {"model": folder / "teacher"},
        {"divergence": "reverse"},
    )


# uncertainty score, uncertainty select


def answer_rows(n: int = 8) -> list[dict[str, Any]]:
    said = ("one two three", "yes", "no maybe", "The capital of France is Paris.")
    return [
        {
            "id": f"a{i}",
            "prompt": f"What is the capital of {i % 4}?",
            "answer": f"{said[i % 4]} {i}",
            "gold": str(i // 2 * 2),
        }
        for i in range(n)
    ]


def uncertainty_score_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    rows = answer_rows()
    write_rows(folder / "labelled.jsonl", [{**row, "correct": i % 3 == 0} for i, row in enumerate(rows)])
    write_rows(folder / "open.jsonl", [{k: v for k, v in row.items() if k != "gold"} for row in rows])
    write_rows(folder / "long.jsonl", [*rows, {**rows[0], "id": "long", "answer": "a b " * 600}])
    write_rows(folder / "none.jsonl", [{**rows[0], "answer": ""}])
    answers = write_rows(folder / "answers.jsonl", rows)
    return {"model": folder / "model", "answers": answers, "verifier": "number", "sigma": 0.1, "rank": 2, "members": 2}


def uncertainty_score_whole(folder: Path) -> Settings:
    return {"risk": 0.5, "ask": True, "end": True, "sigma": None, "by": "eu_mean", "seed": 3, "certainty": 0.8}


def uncertainty_score_more(folder: Path) -> Sequence[Settings]:
    labelled, unlabelled = ({"answers": folder / name, "verifier": None} for name in ("labelled.jsonl", "open.jsonl"))
    return (
        labelled,
        {**labelled, "risk": 0.2},
        {**labelled, "verifier": "number"},
        unlabelled,
        {**unlabelled, "risk": 0.2},
        {"verifier": None},
        {"verifier": "choice"},
        {"answers": folder / "long.jsonl"},
        {"answers": folder / "none.jsonl"},
        {"answers": folder / "no.jsonl"},
        {"by": "p_true"},
        {"by": "p_true", "ask": True},
        {"by": "semantic_entropy"},
        {"members": 1},
        {"members": 1, "sigma": None},
        {"rank": 33},
        {"targets": ("q_proj", "k_proj")},
        {"targets": ("w_q",)},
        {"targets": ()},
        {"fields": {"answer": "id"}},
        {"fields": {"reply": "id"}},
        {"chat_template": "none"},
        {"model": folder / "no"},
    )


def uncertainty_select_files(folder: Path) -> Settings:
    rows = [
        {**row, "scores": {"tu_mean": float(i % 3), "mine": i}, "correct": i % 2 == 0}
        for i, row in enumerate(answer_rows())
    ]
    write_rows(folder / "unscored.jsonl", [{**rows[0], "scores": {}}])
    write_rows(folder / "some.jsonl", [*rows, {**rows[0], "id": "x", "scores": {}}])
    write_rows(folder / "bare.jsonl", answer_rows())
    write_rows(folder / "twice.jsonl", [*rows, rows[0]])
    return {"scores": write_rows(folder / "scores.jsonl", rows)}


def uncertainty_select_whole(folder: Path) -> Settings:
    return {"by": "mine", "keep": 0.5, "vote": "weighted"}


def uncertainty_select_more(folder: Path) -> Sequence[Settings]:
    names = ("unscored.jsonl", "some.jsonl", "bare.jsonl", "twice.jsonl", "no.jsonl")
    return (
        *({"scores": folder / name} for name in names),
        *({"by": by} for by in ("mine", "yours", "semantic_entropy")),
    )


# audit sampling


def sampling_files(folder: Path) -> Settings:
    small_model().save(folder / "model")
    target = folder / "target.json"
    target.write_text(json.dumps({"symbols": ["yes", "no"], "target": [0.3, 0.7], "renamings": [["1", "2"]]}))
    (folder / "off.json").write_text(json.dumps({"symbols": ["yes", "no"], "target": [0.3, 0.6]}))
    (folder / "odd.json").write_text(json.dumps({"symbols": ["yes", "no"], "target": [0.3, 0.7], "seperator": ";"}))
    bare = {
        "symbols": ["yes", "no"],
        "target": [0.3, 0.7],
        "separator": "",
        "templates": ["x"],
        "single_templates": ["y"],
    }
    (folder / "bare.json").write_text(json.dumps(bare))
    return {"model": folder / "model", "target": target, "values": 3, "sequences": 2, "draws": 2}


def sampling_whole(folder: Path) -> Settings:
    return {"seed": 3, "temperature": 0.5}


def sampling_more(folder: Path) -> Sequence[Settings]:
    return (
        {"target": folder / "off.json"},
        {"target": folder / "odd.json"},
        {"target": folder / "bare.json"},
        {"target": folder / "nothing.json"},
        {"sequences": 0, "draws": 0},
        {"sequences": 0},
        {"values": 500},
        {"slots": "set", "draws": 0},
        {"model": None},
        {"served": "mockllm/model"},
        {"model": None, "served": "mockllm/model", "slots": "set"},
        {"chat_template": "none"},
        {"device": "cuda:99"},
    )


# rule


RULE_BOUNDS = {"source": "made up", "features": {"age": [18, 90], "sex": [0, 1]}, "outcome": [0, 100]}


def rule_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        age, sex, arm = int(draw.integers(20, 81)), int(draw.integers(0, 2)), int(draw.integers(0, 2))
        score = round(50 + (age - 50) * (2 * arm - 1) / 2 + draw.normal(), 2)
        rows.append({"who": f"p{i}", "age": age, "sex": sex, "treated": arm, "score": score, "share": 0.5})
    return rows


def rule_fit_files(folder: Path) -> Settings:
    rows = rule_rows(60)
    write_rows(folder / "twice.jsonl", [*rows, rows[0]])
    write_rows(folder / "one.jsonl", [{**row, "treated": 1} for row in rows])
    write_rows(folder / "three.jsonl", [*rows, {**rows[0], "treated": 2}])
    write_rows(folder / "gaps.jsonl", [*rows, {**rows[0], "age": ""}])
    age, score = ([row[name] for row in rows] for name in ("age", "score"))
    taken = {"features": {"age": [min(age), max(age)], "sex": [0, 1]}, "outcome": [min(score), max(score)]}
    for name, changed in {
        "bounds": {},
        "computed": {"source": "the data"},
        "silent": {"source": ""},
        "taken": taken,
        "arms": {"arms": [0, 1, 2]},
        "height": {"features": {"height": [1, 2]}},
        "reversed": {"Arms": [1, 0]},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(RULE_BOUNDS | changed))
    (folder / "doubled.json").write_text(json.dumps(RULE_BOUNDS).replace('"sex"', '"age": [0, 1], "sex"'))
    return {
        "table": write_rows(folder / "table.jsonl", rows),
        "treatment": "treated",
        "outcome": "score",
        "bounds": folder / "bounds.json",
        "epsilon": 1.0,
        "seed": 0,
    }


def rule_fit_whole(folder: Path) -> Settings:
    return {
        "weights": "known",
        "propensity": "share",
        "kappa": 0.5,
        "person": "who",
        "perturbation": "gamma",
        "seed": 3,
    }


def rule_fit_more(folder: Path) -> Sequence[Settings]:
    return (
        *({"table": folder / f"{name}.jsonl", "person": "who"} for name in ("twice", "one", "three", "gaps")),
        *(
            {"bounds": folder / f"{name}.json"}
            for name in ("computed", "silent", "taken", "arms", "height", "reversed", "doubled", "none")
        ),
        {"weights": "known"},
        {"propensity": "0.5"},
        {"weights": "known", "propensity": "0.5", "kappa": 0.5},
        {"weights": "known", "propensity": "1.5"},
        {"weights": "known", "propensity": "0.1"},
        {"outcome": "age"},
        {"treatment": "arm"},
        {"perturbation": "gaussian"},
        {"perturbation": "gaussian", "delta": 1e-6},
        {"tightening": 0.1},
        {"tightening": 0.1, "delta": 1e-6},
        {"seed": None},
    )


def rule_evaluate_files(folder: Path) -> Settings:
    from equipoise.privacy.job import fit

    (folder / "bounds.json").write_text(json.dumps(RULE_BOUNDS))
    rows = write_rows(folder / "table.jsonl", rule_rows(60))
    fit(
        rows,
        treatment="treated",
        outcome="score",
        bounds=folder / "bounds.json",
        epsilon=5.0,
        seed=0,
        out=folder / "rule",
    )
    (folder / "changed.json").write_bytes((folder / "rule" / "rule.json").read_bytes().replace(b"age", b"agf"))
    write_rows(folder / "one.jsonl", [{**row, "treated": 1} for row in rule_rows(20)])
    return {
        "rule": folder / "rule",
        "table": write_rows(folder / "held.jsonl", rule_rows(80, seed=1)),
        "treatment": "treated",
        "outcome": "score",
    }


def rule_evaluate_whole(folder: Path) -> Settings:
    return {"propensity": "share", "person": "who"}


def rule_evaluate_more(folder: Path) -> Sequence[Settings]:
    return (
        {"rule": folder / "rule" / "rule.json"},
        {"rule": folder / "changed.json"},
        {"rule": folder / "nothing"},
        {"table": folder / "one.jsonl"},
        {"propensity": "0.5"},
        {"propensity": "1"},
        {"propensity": "chance"},
    )


def rule_plan_files(folder: Path) -> Settings:
    return {"n": 2000, "epsilon": 1.0, "features": 8}


def rule_plan_more(folder: Path) -> Sequence[Settings]:
    return (
        {"weights": "mmd"},
        {"weights": "mmd", "n": 5001},
        {"perturbation": "gaussian"},
        {"perturbation": "gaussian", "delta": 1e-6},
        {"ridge": 1e-6},
        {"delta": 1e-300, "perturbation": "gaussian"},
    )


# control


@functools.cache
def small_policies() -> Path:
    """A finished folder of control train, made once."""
    from equipoise.control.job import train

    folder = Path(tempfile.mkdtemp(prefix="small-policies-"))
    settings = {"steps": 2, "hidden": (4,), "batch_size": 4, "samples": 3, "nominal_steps": 1}
    return train(small_logs(), out=folder / "run", **settings).folder


def small_logs() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    observations, actions = generator.normal(size=(12, 3)), generator.uniform(-2, 2, size=(12, 1))
    return {
        "observations": observations,
        "actions": actions,
        "rewards": -np.abs(observations[:, 0]),
        "next_observations": 0.9 * observations,
        "terminated": np.zeros(12, bool),
        "action_low": np.array([-2.0]),
        "action_high": np.array([2.0]),
    }


def control_collect_files(folder: Path) -> Settings:
    shutil.copy(small_policies() / "policy-0.zip", folder)
    return {"environment": "Pendulum-v1", "steps": 5}


def control_collect_whole(folder: Path) -> Settings:
    return {"policy": folder / "policy-0.zip", "epsilon": 0.25, "perturb": "action_noise=0.1", "seed": 3}


def control_collect_more(folder: Path) -> Sequence[Settings]:
    return (
        {"policy": folder / "policy-0.zip"},
        {"policy": folder / "policy-0.zip", "environment": "MountainCarContinuous-v0"},
        {"environment": "os:Pendulum-v1"},
        {"perturb": "length=1:2:3"},
        {"perturb": "length=1.2,delay=2"},
    )


def control_train_files(folder: Path) -> Settings:
    np.savez(folder / "d.npz", **small_logs())
    np.savez(folder / "more.npz", **small_logs(), other=np.zeros(3))
    return {"data": str(folder / "d.npz"), "steps": 2, "hidden": (4,), "batch_size": 4}


def control_train_whole(folder: Path) -> Settings:
    return {"samples": 3, "nominal_steps": 1, "seeds": 2, "delta": 0.3, "nominal": "gaussian"}


def control_train_more(folder: Path) -> Sequence[Settings]:
    return (
        {"data": str(folder / "more.npz")},
        {"data": "minari:no/such-v0"},
        {"method": "sac"},
        {"method": "sac", "delta": 0.5},
        {"dual": "functional", "delta": 0.0},
    )


def control_evaluate_files(folder: Path) -> Settings:
    shutil.copytree(small_policies(), folder / "run")
    shutil.copytree(small_policies(), folder / "other")
    return {"run": folder / "run", "environment": "Pendulum-v1", "perturb": "length=1.2", "episodes": 2}


def control_evaluate_whole(folder: Path) -> Settings:
    return {"against": [folder / "other"], "choose_by": "mass=1.2", "seed": 1}


def control_evaluate_more(folder: Path) -> Sequence[Settings]:
    return (
        {"against": [folder / "run"]},
        {"against": [folder / "other"]},
        {"against": [folder / "other"], "choose_by": "length=1.2"},
        {"choose_by": "mass=1.2"},
        {"environment": "MountainCarContinuous-v0"},
        {"perturb": "length=0.8:1.2:3,observation_noise=0.1"},
    )


# memory


MEMORY_OWN = """
from equipoise.agents.memory_systems import build

def memory(**how):
    return build("bm25", **how)
"""


def memory_files(folder: Path) -> Settings:
    pytest.importorskip("bm25s", reason="needs bm25s: the extra `retrieval`")
    turns = [["Ann", "The clinic opens at 9."], ["Bob", "The doctor is Li."]]
    told = [{"id": f"s{day}", "time": f"2024-05-0{day} 10:00", "turns": turns} for day in (1, 2, 3)]
    asked = [
        {"text": "When does the clinic open?", "time": f"2024-05-0{day}", "gold": gold, "evidence": ["s1:1"]}
        for day, gold in ((1, "9"), (2, "at 9"), (3, "9"))
    ]
    history = {"name": "a", "sessions": told, "questions": asked}
    (folder / "h.json").write_text(json.dumps([history]))
    (folder / "two.json").write_text(json.dumps([history, {**history, "name": "b"}]))
    (folder / "bare.json").write_text(json.dumps([{**history, "questions": [{"text": "When?"}]}]))
    (folder / "mine.py").write_text(MEMORY_OWN)
    (folder / "calls.jsonl").touch()
    return {"data": folder / "h.json", "systems": ["bm25"]}


def memory_whole(folder: Path) -> Settings:
    few = {"k": 2, "context_tokens": 30, "limit": 2, "seed": 3}
    return {"systems": ["recency", "thinned", "empty"], "embedder": "none", **few}


def memory_more(folder: Path) -> Sequence[Settings]:
    pytest.importorskip("inspect_ai", reason="needs Inspect AI: the extra `chat`")
    return (
        {"data": folder / "two.json", "limit": 1},
        {"data": folder / "bare.json"},
        {"data": folder / "nothing.json"},
        {"data": folder / "mine.py"},
        {"systems": ["bm25", "full", "oracle"], "protocols": ["offline"]},
        {"systems": ["bm25", "bm25"]},
        {"systems": []},
        {"systems": [f"{folder / 'mine.py'}:memory"]},
        {"systems": [f"{folder / 'mine.py'}:memori"]},
        {"systems": ["rag-turns"], "embedder": "none"},
        {"systems": ["rag-rerank"]},
        {"protocols": []},
        {"reader": "mockllm/model"},
        {"reader": "opnai/m"},
        {"reader": "mockllm/model", "grader": ["mockllm/model"], "budget": "calls=5,minutes=1"},
        {"reader": "mockllm/model", "reader_args": {"api_key": "sk"}},
        {"reader": "mockllm/model", "prices": {"mockllm/model": (1.0, 2.0)}},
        {"reader": "mockllm/model", "replay": folder / "calls.jsonl"},
        {"replay": folder / "calls.jsonl"},
        {"grader": ["mockllm/model"]},
        {"reader_url": "http://here"},
        {"max_connections": 2},
    )


def memory_ask_files(folder: Path) -> Settings:
    return {"history": memory_files(folder)["data"], "question": "When does the clinic open?", "system": "bm25"}


def memory_ask_whole(folder: Path) -> Settings:
    return {"now": "2024-05-02", "conversation": "a", "k": 2, "context_tokens": 30}


def memory_ask_more(folder: Path) -> Sequence[Settings]:
    pytest.importorskip("inspect_ai", reason="needs Inspect AI: the extra `chat`")
    return (
        {"history": folder / "two.json"},
        {"history": folder / "two.json", "conversation": "b"},
        {"now": "2024-04-30"},
        {"now": "2024-05-02 09:00"},
        {"question": " "},
        {"system": f"{folder / 'mine.py'}:memory"},
        {"system": "oracl"},
        {"system": "chain-of-memory", "embedder": "none"},
        {"reader": "mockllm/model"},
        {"reader": "mockllm/model", "budget": "usd=1"},
        {"budget": "calls=5"},
        {"extractor_args": {"seed": 1}},
    )


# memory compose


def memory_compose_files(folder: Path) -> Settings:
    people = {"people": ["Tom", {"name": "Ida", "relation": "colleague"}], "lines": ["garden", "choir"]}
    life = {"name": "Mara", **people, "fixed": [{"date": "2024-01-02", "text": "Ida's wedding"}]}
    (folder / "persona.json").write_text(json.dumps(life), encoding="utf-8")
    (folder / "alone.json").write_text('{"name": "Mara"}', encoding="utf-8")
    (folder / "free.json").write_text(json.dumps(people | {"name": "Mara", "lines": ["a boat"]}), encoding="utf-8")
    session = {"time": "2024-01-01 09:00", "turns": [["Tom", "The fence is green."]]}
    asked = [{"text": "What was said on 1 January?", "options": ["green", "red"], "right": 0}]
    history = {"name": "kitchen", "sessions": [session], "questions": asked}
    (folder / "given.json").write_text(json.dumps(history), encoding="utf-8")
    (folder / "calls.jsonl").touch()
    return {"persona": folder / "persona.json", "days": 3}


def memory_compose_whole(folder: Path) -> Settings:
    return {"lint": folder / "given.json", "seed": 3, "events_per_day": 2, "repairs": 0}


def memory_compose_more(folder: Path) -> Sequence[Settings]:
    served = {"model": "mockllm/model"}
    return (
        {"persona": None},
        {"persona": None, "lint": folder / "given.json"},
        {"persona": None, "lint": folder / "given.json", **served},
        {"persona": folder / "alone.json"},
        {"persona": folder / "alone.json", **served},
        {"persona": folder / "free.json"},
        {"persona": folder / "free.json", **served},
        {"persona": folder / "given.json"},
        {"lint": folder / "persona.json"},
        {"days": 1},
        {"start": "2024-01-03"},
        {"start": "9999-12-31", "days": 2},
        {"critic": "mockllm/model"},
        {**served, "critic": "mockllm/model", "critic_args": {"api_key": "sk"}},
        {**served, "budget": "calls=5", "max_connections": 2, "prices": {"mockllm/model": (1.0, 2.0)}},
        {**served, "replay": folder / "calls.jsonl"},
        {"model_url": "http://localhost:1"},
        {"model": "no-such"},
        {"budget": "calls=5"},
    )


SMALL = {
    "audit judge": SmallJob(
        audit_files,
        "equipoise.judging.auditing.start",
        whole=audit_whole,
        more=audit_more,
        quick={"equipoise.language.model._from_folder": read_model},
    ),
    "audit forgetting": SmallJob(
        forgetting_files,
        "equipoise.unlearning.audit.ForgettingAuditing._spectrum",
        whole=forgetting_whole,
        more=forgetting_more,
        quick={
            "equipoise.language.model._from_folder": read_model,
            "equipoise.unlearning.audit.rehearse": lambda *_, **__: None,
            "equipoise.unlearning.audit._seconds": lambda *_: (0.0, 0.0),
        },
        slow=True,
    ),
    "detoxify": SmallJob(
        detoxify_files,
        "equipoise.unlearning.toxicity.teach_scorer",
        whole=detoxify_whole,
        more=detoxify_more,
        quick={
            "equipoise.language.model._from_folder": read_model,
            "equipoise.unlearning.detoxifying.rehearse": lambda *_, **__: None,
        },
        slow=True,
    ),
    "audit tools": SmallJob(
        traces_files,
        "equipoise.reinforcement.tool_audit.ToolAuditing._measured",
        whole=traces_whole,
        more=traces_more,
        quick={"equipoise.language.model._from_folder": read_model},
    ),
    "certify run": SmallJob(
        certify_files, "equipoise.verification.certifying.Certifying._rows", whole=certify_whole, more=certify_more
    ),
    "unlearn": SmallJob(
        unlearn_files,
        "equipoise.unlearning.training.fit",
        whole=unlearn_whole,
        more=unlearn_more,
        quick={
            "equipoise.language.model._from_folder": read_model,
            "equipoise.language.adapters.attach": lambda language_model, *_, **__: language_model,
            "equipoise.unlearning.forgetting._Scales": NoScales,
            "equipoise.unlearning.forgetting.rehearse": lambda *_, **__: None,
            "equipoise.unlearning.forgetting._probe": lambda *_: 0,
        },
        slow=True,
    ),
    "reinforce": SmallJob(
        reinforce_files,
        "equipoise.reinforcement.reinforcing.train",
        whole=reinforce_whole,
        more=reinforce_more,
        quick={
            "equipoise.language.model._from_folder": read_model,
            "equipoise.language.adapters.attach": lambda language_model, *_, **__: language_model,
            "equipoise.reinforcement.attempts.solve": nothing_solved,
            "equipoise.reinforcement.reinforcing.rehearse": lambda *_, **__: None,
        },
        slow=True,
    ),
    "prm label": SmallJob(
        label_files,
        "equipoise.reinforcement.prm_labeling.Labeling._solutions",
        whole=label_whole,
        more=label_more,
        quick={
            "equipoise.language.model._from_folder": read_model,
            "equipoise.reinforcement.prm_labeling.tokens_per_second": lambda *_: 1.0,
        },
        slow=True,
    ),
    "think": SmallJob(
        think_files,
        "equipoise.decoding.steering.write_thoughts",
        whole=think_whole,
        more=think_more,
        quick={"equipoise.language.model._from_folder": read_model},
    ),
    "route label": SmallJob(
        route_label_files,
        "equipoise.routing.labeling.Labeling._weak",
        whole=route_label_whole,
        more=route_label_more,
        quick={"equipoise.language.model._from_folder": read_model},
    ),
    "route fit": SmallJob(
        route_fit_files,
        "equipoise.routing.prompt_states.extract",
        whole=route_fit_whole,
        more=route_fit_more,
        quick={"equipoise.language.model._from_folder": read_model},
        slow=True,
    ),
    "route evaluate": SmallJob(
        route_evaluate_files,
        "equipoise.routing.evaluating.Evaluating._scored",
        whole=route_evaluate_whole,
        more=route_evaluate_more,
        quick={"equipoise.language.model._from_folder": read_model},
        slow=True,
    ),
    "uncertainty bayesianize": SmallJob(
        bayesianize_files,
        "equipoise.uncertainty.bayes_work.class_logits",
        whole=bayesianize_whole,
        more=bayesianize_more,
        quick={"equipoise.language.model._from_folder": read_fresh},
        slow=True,
    ),
    "uncertainty distill": SmallJob(
        distill_files,
        "equipoise.uncertainty.bayes_work.targets",
        whole=distill_whole,
        more=distill_more,
        quick={"equipoise.language.model._from_folder": read_fresh},
        slow=True,
    ),
    "solvable fit": SmallJob(
        fit_files,
        "equipoise.reinforcement.solvable_fitting.sample",
        whole=fit_whole,
        more=fit_more,
        quick={
            "equipoise.language.model._from_folder": read_model,
            "equipoise.reinforcement.solvable_fitting.tokens_per_second": lambda *_: 1.0,
        },
        slow=True,
    ),
    "solvable score": SmallJob(
        score_files,
        "equipoise.reinforcement.solvable_scorer.Scorer.of_tokens",
        whole=score_whole,
        more=score_more,
    ),
    "prm train": SmallJob(
        prm_train_files,
        "equipoise.reinforcement.prm_training.fit",
        whole=prm_train_whole,
        more=prm_train_more,
        quick={
            "equipoise.language.model._from_folder": read_prm,
            "equipoise.reinforcement.prm.attach": lambda language_model, *_, **__: language_model,
            "equipoise.reinforcement.prm_training.rehearse": lambda *_, **__: None,
        },
        slow=True,
    ),
    "prm score": SmallJob(
        prm_score_files,
        "equipoise.reinforcement.prm.score",
        whole=prm_score_whole,
        more=prm_score_more,
        quick={"equipoise.language.model._from_folder": read_prm},
    ),
    "prm evaluate": SmallJob(
        prm_evaluate_files,
        "equipoise.reinforcement.prm.score",
        whole=prm_evaluate_whole,
        more=prm_evaluate_more,
        quick={"equipoise.language.model._from_folder": read_prm},
    ),
    "uncertainty score": SmallJob(
        uncertainty_score_files,
        "equipoise.uncertainty.scoring.Scoring._sigma",
        whole=uncertainty_score_whole,
        more=uncertainty_score_more,
        quick={
            "equipoise.language.model._from_folder": read_model,
            "equipoise.uncertainty.scoring.score_tokens": begin,
        },
        slow=True,
    ),
    "uncertainty select": SmallJob(
        uncertainty_select_files,
        "equipoise.uncertainty.selecting.write_atomic",
        whole=uncertainty_select_whole,
        more=uncertainty_select_more,
    ),
    "audit sampling": SmallJob(
        sampling_files,
        "equipoise.uncertainty.sampling_auditing.Auditing._observed",
        whole=sampling_whole,
        more=sampling_more,
        quick={"equipoise.language.model._from_folder": read_model},
        slow=True,
    ),
    "rule fit": SmallJob(
        rule_fit_files, "equipoise.privacy.ruling.RuleFitting._fitted", whole=rule_fit_whole, more=rule_fit_more
    ),
    "rule evaluate": SmallJob(
        rule_evaluate_files,
        "equipoise.privacy.ruling.RuleEvaluating._propensities",
        whole=rule_evaluate_whole,
        more=rule_evaluate_more,
    ),
    "rule plan": SmallJob(rule_plan_files, "equipoise.privacy.ruling.RulePlanning._ridges", more=rule_plan_more),
    "memory ask": SmallJob(
        memory_ask_files, "equipoise.agents.asking.Asking._taken_in", whole=memory_ask_whole, more=memory_ask_more
    ),
    "memory compare": SmallJob(
        memory_files, "equipoise.agents.comparing.Comparing._unit", whole=memory_whole, more=memory_more
    ),
    "control collect": SmallJob(
        control_collect_files,
        "equipoise.control.collecting.Collecting._logged",
        whole=control_collect_whole,
        more=control_collect_more,
    ),
    "control train": SmallJob(
        control_train_files,
        "equipoise.control.training.Training._trained",
        whole=control_train_whole,
        more=control_train_more,
    ),
    "control evaluate": SmallJob(
        control_evaluate_files,
        "equipoise.control.evaluating.Evaluating._played",
        whole=control_evaluate_whole,
        more=control_evaluate_more,
        slow=True,
    ),
    "memory compose": SmallJob(
        memory_compose_files,
        "equipoise.agents.composing.Composing._composed",
        whole=memory_compose_whole,
        more=memory_compose_more,
    ),
}
