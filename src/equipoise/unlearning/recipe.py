"""The vocabulary in which every unlearning method is written; a method's name is a preset that fills it (`METHODS`)."""

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.options import Options
from equipoise.core.registry import Registry

if TYPE_CHECKING:
    from equipoise.training.two_gradients import Combine
    from equipoise.unlearning.objectives import Objective

OBJECTIVES: "Registry[Objective]" = Registry("equipoise.unlearning", "OBJECTIVES")
COMBINE: "Registry[Combine]" = Registry("equipoise.unlearning", "COMBINE")
METHODS: Registry[dict[str, Any]] = Registry("equipoise.unlearning", "METHODS")  # presets: settings by their names

# Names of earlier versions, and what each has become.
RENAMED_METHODS = {
    "gru": "the preset 'gru' is now 'gru-core': it is GRU's projection, without the remembered retain gradient and the "
    "cosine clip of arXiv:2503.09117.",
}
RENAMED = {
    "delta": "delta is now gamma, SimNPO's margin as in its paper: gamma = beta * delta.",
    "rate": "learning_rate",
    "micro_batch": "micro_batch_size",
    "rank": "lora_rank",
}

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
# Of GUARD's scores; `guard.varied` says what each is. The last three are controls.
Variant = Literal["plain", "cosine", "clipped", "cosine-clipped", "permuted", "flipped", "norm"]
GUARDED = {"temperature", "floor", "variant"}  # settings of weigh="guard"
WholeNumber = Annotated[int, Field(ge=0)]
# Settings that count only with a word of another: with project, with gradient_filter, with update, with robust.
PROJECTED = {"components", "mean_mode", "basis"}
FILTERED = {"cir_activations", "cir_gradients", "cir_every"}
FIXED = {"update_length", "retain_learning_rate"}
# Of an adapter alone, and of these what counts with start="reglu" and with orthogonality above 0.
ADAPTER = {"lora_rank", "start", "guidance", "pooling", "orthogonality", "retain_directions"}
Start = Literal["default", "reglu", "fila", "vila"]
Pooling = Literal["sum", "mean", "last"]
ADAPTIVE = {"combine", "forget_weight", "retain_weight", "learning_rate"}
if TYPE_CHECKING:
    ObjectiveName = CombineName = str
else:
    ObjectiveName, CombineName = Literal[tuple(OBJECTIVES)], Literal[tuple(COMBINE)]


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """Everything that decides an unlearning run but the model, the data and the seed's draws."""

    objective: ObjectiveName = Field(default="simnpo", description="What pushes the forget set away.")
    retain_objective: Literal["gd", "kl"] = Field(
        default="gd",
        description="What holds the retain set: cross-entropy, or KL to the starting model (RMU brings its own).",
    )
    combine: CombineName = Field(
        default="sago", description="How the forget and the retain gradient become one update."
    )
    weigh: Literal["uniform", "guard"] = Field(
        default="uniform",
        description="How the forget records are weighed: alike, or less the more forgetting one would hurt the retain set.",
    )
    temperature: Positive = Field(
        default=2.0, description="Of guard, in standard deviations of the scores; --weigh uniform weighs all alike."
    )
    floor: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Least weight that guard gives a record."
    )
    variant: Variant = Field(default="plain", description="Which score guard goes by; the last three are controls.")
    parameters: Literal["full", "mlp", "lora"] = Field(
        default="full",
        description="What may move: all, the linear maps of the feed-forward parts, or an adapter, which is then written.",
    )
    forget_weight: NotNegative = Field(default=1.0, description="Weight of the forget gradient (gamma of the paper).")
    retain_weight: NotNegative | None = Field(
        default=None, description="Weight of the retain gradient (alpha); not given: 0.1 for npo and simnpo, else 1."
    )
    beta: Positive | None = Field(
        default=None,
        description="Of NPO, DPO (0.1 when not given), SimNPO (2.5), WGA (1); of UNDIAL (10), what a logit is lowered by.",
    )
    beta1: NotNegative = Field(
        default=5.0, description="Of SatImp: power of a token's probability; above 0, what is forgotten counts less."
    )
    beta2: NotNegative = Field(
        default=1.0, description="Of SatImp: power of one minus that; above 0, what is certain counts less."
    )
    gamma: float = Field(
        default=0.0,
        description="Margin of SimNPO, taken off beta times the loss per token; beta times released code's.",
    )
    steering: Positive = Field(default=2.0, description="Length of RMU's steering vector.")
    first_block: WholeNumber | None = Field(
        default=None,
        description="First block whose feed-forward output MLP breaking turns away; 6 of 32 (0 of up to 8) when not given.",
    )
    last_block: WholeNumber | None = Field(
        default=None,
        description="Last such block, where the retain set is held, too; 11 of 32 (all of up to 8) when not given.",
    )
    project: Literal["none", "mcu", "random"] = Field(
        default="none",
        description="Taken out of the representations that the objective sees: their main components, or random directions.",
    )
    components: WholeNumber = Field(default=8, description="Directions taken out, the mean among them; 0 for none.")
    mean_mode: Literal["direction", "subtract", "none"] = Field(
        default="direction", description="The mean as one of the directions, subtracted before them, or left alone."
    )
    basis: Literal["orthonormal", "sequential"] = Field(
        default="orthonormal", description="Directions removed together, or one after the other as released."
    )
    gradient_filter: Literal["none", "cir"] = Field(
        default="none",
        description="cir: forget gradients of linear maps without the main components of what makes them.",
    )
    cir_activations: WholeNumber | None = Field(
        default=None,
        description="Components taken out of what enters a linear map; 24 when not given, fewer below a width of 1536.",
    )
    cir_gradients: WholeNumber | None = Field(
        default=None,
        description="Components taken out of the gradients at its output; 36 when not given, fewer below a width of 1536.",
    )
    cir_every: Count | None = Field(
        default=None, description="Steps between refreshes of these; a pass over the forget set when not given."
    )
    robust: Literal["none", "sam", "smoothing"] = Field(
        default="none",
        description="Where the forget gradient is taken: here, uphill by rho, or as a mean over three random places around.",
    )
    rho: Positive = Field(default=0.01, description="Length of SAM's step, standard deviation of smoothing's.")
    update: Literal["adamw", "fixed-length"] = Field(
        default="adamw",
        description="AdamW on the combined gradients, or forget steps of one length, each followed by a retain step of SGD.",
    )
    update_length: Positive | None = Field(
        default=None, description="Length of every forget step; when not given, by the number of trained parameters."
    )
    retain_learning_rate: NotNegative = Field(default=3e-4, description="Of the retain steps.")
    loss_budget: Positive | None = Field(
        default=None,
        description="End when general text has lost so many nats per token: of --general, else of retain records held out.",
    )
    learning_rate: Positive | None = Field(
        default=None, description="Peak learning rate of AdamW; when not given, by the number of trained parameters."
    )
    steps: Count = Field(default=100, description="Optimizer steps.")
    batch_size: Count = Field(default=16, description="Forget records a step, and as many retain records.")
    micro_batch_size: Count | None = Field(
        default=None, description="Records in memory at once; a batch is split to fit."
    )
    max_length: Annotated[int, Field(ge=2)] = Field(
        default=512, description="Tokens of a record; what is longer is cut."
    )
    train_blocks: Count | None = Field(default=None, description="Train the last so many transformer blocks only.")
    lora_rank: Count = Field(default=16, description="Rank of the LoRA adapter.")
    start: Start = Field(
        default="default",
        description="Where an adapter begins: without effect, or, with what the model computes unchanged, in directions or "
        "weights of the forget set.",
    )
    guidance: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.7,
        description="Of start reglu: how much retain outputs count against forget outputs (beta of the paper).",
    )
    pooling: Pooling = Field(
        default="sum", description="How a sequence's outputs become one vector: over its tokens, or the last one's."
    )
    orthogonality: NotNegative = Field(
        default=0.0,
        description="Weight of the penalty that keeps an adapter out of the main directions of retain outputs (lambda).",
    )
    retain_directions: Count | None = Field(
        default=None, description="How many these are in each map; 128, at most a quarter of its width, when not given."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Seed of the data order and of every draw.")

    @property
    def resolved_beta(self) -> float:
        """beta as given, else as the objective's paper sets it for TOFU; nan where it has none."""
        return self.beta if self.beta is not None else OBJECTIVES[self.objective].beta

    @property
    def resolved_retain_weight(self) -> float:
        """retain_weight as given, else as the released configurations of SAGO (arXiv:2604.14808) have it for WMDP."""
        return self.retain_weight if self.retain_weight is not None else OBJECTIVES[self.objective].retain_weight

    @property
    def projects(self) -> bool:
        """Whether anything is taken out of representations."""
        return self.project != "none" and self.components > 0

    @property
    def begins(self) -> bool:
        """Whether the adapter has to be told, from the model and the data, where to begin or what to keep out of."""
        return self.start != "default" or self.orthogonality > 0

    def resolved(self, trained_parameters: int) -> dict[str, Any]:
        """Every setting that counts with its value, for a model with so many trained parameters."""
        settings = self.model_dump() | {
            "retain_weight": self.resolved_retain_weight,
            "learning_rate": self.resolved_learning_rate(trained_parameters),
            "update_length": self.resolved_update_length(trained_parameters),
            "beta": self.resolved_beta,
        }
        return {name: value for name, value in settings.items() if name in self.used() and value is not None}

    def used(self) -> set[str]:
        """The settings that count with this recipe's objective and parameters."""
        own = OBJECTIVES[self.objective]
        unused = {name for other in OBJECTIVES.values() for name in other.settings} - set(own.settings)
        unused |= {"retain_objective"} if own.retain is not None else set()
        unused |= GUARDED if self.weigh != "guard" else set()
        unused |= PROJECTED if self.project == "none" else set()
        unused |= FILTERED if self.gradient_filter == "none" else set()
        unused |= FIXED if self.update == "adamw" else ADAPTIVE
        unused |= {"rho"} if self.robust == "none" else set()
        # Switches that are off say nothing.
        unused |= {name for name in ("project", "gradient_filter", "robust") if getattr(self, name) == "none"}
        unused |= {"update"} if self.update == "adamw" else set()
        unused |= ADAPTER if self.parameters != "lora" else {"train_blocks"}
        unused |= {"start"} if self.start == "default" else set()
        unused |= {"guidance"} if self.start != "reglu" else set()
        unused |= {"orthogonality", "retain_directions"} if self.orthogonality == 0 else set()
        unused |= {"train_blocks"} if self._has_own_parameters else set()
        unused |= {"pooling"} if self.start != "reglu" and self.orthogonality == 0 else set()
        return set(type(self).model_fields) - unused

    @property
    def _has_own_parameters(self) -> bool:
        """Whether the objective says what may move, as RMU does where the linear maps are not asked for."""
        return OBJECTIVES[self.objective].parameters is not None and self.parameters == "full"

    def without_effect(self, given: Iterable[str]) -> list[str]:
        """Of settings that were given, those that differ from their defaults and count for nothing beside the others."""
        fields, used = type(self).model_fields, self.used()
        return [name for name in given if name not in used and getattr(self, name) != fields[name].default]

    def resolved_learning_rate(self, trained_parameters: int) -> float:
        """learning_rate as given, else the larger the smaller the trained part is; an orientation, not a tuned value."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.parameters == "lora":
            return 2e-4
        return 1e-5 if trained_parameters > 1e9 else 5e-5 if trained_parameters > 5e7 else 1e-3

    def resolved_update_length(self, trained_parameters: int) -> float:
        """update_length as given, else what moves a weight as far as 0.2 does in MCU's Llama-3.1-8B, or further if small."""
        if self.update_length is not None:
            return self.update_length
        per_weight = 4.4e-6 if trained_parameters > 1e9 else 1e-5 if trained_parameters > 5e7 else 5e-4
        return per_weight * trained_parameters**0.5

    def check(self) -> "Recipe":
        """Itself. Raises BadInput for words that cannot go together."""
        if self.project != "none" and OBJECTIVES[self.objective].places is None:
            able = [name for name in OBJECTIVES if OBJECTIVES[name].places is not None]
            raise BadInput(
                f"project takes directions out of representations, and {self.objective} looks at none: leave it out, or use "
                f"objective {' or '.join(able)}."
            )
        if self.gradient_filter != "none" and self.parameters == "lora":
            raise BadInput(
                "cir filters the gradients of a model's own linear maps, which an adapter does not train: use "
                "parameters mlp or full, or leave gradient_filter out."
            )
        if self.train_blocks is not None and self._has_own_parameters:
            raise BadInput(
                f"{self.objective} trains a few matrices of its own: leave train_blocks out, or use parameters mlp."
            )
        if self.begins and self.parameters != "lora":
            raise BadInput("start and orthogonality are of an adapter: use parameters lora, or leave them out.")
        if self.orthogonality and self.update != "adamw":
            raise BadInput(
                f"orthogonality is part of the retain loss, which update {self.update} has none of: use adamw."
            )
        if self.orthogonality and self.resolved_retain_weight == 0:
            raise BadInput(
                "orthogonality is part of the retain side, and retain_weight 0 leaves that out: set it above 0."
            )
        return self


@functools.cache
def _options() -> Options:
    return Options(recipe, rest=Recipe, renamed=RENAMED)


def recipe(method: str | None = None, **settings: Any) -> Recipe:
    """The recipe of a preset, with settings of one's own over it. Raises BadInput for an unknown name or a wrong value."""
    if method in RENAMED_METHODS:
        raise BadInput(RENAMED_METHODS[method])
    if method is not None and method not in METHODS:
        raise BadInput(f"no unlearning method is called {method!r}. {did_you_mean(method, METHODS)}")
    read = _options().read(settings)
    return Recipe(**{**(METHODS[method] if method else {}), **{name: read[name] for name in settings}}).check()
