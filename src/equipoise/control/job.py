"""Three jobs: collect logs in an environment, train policies on logs, evaluate them where the environment has changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from equipoise.control.result import ControlEvaluation, ControlLogs, ControlTraining
from equipoise.control.settings import RobustSettings
from equipoise.core.job import Request, job
from equipoise.core.options import Setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from equipoise.control.transitions import Transitions

    DataLike = str | Path | Transitions | Mapping[str, Any]
else:  # what a command line can give
    DataLike = str | Path

Count = Annotated[int, Field(ge=1)]
Seeds = Annotated[int, Field(ge=1, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
Method = Literal["dr-sac", "sac"]


@job("control collect", ControlLogs)
def collect(
    environment: str,
    *,
    policy: Path | None = None,
    perturb: str | None = None,
    steps: Count = 10_000,
    epsilon: Share | None = None,
    seed: Seed = 0,
) -> Request:
    """Log what a policy does in an environment: data.npz, which control train reads.

    Example that runs: `equipoise control collect --environment Pendulum-v1 --steps 2000`

    With a policy: `equipoise control collect --environment Pendulum-v1 --policy DIR/policy-0.zip --epsilon 0.3`

    Parameters
    ----------
    environment
        A registered name of Gymnasium, with a flat box of observations and one of actions.
    policy
        A policy that control train wrote. Not given: actions are uniform in their box.
    perturb
        What is other than usual while logs are made: action_noise=0.2 makes a world that is not the same twice.
    steps
        Transitions.
    epsilon
        Chance of a uniform action in place of the policy's; 0.5 where not given.
    seed
        Of the environment and of the actions.
    """
    from equipoise.control.collecting import Collecting

    return Collecting.read(environment, policy=policy, perturb=perturb, steps=steps, epsilon=epsilon, seed=seed)


@job("control train", ControlTraining, rest=RobustSettings)
def train(
    data: Annotated[DataLike, Setting(alias=("--dataset",), objects=True)],
    *,
    method: Method = "dr-sac",
    steps: Count = 10_000,
    seeds: Seeds = 1,
    **settings: Any,
) -> Request:
    """Train policies on logs, robust against a ball of kernels around the one that the logs show; no environment is needed.

    Example that runs: `equipoise control train --data equipoise-out/control-collect/data.npz --steps 200 --hidden 32,32`

    The folder gets policy-0.zip, policy-1.zip ..., which `DRSAC.load` reads and control evaluate measures, and a report:
    what the values did, how wide the nominal model's samples are, what the logs cover. The same command goes on where
    it stopped.

    Parameters
    ----------
    data
        An NPZ file with observations, actions, rewards, next_observations and terminated, and if there are any truncated,
        action_low and action_high; or minari:NAME. In Python also arrays by name.
    method
        dr-sac, or sac: the same without the ball.
    steps
        Steps of the agent, after those of the nominal model alone.
    seeds
        Policies, each from a seed of its own: seed, seed + 1 and so on.
    """
    from equipoise.control.training import Training

    return Training.read(data, method=method, steps=steps, seeds=seeds, given=settings)


@job("control evaluate", ControlEvaluation)
def evaluate(
    run: Path,
    *,
    environment: str,
    perturb: str,
    against: list[Path] | None = None,
    choose_by: str | None = None,
    episodes: Annotated[int, Field(ge=2, le=100_000)] = 50,
    seed: Seed = 0,
) -> Request:
    """Measure policies where the environment has changed: return against each perturbation, over policies and episodes.

    Example: `equipoise control evaluate DIR --environment Pendulum-v1 --perturb length=0.7:1.4:8,observation_noise=0:0.4:3`

    Of several folders one is chosen by its returns under --choose-by, whose perturbations may not be tested: a radius that
    is chosen where it is tested proves nothing.

    Parameters
    ----------
    run
        A folder that control train wrote.
    environment
        A registered name of Gymnasium, of the same spaces as the logs.
    perturb
        What is tested: NAME=FROM:TO:COUNT or NAME=VALUE, several with commas between. observation_noise, uniform_noise,
        action_noise, random_action and delay, or a factor of a parameter: length, mass, gravity, force, damping, any number
        that the environment has.
    against
        Other folders of control train, measured beside it.
    choose_by
        Perturbations by which the best folder is chosen, written like perturb; from starts of their own.
    episodes
        Of each policy at each level, from the same starts throughout.
    seed
        The first start; the others follow.
    """
    from equipoise.control.evaluating import Evaluating

    return Evaluating.read(
        [run, *(against or [])],
        environment=environment,
        perturb=perturb,
        choose_by=choose_by,
        episodes=episodes,
        seed=seed,
    )
