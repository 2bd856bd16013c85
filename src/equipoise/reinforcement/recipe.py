"""The vocabulary in which every method of reinforcement is written; a preset fills it (`METHODS`)."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.options import Options, check_fields
from equipoise.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from equipoise.reinforcement.stages import Step

CriticKind = Literal["none", "prompt", "token", "token-bce"]


@dataclass(frozen=True, kw_only=True)
class Advantage:
    """How much better than expected each response was, as a recipe names it.

    compute: (step, recipe) -> [P, N], one a response, or [P N, T], one a token. critic: what is trained beside the policy.
    greedy: whether the greedy answer to each prompt is scored, too. past: whether it reads the prompts' earlier rewards.
    of_tokens: whether tokens have rewards of their own, as kl_in="reward" needs them. samples: responses a prompt when the
    recipe does not say. least: the fewest it works with. unit: whether rewards must lie in [0, 1]. settings: those of a
    recipe that count with it alone.
    """

    compute: "Callable[[Step, Recipe], Tensor]"
    critic: CriticKind = "none"
    greedy: bool = False
    past: bool = False
    of_tokens: bool = False
    samples: int = 8
    least: int = 1
    unit: bool = False
    settings: tuple[str, ...] = ()

    @property
    def within(self) -> bool:
        """Whether a response is compared with others to the same prompt alone: where these are alike nothing is learnt."""
        return self.least > 1 or self.greedy

    def __post_init__(self) -> None:
        check_fields(self)


ADVANTAGES: Registry[Advantage] = Registry("equipoise.reinforcement", "ADVANTAGES")
METHODS: Registry[dict[str, Any]] = Registry("equipoise.reinforcement", "METHODS")  # presets: settings by their names

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
if TYPE_CHECKING:
    AdvantageName = str
else:
    AdvantageName = Literal[tuple(ADVANTAGES)]


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """Everything that decides a run but the model, the prompts, the verifier and the seed's draws."""

    advantage: AdvantageName = Field(default="sppo", description="What a response is compared with.")
    loss: Literal["clipped", "anchored"] = Field(
        default="clipped", description="PPO's clipped surrogate, or APO's, which flows back to the reference."
    )
    parameters: Literal["full", "lora"] = Field(default="full", description="What may move; lora writes an adapter.")
    steps: Count = Field(default=50, description="Batches of prompts that are rolled out and learnt from.")
    prompts_per_step: Count = Field(default=64, description="Prompts of a batch.")
    num_generations: Count | None = Field(
        default=None, description="Responses a prompt; not given: 1 with a critic, else 8."
    )
    batch_size: Count | None = Field(
        default=None, description="Responses of an optimizer step; not given: the whole batch, so that it is on-policy."
    )
    micro_batch_size: Count | None = Field(default=None, description="Responses in memory at once.")
    rollout_batch_size: Count = Field(default=64, description="Responses that are written at once.")
    max_new_tokens: Count = Field(default=256, description="Tokens of a response at most.")
    temperature: Positive = Field(default=1.0, description="At which responses are sampled, and scored.")
    learning_rate: Positive | None = Field(
        default=None, description="Of AdamW; when not given, by the number of trained parameters."
    )
    schedule: Literal["linear", "constant", "cosine"] = Field(
        default="constant", description="Of the learning rate after its warm-up."
    )
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Share of the optimizer steps in which the rate rises."
    )
    weight_decay: NotNegative = Field(default=0.0, description="Of AdamW.")
    max_grad_norm: Positive = Field(default=1.0, description="Largest norm of a gradient.")
    aggregate: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"] = Field(
        default="token-mean", description="How the losses of tokens are averaged over an optimizer step."
    )
    clip_low: Annotated[float, Field(gt=0, le=1)] = Field(default=0.2, description="How far below 1 the ratio counts.")
    clip_high: Positive = Field(default=0.2, description="How far above 1 the ratio counts.")
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(
        default=None, description="Bound of the loss of unlikely wrong tokens, in advantages; not given: none."
    )
    kl_beta: NotNegative = Field(default=0.0, description="Weight of the KL to the starting model.")
    kl_estimator: Literal["k1", "k2", "k3", "k3+"] = Field(default="k3", description="How the KL is estimated.")
    kl_in: Literal["loss", "reward"] = Field(default="loss", description="Where the KL is added.")
    kl_on: Literal["all", "wrong"] = Field(
        default="all", description="On every response, or on those with a negative advantage alone."
    )
    entropy_beta: NotNegative = Field(default=0.0, description="Weight of an entropy bonus.")
    normalize: bool = Field(default=False, description="SPPO: divide the advantage by the critic's standard deviation.")
    critic_learning_rate: Positive | None = Field(
        default=None, description="Of the critic; not given: five times the policy's."
    )
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = Field(default=1.0, description="Of PPO's advantages.")
    push: Positive = Field(default=1.05, description="APO: weight of the ratio of a wrong token.")
    pull: NotNegative = Field(default=0.1, description="APO: weight of the anchors.")
    anchors: Count = Field(default=8, description="APO: likeliest tokens of the starting model that are anchors.")
    clip_mode: Literal["inside", "outside"] = Field(default="inside", description="APO: how the ratio meets the clip.")
    inclusive: bool = Field(default=False, description="APO: whether the sampled token may be its own anchor.")
    mixed_only: bool = Field(
        default=False, description="DAPO: draw prompts until as many have groups with right and wrong responses."
    )
    overlong: Annotated[int, Field(ge=0)] = Field(
        default=0, description="DAPO: last tokens before the limit in which the reward falls by up to 1."
    )
    head: Literal["none", "trained", "random"] = Field(
        default="none", description="R2PO: a head that samples for training alone; random: one that never learns."
    )
    head_advantage: Literal["rarity", "task"] = Field(default="task", description="R2PO: what the head is paid for.")
    head_steps: Count = Field(default=20, description="R2PO: steps of a round in which the head learns.")
    policy_steps: Count = Field(default=40, description="R2PO: steps of a round in which the policy learns.")
    head_learning_rate: Positive | None = Field(default=None, description="R2PO: of the head; not given: the policy's.")
    head_scale: Positive = Field(default=0.02, description="R2PO: standard deviation of a random head's output matrix.")
    importance_cap: Positive | None = Field(
        default=None, description="R2PO: bound of the weight for what the head sampled; not given: no weight."
    )
    select: Literal["uniform", "dots", "oracle"] = Field(
        default="uniform",
        description="Which prompts are next: any, or those whose difficulty is near the target, predicted or measured.",
    )
    select_every: Count = Field(default=2, description="DOTS: steps of a block, before which difficulty is predicted.")
    difficulty_target: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="DOTS: 1 minus the mean reward of the prompts that are sought."
    )
    select_temperature: Positive = Field(
        default=1e-3, description="DOTS: how far from the target prompts are drawn, in difficulty."
    )
    reference_questions: Annotated[int, Field(ge=8)] = Field(
        default=256, description="DOTS: prompts that are answered before a block, to predict the others from."
    )
    refit: Literal["none", "in-sample", "cross-fitted"] = Field(
        default="none", description="DOTS: whether predictions are put on a line through these prompts."
    )
    prediction_worth: Positive | None = Field(
        default=None,
        description="DOTS: as how many responses a prediction counts beside those of earlier steps; not given: alone.",
    )
    replay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of a batch's prompts whose responses come again from earlier steps."
    )
    replay_capacity: Count | None = Field(
        default=None, description="Prompts whose responses are kept for that; not given: as many as a batch has."
    )
    clip_window: Literal["behavior", "current"] = Field(
        default="behavior",
        description="Replay, recorded actions: the ratio is held near the policy that wrote a response, or the present one.",
    )
    lora_rank: Count = Field(default=16, description="Rank of the LoRA adapter.")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Seed of the order of prompts and of every draw.")

    @property
    def samples(self) -> int:
        """Responses a prompt."""
        return self.num_generations or ADVANTAGES[self.advantage].samples

    @property
    def critic(self) -> CriticKind:
        """What is trained beside the policy."""
        return ADVANTAGES[self.advantage].critic

    @property
    def minibatch(self) -> int:
        """Responses of an optimizer step."""
        return min(self.batch_size or self.responses, self.responses)

    @property
    def responses(self) -> int:
        """Responses of a batch of prompts."""
        return self.prompts_per_step * self.samples

    @property
    def updates(self) -> int:
        """Optimizer steps of a batch of prompts."""
        return -(-self.responses // self.minibatch)

    @property
    def replayed(self) -> int:
        """Prompts of a batch whose responses come again, once the buffer holds as many."""
        return math.floor(self.replay * self.prompts_per_step + 0.5)

    @property
    def capacity(self) -> int:
        """Prompts whose responses are kept."""
        return self.replay_capacity or self.prompts_per_step

    def measured(self, count: int) -> int:
        """Responses of a run to what is measured before its blocks, of so many prompts."""
        if self.select == "uniform" or self.select_temperature == math.inf:
            return 0
        asked = self.reference_questions if self.select == "dots" else count
        return -(-self.steps // self.select_every) * asked * self.samples

    @property
    def reference(self) -> bool:
        """Whether the starting model is asked, too."""
        return self.loss == "anchored" or self.kl_beta > 0

    def stage(self, step: int) -> Literal["policy", "head"]:
        """Which of both learns in a step (from 0)."""
        if self.head != "trained":
            return "policy"
        return "head" if step % (self.head_steps + self.policy_steps) < self.head_steps else "policy"

    def resolved_learning_rate(self, trained_parameters: int) -> float:
        """learning_rate as given, else the larger the smaller the trained part is; an orientation, not a tuned value."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.parameters == "lora":
            return 1e-4
        return 1e-6 if trained_parameters > 1e9 else 5e-6 if trained_parameters > 5e7 else 1e-4

    def resolved(self, trained_parameters: int, *, guided: bool = False) -> dict[str, Any]:
        """Every setting that counts with its value, for a model with so many trained parameters. guided: as of `used`."""
        rate = self.resolved_learning_rate(trained_parameters)
        settings = self.model_dump() | {
            "num_generations": self.samples,
            "batch_size": self.minibatch,
            "learning_rate": rate,
            "critic_learning_rate": self.critic_learning_rate or 5 * rate,
            "head_learning_rate": self.head_learning_rate or rate,
            "replay_capacity": self.capacity,
        }
        return {name: value for name, value in settings.items() if name in self.used(guided) and value is not None}

    def used(self, guided: bool = False) -> set[str]:
        """The settings that count with this recipe's method. guided: whether a stage has another policy write (`Guided`)."""
        unused = {name for each in ADVANTAGES.values() for name in each.settings}
        unused -= set(ADVANTAGES[self.advantage].settings)
        unused |= {"dual_clip"} if self.loss == "anchored" else {"push", "pull", "anchors", "clip_mode", "inclusive"}
        if not self.kl_beta:
            unused |= {"kl_estimator", "kl_in", "kl_on"}
        elif self.kl_in == "reward":
            unused |= {"kl_estimator", "kl_on"}  # k1, at every token
        if self.critic == "none":
            unused |= {"critic_learning_rate"}
        if self.parameters != "lora":
            unused |= {"lora_rank"}
        if self.head != "trained":
            unused |= {"head_advantage", "head_steps", "policy_steps", "head_learning_rate"}
        if self.head != "random":
            unused |= {"head_scale"}
        if self.head == "none":
            unused |= {"importance_cap"}
        if self.select == "uniform":
            unused |= {"difficulty_target", "select_temperature"}
        if self.select != "dots":
            unused |= {"reference_questions", "refit", "prediction_worth"}
        if not self.replay:
            unused |= {"replay_capacity"} if guided else {"replay_capacity", "clip_window"}
        if self.select == "uniform" and not self.replay:
            unused |= {"select_every"}
        return set(type(self).model_fields) - unused

    def check(self) -> None:
        """Raises BadInput for settings that do not go together."""
        chosen = ADVANTAGES[self.advantage]
        if self.samples < chosen.least:
            raise BadInput(
                f"num_generations is {self.samples}, but {self.advantage} compares the responses to a prompt with each "
                f"other: use at least {chosen.least}, or an advantage that needs one alone (sppo, reinforce++)."
            )
        if self.kl_beta and self.kl_in == "loss":
            from equipoise.reinforcement.policy_loss import check_kl_in_loss

            check_kl_in_loss(self.kl_estimator)
        if self.kl_beta and self.kl_in == "reward" and not chosen.of_tokens:
            raise BadInput(
                f"kl_in is 'reward', which needs rewards of tokens, and {self.advantage} has none: use 'loss'."
            )
        if self.kl_beta and self.kl_in == "reward" and self.kl_on == "wrong":
            raise BadInput("kl_on is 'wrong', but in the reward the KL is on every token: use kl_in='loss'.")
        if self.kl_beta and self.kl_in == "reward" and self.head != "none":
            raise BadInput(
                "kl_in is 'reward', where the KL is of what the rollout head sampled from, and the policy learns: use "
                "kl_in='loss'."
            )
        if self.loss == "anchored" and self.dual_clip is not None:
            raise BadInput("dual_clip bounds a ratio above 0, and APO's may be below: use dual_clip=None.")
        if self.head != "none" and self.critic != "none":
            raise BadInput(f"a rollout head and the critic of {self.advantage} do not go together: use grpo.")
        if self.head == "trained" and self.samples < 2:
            raise BadInput(
                f"num_generations is {self.samples}, and a trained head is paid for what differs in a group: use at least "
                "2, or head=random."
            )
        if self.head == "trained" and self.steps <= self.head_steps:
            raise BadInput(
                f"steps is {self.steps}, but the first {self.head_steps} (head_steps) are the head's, so that the policy "
                "would learn nothing: use more steps, or fewer head_steps."
            )
        if self.overlong > self.max_new_tokens:
            raise BadInput(f"overlong is {self.overlong}, more than max_new_tokens ({self.max_new_tokens}).")
        if self.overlong and chosen.unit:
            raise BadInput(f"overlong takes up to 1 off a reward, and {self.advantage} needs rewards in [0, 1]: use 0.")
        if self.mixed_only and self.samples < 2:
            raise BadInput(
                "mixed_only looks for right and wrong responses to one prompt: use num_generations=2 or more."
            )
        if self.replay:
            self._check_replay(chosen)
        if self.select != "uniform":
            self._check_selection(chosen)

    def check_pool(self, count: int) -> None:
        """Raises BadInput for settings that so many prompts cannot serve."""
        if self.select == "dots" and self.reference_questions > count:
            raise BadInput(
                f"reference_questions is {self.reference_questions}, and there are {count} prompts: use "
                + (f"at most {count}." if count >= 8 else "select=uniform, since 8 are the fewest.")
            )
        block = self.select_every * self.prompts_per_step
        if self.select != "uniform" and block > count:
            raise BadInput(
                f"a block of {self.select_every} steps takes {block} different prompts, and there are {count}: use a "
                "smaller prompts_per_step or select_every."
            )

    def _check_selection(self, chosen: Advantage) -> None:
        if self.samples < 2:
            raise BadInput(
                f"select is {self.select!r}, which seeks prompts with right and wrong responses: use num_generations=2 or "
                "more, or an advantage that compares responses (grpo)."
            )
        for clash, what in (
            (self.mixed_only, "mixed_only, which draws until it has enough: use one of the two"),
            (
                chosen.greedy,
                f"{self.advantage}, which would answer the measured prompts once more: use another advantage",
            ),
        ):
            if clash:
                raise BadInput(f"select is {self.select!r}, which does not go together with {what}.")

    def _check_replay(self, chosen: Advantage) -> None:
        if not 1 <= self.replayed < self.prompts_per_step:
            raise BadInput(
                f"replay is {self.replay}, which is {self.replayed} of the {self.prompts_per_step} prompts of a batch: at "
                "least one has to come again, and one to be new. Use more prompts_per_step, or replay=0."
            )
        if self.capacity < self.replayed:
            raise BadInput(
                f"replay_capacity is {self.capacity}, but {self.replayed} prompts of a batch come again: use at least as "
                "many."
            )
        for clash, what in (
            (
                self.critic != "none",
                f"the critic of {self.advantage}, which learns from new responses alone (grpo has none)",
            ),
            (chosen.past, f"{self.advantage}, which would count old rewards twice"),
            (chosen.greedy, f"{self.advantage}, whose greedy answers are the present policy's"),
            (self.head != "none", "a rollout head, which writes with another policy than learns"),
            (self.loss == "anchored", "loss='anchored', whose window is another"),
            (self.kl_beta > 0, "kl_beta above 0, whose estimate needs tokens of the present policy"),
            (self.mixed_only, "mixed_only, which draws until it has enough"),
        ):
            if clash:
                raise BadInput(
                    f"replay is {self.replay}, which does not go together with {what}: leave one of them out."
                )
        if self.samples < 2:
            raise BadInput("replay keeps prompts with right and wrong responses: use num_generations=2 or more.")


@functools.cache
def _options() -> Options:
    return Options(recipe, rest=Recipe)


def recipe(method: str | None = None, **settings: Any) -> Recipe:
    """The recipe of a preset, with settings of one's own over it.

    Raises BadInput for an unknown name, a wrong value, and settings that do not go together.
    """
    if method is not None and method not in METHODS:
        raise BadInput(f"no method of reinforcement is called {method!r}. {did_you_mean(method, METHODS)}")
    read = _options().read(settings)
    made = Recipe(**{**(METHODS[method] if method else {}), **{name: read[name] for name in settings}})
    made.check()
    return made
