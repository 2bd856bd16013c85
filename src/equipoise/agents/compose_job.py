"""One job: compose a life with questions, and look through questions for what gives their answers away."""

import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

from pydantic import Field

from equipoise.agents.compose_result import ComposedHistory
from equipoise.chat.options import CallBudget, Connections, ModelArguments, ModelPrices, Replay
from equipoise.core.job import Request, job

Days = Annotated[int, Field(ge=1, le=366)]
Events = Annotated[int, Field(ge=1, le=12)]
Questions = Annotated[int, Field(ge=0, le=4)]
Repairs = Annotated[int, Field(ge=0, le=5)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Tokens = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


@job("memory compose", ComposedHistory)
def compose(
    *,
    persona: Path | None = None,
    days: Days = 14,
    start: datetime.date = datetime.date(2024, 1, 1),
    model: str | None = None,
    critic: str | None = None,
    lint: Path | None = None,
    events_per_day: Events = 4,
    questions_per_day: Questions = 4,
    repairs: Repairs = 1,
    temperature: Temperature = 0.7,
    max_tokens: Tokens = 2048,
    seed: Seed = 0,
    model_url: str | None = None,
    model_args: ModelArguments = None,
    critic_url: str | None = None,
    critic_args: ModelArguments = None,
    budget: CallBudget = None,
    prices: ModelPrices = None,
    max_connections: Connections = None,
    replay: Replay = None,
) -> Request:
    """Compose a life in conversations with questions about it, as LifeDialBench's LifeMem was made, and look for leaks.

    Example that runs: `equipoise memory compose --persona examples/persona.json --days 7`

    With a model: `equipoise memory compose --persona p.json --days 30 --model openai/gpt-5-mini --budget usd=2`

    The folder gets lifelog.json (LifeDialBench's schema, which `memory compare --data` reads), plan.jsonl (every period and
    event), leaks.jsonl and a report: what each gate flagged, which questions there are, what gives answers away. The same
    command goes on where it was stopped.

    Parameters
    ----------
    persona
        A JSON file: {"name": "Mara", "about": "a nurse", "people": [{"name": "Tom", "relation": "brother"}], "lines":
        ["garden", "choir"], "fixed": [{"date": "2024-01-05", "text": "Tom's wedding"}]}. Templates know the lines garden,
        choir, running, kitchen, book group, language class, bicycles and work; a model writes any.
    days
        Days of the life.
    start
        The first of them.
    model
        Who writes, as Inspect AI names it (openai/gpt-5, or openai-api/local/NAME with model_url); equipoise/NAME is a model
        of this machine. Not given: templates, the same for the same seed.
    critic
        The model that doubts what was written and answers the questions; the writer itself when not given.
    lint
        Questions to look through for leaks: LifeDialBench's, LoCoMo's or LongMemEval's file, or one of your own.
    events_per_day
        At most.
    questions_per_day
        At most, each of another kind.
    repairs
        How often what a gate flags is written anew.
    temperature
        Of what the model writes; checks are at 0.
    max_tokens
        Of one answer at most.
    seed
        Of the templates, of the choice of distractors, of the places of right options.
    model_url
        The address of a server that speaks OpenAI's protocol.
    model_args
        Arguments of the model's client, as Inspect AI takes them.
    critic_url
        The address of the critic's server.
    critic_args
        Arguments of the critic's client.
    budget
        Of calls: calls=500,tokens=2e6,usd=4,minutes=30.
    prices
        Dollars per million tokens read and written, NAME=2.5:10.
    max_connections
        Calls of a model at once.
    replay
        A record of calls that alone answers, offline.
    """
    from equipoise.agents.composing import Composing

    return Composing.read(
        persona,
        start=start,
        days=days,
        lint=lint,
        server=SimpleNamespace(
            model=model, model_url=model_url, model_args=model_args, critic=critic, critic_url=critic_url,
            critic_args=critic_args, budget=budget, prices=prices, max_connections=max_connections, replay=replay,
        ),
        limits=SimpleNamespace(
            events_per_day=events_per_day, questions_per_day=questions_per_day, repairs=repairs, temperature=temperature,
            max_tokens=max_tokens,
        ),
        seed=seed,
    )  # fmt: skip
