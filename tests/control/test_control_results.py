"""What is said of logs and trainings, with their numbers, and when it warns."""

import math
from dataclasses import replace

from equipoise.control.result import (
    CollectPlan,
    ControlEvaluation,
    ControlLogs,
    ControlTraining,
    EvaluatePlan,
    Level,
    TrainedPolicy,
    TrainPlan,
    shown,
)
from equipoise.core.shares import Bounded

NAN = math.nan
LOGS = ControlLogs("Pendulum-v1", 12_345, 1_234, 3, 4, -56.7, 0.1)


def test_logs_are_said_in_a_sentence():
    done = "12,345 transitions of Pendulum-v1, 1,234 whole episodes, mean return \u221256.7."
    assert LOGS.headline() == done and LOGS.summary() == (done,) and LOGS.warnings() == ()
    (narrow,) = replace(LOGS, covered=0.0987).warnings()
    assert narrow.startswith("Some action covers only 9.9% of its range")
    (none,) = replace(LOGS, episodes=0).warnings()
    assert none.startswith("No episode ended") and replace(LOGS, episodes=0).headline() == (
        f"{none} 12,345 transitions of Pendulum-v1, 0 whole episodes."
    )
    assert CollectPlan("E", "p", 2000).summary() == ("environment: E", "policy: p", "2,000 transitions")


def test_a_training_is_said_policy_by_policy():
    one = TrainedPolicy("policy-0.zip", 0, -1.5, 0.25, 0.75, 0.1, ((1, -1.5),))
    two = replace(one, file="policy-1.zip", value=2.5, alpha=0.5, spread=1.5)
    base = ControlTraining("dr-sac", "d", 1_234, 5, 1, 0.1, 3.0, 0.3, (one, two))
    done = "2 policies of dr-sac with delta 0.3 on 1,234 logged steps; mean value in the logs \u22121.50, 2.50."
    assert base.warnings() == () and base.headline() == done
    assert base.summary() == (
        "policy-0.zip: value \u22121.50, temperature 0.250, spread 0.750",
        "policy-1.zip: value 2.50, temperature 0.500, spread 1.50",
        done,
    )
    sac = replace(base, method="sac", delta=NAN, policies=(one,))
    assert sac.headline() == "1 policy of sac on 1,234 logged steps; mean value in the logs \u22121.50."
    (narrow,) = replace(base, covered=0.0987).warnings()
    assert narrow.startswith("Some action covers only 9.9% of its range in the logs")
    plan = TrainPlan("dr-sac", "d", 1_234, 1_001, 2_002, 3, 1, 5_000, 6_000, 7)
    assert plan.summary() == (
        "data: d, 1,234 transitions of 3 observations and 1 actions; 1,001 ends of episodes, 2,002 of them terminal",
        "dr-sac: 7 times 5,000 steps, after 6,000 of the nominal model",
    )


def test_an_evaluation_needs_three_policies_of_each_folder():
    level = Level("mass", 1.25, Bounded(1.5, NAN, NAN), Bounded(1.0, NAN, NAN), 0.5, 2.5)
    made = ControlEvaluation("E", 9, {"a": 3, "b": 3}, {"a": (level,)}, {}, {}, (), "", {})
    assert made.warnings() == () and made.summary()[:2] == ("a:", "  mass=1.25: 1.50")
    assert len(replace(made, policies={"a": 3, "b": 2}).warnings()) == 1
    assert "Under mass=2, delay=1 every return" in replace(made, unmoved=("mass=2", "delay=1")).warnings()[0]
    assert EvaluatePlan("E", {"a": 2, "b": 3}, ("mass=1", "mass=2"), 1_234).summary() == (
        "environment: E",
        "policies: 2 of a, 3 of b",
        "levels: mass=1, mass=2",
        "1,234 episodes",
    )
    assert shown(Bounded(1.5, 1.25, 2.0)) == "1.50 [1.25, 2]"
