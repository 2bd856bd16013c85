"""The vocabulary in which every unlearning method is written; a method's name is a preset that fills it (`METHODS`)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from equipoise.core.errors import BadInput, did_you_mean

METHODS: dict[str, dict[str, Any]] = {
    "graddiff": {"objective": "ga", "combine": "sum"},
    "npo": {"objective": "npo", "combine": "sum"},
    "simnpo": {"objective": "simnpo", "combine": "sum"},
    "rmu": {"objective": "rmu", "combine": "sum"},
    "pcgrad": {"objective": "simnpo", "combine": "pcgrad"},
    "gru-core": {"objective": "npo", "combine": "pcgrad-global"},
    "blur": {"objective": "npo", "combine": "blur", "retain_weight": 1.0},  # BLUR-NPO, as released
    "sago": {"objective": "simnpo", "combine": "sago"},
}
# Names of earlier versions, and what each has become.
RENAMED_METHODS = {
    "gru": "the preset 'gru' is now 'gru-core': it is GRU's projection, without the remembered retain gradient and the "
    "cosine clip of arXiv:2503.09117.",
}
RENAMED = {"delta": "delta is now gamma, SimNPO's margin as in its paper: gamma = beta * delta."}

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """Everything that decides an unlearning run but the model, the data and the seed's draws."""

    objective: Literal["ga", "npo", "simnpo", "rmu"] = Field(
        default="simnpo", description="What pushes the forget set away."
    )
    retain_objective: Literal["gd", "kl"] = Field(
        default="gd",
        description="What holds the retain set: cross-entropy, or KL to the starting model (RMU brings its own).",
    )
    combine: Literal["sum", "pcgrad", "pcgrad-global", "sago", "sago-prefer-retain", "blur"] = Field(
        default="sago", description="How the forget and the retain gradient become one update."
    )
    parameters: Literal["full", "lora"] = Field(default="full", description="What may move; lora writes an adapter.")
    forget_weight: NotNegative = Field(default=1.0, description="Weight of the forget gradient (gamma of the paper).")
    retain_weight: NotNegative | None = Field(
        default=None, description="Weight of the retain gradient (alpha); not given: 0.1 for npo and simnpo, else 1."
    )
    beta: Positive | None = Field(
        default=None, description="Of NPO (0.1 when not given) and SimNPO (2.5 when not given)."
    )
    gamma: float = Field(
        default=0.0,
        description="Margin of SimNPO, taken off beta times the loss per token; beta times released code's.",
    )
    steering: Positive = Field(default=2.0, description="Length of RMU's steering vector.")
    learning_rate: Positive | None = Field(
        default=None, description="Peak learning rate of AdamW; when not given, by the number of trained parameters."
    )
    steps: Count = Field(default=100, description="Optimizer steps.")
    batch_size: Count = Field(default=16, description="Forget records a step, and as many retain records.")
    micro_batch_size: Count | None = Field(default=None, description="Records in memory at once; a batch is split to fit.")
    max_length: Annotated[int, Field(ge=2)] = Field(
        default=512, description="Tokens of a record; what is longer is cut."
    )
    train_blocks: Count | None = Field(default=None, description="Train the last so many transformer blocks only.")
    lora_rank: Count = Field(default=16, description="Rank of the LoRA adapter.")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Seed of the data order and of every draw.")

    @property
    def resolved_beta(self) -> float:
        """beta as given, else 0.1 for NPO and 2.5 for SimNPO, as their papers set it for TOFU."""
        return self.beta if self.beta is not None else 0.1 if self.objective == "npo" else 2.5

    @property
    def resolved_retain_weight(self) -> float:
        """retain_weight as given, else as the released configurations of SAGO (arXiv:2604.14808) have it for WMDP."""
        if self.retain_weight is not None:
            return self.retain_weight
        return 0.1 if self.objective in ("npo", "simnpo") else 1.0

    def resolved(self, trained_parameters: int) -> dict[str, Any]:
        """Every word with its value, for a model with so many trained parameters; beta only where the objective has one."""
        words = self.model_dump() | {
            "retain_weight": self.resolved_retain_weight,
            "learning_rate": self.resolved_learning_rate(trained_parameters),
            "beta": self.resolved_beta,
        }
        return {key: value for key, value in words.items() if key in self.words() and value is not None}

    def words(self) -> set[str]:
        """The words that this recipe's objective and parameters use."""
        unused = {"gamma"} if self.objective != "simnpo" else set()
        unused |= {"beta"} if self.objective not in ("npo", "simnpo") else set()
        unused |= {"steering"} if self.objective != "rmu" else {"retain_objective"}
        unused |= {"lora_rank"} if self.parameters != "lora" else {"train_blocks"}
        return set(type(self).model_fields) - unused

    def resolved_learning_rate(self, trained_parameters: int) -> float:
        """learning_rate as given, else the larger the smaller the trained part is; an orientation, not a tuned value."""
        if self.learning_rate is not None:
            return self.learning_rate
        if self.parameters == "lora":
            return 2e-4
        return 1e-5 if trained_parameters > 1e9 else 5e-5 if trained_parameters > 5e7 else 1e-3


def recipe(method: str | None = None, **words: Any) -> Recipe:
    """The recipe of a preset with `words` set by hand over it. Raises BadInput for an unknown name, word or value."""
    for name, known in ((method, RENAMED_METHODS), *((word, RENAMED) for word in words)):
        if name in known:
            raise BadInput(known[name])
    if method is not None and method not in METHODS:
        raise BadInput(f"no unlearning method is called {method!r}. {did_you_mean(method, METHODS)}")
    for word in words:
        if word not in Recipe.model_fields:
            raise BadInput(f"unlearning has no setting {word!r}. {did_you_mean(word, Recipe.model_fields)}")
    try:
        return Recipe(**{**METHODS.get(method or "", {}), **words})
    except ValidationError as error:
        problems = "; ".join(
            f"{problem['loc'][0]} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
            for problem in error.errors()
        )
        raise BadInput(f"{problems}.") from error
