"""The job: make a causal language model better at problems whose answers can be checked, and show what that cost."""

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from equipoise.core.job import Request, job
from equipoise.core.options import Setting
from equipoise.reinforcement.recipe import Recipe
from equipoise.reinforcement.result import Reinforced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from equipoise.data.environment import Maker
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel

    ModelLike = str | Path | LanguageModel | PreTrainedModel
    Problems = str | Path | Sequence[Problem | Mapping[str, Any]]
    RewardLike = str | Callable[..., Any]
    Environments = str | Maker | Sequence[str | Maker]
else:  # what a command line can give
    ModelLike = str | Path
    Problems = Path
    RewardLike = str
    Environments = str

Composition = Literal["nested", "mixed", "rotate"]
Combination = Literal["mean", "min", "product", "all"]
ToolRewarded = Literal["outcome", "process"]
NoCall = Literal["full", "zero", "task-default"]
VerifierKind = Literal["exact", "number", "choice", "regex", "f1", "math", "tests"]


def is_of_the_hub(attention: object) -> bool:
    """Whether an attention is a kernel that somebody published: transformers would fetch it and run it."""
    return isinstance(attention, str) and "/" in attention


@job("reinforce", Reinforced, rest=Recipe)
def reinforce(
    model: Annotated[ModelLike, Setting(alias=("--model-name-or-path", "-m"), objects=True)],
    *,
    prompts: Annotated[Problems | None, Setting(alias=("--dataset",), objects=True)] = None,
    verifier: VerifierKind | None = None,
    reward: Annotated[RewardLike | None, Setting(objects=True, typed=bool)] = None,
    environment: Annotated[Environments | None, Setting(objects=True, typed=bool)] = None,
    instances: Annotated[int, Field(ge=1)] | None = None,
    max_turns: Annotated[int, Field(ge=1)] | None = None,
    invalid_penalty: Annotated[float, Field(ge=0)] = 0.0,
    compose: Composition | None = None,
    compose_reward: Combination | None = None,
    keep_widest: Annotated[float, Field(gt=0, le=1)] | None = None,
    actions: Annotated[Path | None, Setting(objects=True)] = None,
    tool_reward: ToolRewarded | None = None,
    no_call: NoCall | None = None,
    eval_prompts: Annotated[Problems | None, Setting(objects=True)] = None,
    eval_samples: Annotated[int, Field(ge=1)] = 8,
    evaluate_every: Annotated[int, Field(ge=1)] = 10,
    save_every: Annotated[int, Field(ge=1), Setting(stored=False)] = 5,
    limit: Annotated[int, Field(ge=1)] | None = None,
    tokenizer: Annotated[Any, Setting(objects=True, python=True, stored=False)] = None,
    method: str = "sppo",
    critic: Path | None = None,
    predictor: Path | None = None,
    rates: Path | None = None,
    device: Annotated[str, Setting(stored=False)] = "auto",
    dtype: str = "auto",
    chat_template: str = "auto",
    date: datetime.date | None = None,
    trust_remote_code: Annotated[bool, Setting(typed=bool)] = False,
    attn_implementation: Annotated[str | None, Setting(typed=is_of_the_hub)] = None,
    unsafe_execution: Annotated[bool, Setting(typed=bool)] = False,
    fields: dict[str, str] | None = None,
    **settings: Any,
) -> Request:
    """Train a model on prompts whose answers can be checked; writes a folder that transformers loads as it is.

    Example that runs: `equipoise reinforce --model tiny --prompts examples/chains.jsonl --verifier number
    --max-new-tokens 40`

    Your own: `equipoise reinforce --model ./model --prompts gsm8k.jsonl --verifier math --method sppo --parameters lora`

    In an environment: `equipoise reinforce --model ./model --environment shop.py:make --method grpo`

    The folder gets the model or adapter, the critic beside it, a log of every step and a report. The same command goes on
    where it was stopped.

    Parameters
    ----------
    model
        Folder, GGUF file, hub id, "smollm2", or "tiny" (taught some arithmetic on the spot); in Python also a LanguageModel,
        or a model of transformers with its tokenizer, which is changed in place.
    prompts
        JSONL, CSV or Parquet with a prompt and a gold answer, also GSM8K, MATH, DAPO, MBPP and others as published; in
        Python also problems. Needed unless there is an environment.
    verifier
        How an answer is compared with the gold one.
    reward
        FILE:FUNCTION in place of a verifier: a reward function as TRL takes it, or a rubric of verifiers.
    environment
        In place of prompts and verifier: the name of a text environment, or FILE:FUNCTION of one's own, with reset(seed) and
        step(text); in Python also what makes one. Several, with commas between, are composed.
    instances
        Of the environment: seeds that are learnt from, 512 when not given; 64 others are measured on. Of one that says how
        many different episodes it has, at most these less a tenth, which is held out.
    max_turns
        Of an episode; not given: the environment's own, else 8.
    invalid_penalty
        Subtracted from an episode's score for each turn that the environment did not understand or allow; not with methods
        that take rewards in [0, 1] (sppo, ppo-bce), nor with select.
    compose
        Of several environments: nested (an episode goes through all, one after the other; also when not given), mixed (one
        prompt after the other plays the next), rotate (all prompts of a step play one, and steps take turns).
    compose_reward
        Of nested ones: the mean of their scores (also when not given), the least, the product, or 1 where all were solved.
    keep_widest
        Share of the groups of a step, those with the widest rewards, that are learnt from; not given: all.
    actions
        JSONL of recorded actions by task, as {"name", "arguments"} or OpenAI tool calls: where all episodes of a task
        failed, it is played again with the shortest beginning of its list that helps, and learnt without (ActGuide). A
        row's id is NAME-SEED, or its prompt the first text of the episode.
    tool_reward
        What calls of tools are worth, by whether the model was surer afterwards: outcome (the score times the share of calls
        that helped), process (each call by itself); not given: nothing.
    no_call
        With tool_reward outcome: what an answer without a call is worth: full (also when not given), zero, task-default.
    eval_prompts
        Problems on which before and after are compared; not given: a tenth of the prompts, held out with their groups.
    eval_samples
        Responses to each of these, for Pass@k.
    evaluate_every
        Steps between looks at them.
    save_every
        Steps between checkpoints.
    limit
        Only the first so many prompts.
    tokenizer
        Of a model that is given as an object of transformers.
    method
        A preset of advantage, loss and the rest: sppo, apo, r2po, grpo, dr-grpo, rloo, remax, reinforce++, dapo, ppo, ...
    critic
        A folder of a critic, or of a smaller model with the same tokenizer to make one of; not given: as large as the model.
    predictor
        With select dots: a folder that DifficultyPredictor.save wrote, of one fitted to embeddings of this model.
    rates
        With select dots: JSONL with id (or prompt), model and rate, the share of right responses that other models gave; a
        predictor is fitted to them at the start. Without either, the model's own embeddings are compared as they are.
    device
        auto, cpu, cuda, cuda:1, mps.
    dtype
        auto (float32 on a CPU), float32, bfloat16, float16.
    chat_template
        auto, none, or a file with a Jinja template.
    date
        What chat templates write as today's, the same on every day: 2024-07-26 when not given.
    trust_remote_code
        Run code that comes with a model of the hub.
    attn_implementation
        sdpa, eager, or another that transformers knows; not given: its own choice.
    unsafe_execution
        Run generated programs (verifier tests) also where this machine cannot isolate them.
    fields
        The file's own names of fields, where it has others: prompt=ask,gold=reply.
    """
    from equipoise.reinforcement.reinforcing import Reinforcing

    return Reinforcing.read(
        model,
        tokenizer,
        prompts,
        environment,
        judged={
            "eval_prompts": eval_prompts,
            "verifier": verifier,
            "reward": reward,
            "unsafe": unsafe_execution,
            "limit": limit,
            "fields": fields,
        },
        played={
            "instances": instances,
            "max_turns": max_turns,
            "invalid_penalty": invalid_penalty,
            "compose": compose,
            "compose_reward": compose_reward,
            "keep_widest": keep_widest,
            "actions": actions,
            "tool_reward": tool_reward,
            "no_call": no_call,
        },
        method=method,
        settings=settings,
        samples=eval_samples,
        every=evaluate_every,
        save_every=save_every,
        critic=critic,
        predictor=predictor,
        rates=rates,
        loading={
            "device": device,
            "dtype": dtype,
            "chat_template": chat_template,
            "date": date,
            "trust_remote_code": trust_remote_code,
        },
        attention=attn_implementation,
    )
