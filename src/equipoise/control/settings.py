"""How agents learn; loads no torch, so that a command line can show it."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

ActorThrough = Literal["slow", "critics"]
Dual = Literal["exact", "functional"]
NominalName = Literal["vae", "gaussian", "ensemble"]
VaeLoss = Literal["mean", "sum"]
Width = Annotated[int, Field(ge=1, le=8192)]


class LearnerSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Of every agent."""

    gamma: float = Field(default=0.99, ge=0, lt=1, description="Discount.")
    tau: float = Field(default=0.005, gt=0, le=1, description="Share of the networks in their slow copies, each step.")
    batch_size: int = Field(default=256, ge=1, le=1_000_000, description="Transitions of a step.")
    learning_rate: float = Field(default=5e-4, gt=0, le=1, description="Of actor, critics and temperature.")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="Of AdamW.")
    hidden: tuple[Width, ...] = Field(default=(256, 256), min_length=1, description="Widths of every network's layers.")
    critics: int = Field(default=2, ge=1, le=100, description="Critics, of which the lowest counts.")
    seed: int = Field(default=0, ge=0, le=2**62, description="Of weights, batches and noise.")


class AgentSettings(LearnerSettings, frozen=True, extra="forbid"):
    """Of soft actor-critics."""

    alpha: float = Field(default=0.12, gt=0, description="Temperature at the start.")
    learn_alpha: bool = Field(default=True, description="Move the temperature to the target entropy.")
    target_entropy: float | None = Field(default=None, description="Nats; minus the number of actions where not given.")
    actor_through: ActorThrough = Field(
        default="slow", description="Which critics the actor follows: their slow copies, or the critics themselves."
    )
    behavior_weight: float = Field(default=0.0, ge=0, le=1, description="Weight of staying with the logged actions.")


class OnlineSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Of learning in an environment."""

    learning_starts: int = Field(default=1000, ge=1, description="Steps at random before learning.")
    buffer_size: int = Field(default=100_000, ge=1, description="Transitions kept.")


class RobustSettings(AgentSettings, frozen=True, extra="forbid"):
    """Of an agent that is robust against a ball of kernels."""

    delta: float = Field(default=0.1, ge=0, description="Radius of the ball of kernels, in nats.")
    samples: int = Field(default=200, ge=2, le=100_000, description="Next states drawn for each pair.")
    dual: Dual = Field(default="exact", description="How the worst mean is found: exact or functional.")
    nominal: NominalName = Field(default="vae", description="Model of what follows: vae, gaussian or ensemble.")
    nominal_steps: int = Field(default=5000, ge=0, description="Steps in which the nominal model learns alone.")
    nominal_learning_rate: float = Field(default=5e-4, gt=0, le=1, description="Of the nominal model.")
    latent: int = Field(default=5, ge=1, le=1000, description="Width of the VAE's latent.")
    vae_loss: VaeLoss = Field(default="mean", description="mean: as released; sum: the evidence bound.")
    dual_steps: int = Field(default=5, ge=1, le=1000, description="Steps of g in each step of the functional dual.")
    dual_learning_rate: float = Field(default=5e-4, gt=0, le=1, description="Of g.")


class SACSettings(AgentSettings, OnlineSettings, frozen=True, extra="forbid"):
    """Of `SAC`."""


class DRSACSettings(RobustSettings, OnlineSettings, frozen=True, extra="forbid"):
    """Of `DRSAC`."""

    robust: bool = Field(default=True, description="Without it this is SAC.")


class FQISettings(LearnerSettings, OnlineSettings, frozen=True, extra="forbid"):
    """Of `FQI`."""

    perturbation: float = Field(default=0.1, ge=0, le=1, description="How far an action may move from the logs' likes.")
    latent: int | None = Field(
        default=None, ge=1, le=1000, description="Width of z; twice that of actions if not given."
    )
    target_actions: int = Field(
        default=10, ge=1, le=10_000, description="Actions of which a next state's best is taken."
    )
    acting_actions: int = Field(default=100, ge=1, le=10_000, description="Actions of which the best is acted.")


class RFQISettings(FQISettings, frozen=True, extra="forbid"):
    """Of `RFQI`."""

    rho: float = Field(default=0.5, gt=0, le=1, description="Radius of the ball of kernels, in total variation.")
    dual_steps: int = Field(default=1000, ge=1, le=100_000, description="Steps of eta, from its start, in each step.")
    dual_learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Of eta.")
