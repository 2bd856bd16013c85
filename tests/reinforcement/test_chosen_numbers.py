"""Numbers that somebody chose and that results depend on: what a world is, streams of a seed, limits and formats.

As `tests/defaults.txt` for arguments: a change is meant to be seen, since what was stored under another number is something
else. Streams of one seed must differ within a module.
"""

import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.reinforcement import (
    actguide_world,
    acting,
    critic,
    dots,
    dots_world,
    entropy_tools,
    evidence_world,
    guiding,
    lookup_world,
    measures,
    nested_world,
    playing,
    policy_loss,
    prm_evaluation,
    prm_label_measures,
    prm_label_policy,
    prm_labeling,
    prm_scoring,
    prm_training,
    recipe,
    reinforcing,
    selection,
    solvable,
    solvable_fitting,
    solvable_scorer,
    solvable_scoring,
    sppo,
    tool_audit,
    tool_audit_measures,
    tool_audit_model,
    worlds_habit,
    worlds_sequences,
    worlds_steps,
    worlds_strategies,
)

CHOSEN = {
    actguide_world: {
        "CELLS": 9, "SLACK": 2, "EASY": (1, 4), "HARD": (8, 12), "LIST": 12, "WIDTH": 64, "LAYERS": 2, "CONTEXT": 256,
        "LEARNING_RATE": 4e-3, "STRAYS": 0.2, "FOLLOWED": 0.5, "SAVE_EVERY": 5, "SFT_EPOCHS": 10, "SFT_RATE": 1e-3,
        "_LOOK": 41, "_ORDER": 42,
    },
    acting: {"FEWEST": 40},
    critic: {"_FORMAT": {"critic": 1}, "_NEAREST": 0.01},
    dots: {"_EDGE": 1e-4, "_TEMPERATURES": (1e-2, 10.0), "_FOLDS": 4, "LEAST_REFERENCES": 8, "_VERSION": 1},
    dots_world: {"SAVE_EVERY": 5, "_COMPARED": 3, "ASKED": ((150, 250, 350), (300, 400, 500))},
    entropy_tools: {"LEAST": 5, "GRAM": 3},
    evidence_world: {"CHUNK": 10, "PARTS": 3, "THINK": 40, "PARAGRAPH": 500},
    guiding: {"_UNGUIDED": 4, "_GUIDED": 31, "_PROBES": 32, "_DROPPED": 33},
    lookup_world: {
        "BELIEF": 6, "MAX_NEW_TOKENS": 11, "USELESS": (2, 3, 4), "LEARNING_RATE": 3e-3, "SOLVED": 0.5, "TEST": 1_000_000,
        "SIZES": {"width": 64, "layers": 3, "heads": 4, "context": 160},
    },
    measures: {"FULL": 1 - 1e-9},
    nested_world: {
        "WIDTH": 64, "LAYERS": 3, "HEADS": 4, "CONTEXT": 256, "MAX_NEW_TOKENS": 4, "LEARNING_RATE": 2e-3, "EPSILON": 0.5,
        "TEMPERATURE": 1.0,
    },
    playing: {"TURNS": 8},
    policy_loss: {"LOG_RATIO_LIMIT": 20.0, "K3_LIMIT": 10.0},
    prm_evaluation: {"SHOWN": 8},
    prm_label_measures: {"SHOWN": 8},
    prm_label_policy: {"_STREAM": 6},
    prm_labeling: {"USUAL_STEPS": 6, "TIMED": (8, 16)},
    prm_scoring: {"LEVELS": (0.1, 0.25, 0.5, 0.75, 0.9), "SHOWN": 8},
    prm_training: {"LOOKS": 10, "APART": 1e-3, "SHOWN": 8, "SURE": 1e-6, "_FORMAT": 1},
    reinforcing: {"SHOWN": 4, "TIMED": (8, 16)},
    selection: {"_REPLAY": 9, "KEY": -1},
    solvable: {
        "SHARES": {"fit": 0.4, "stopping": 0.1, "calibration": 0.2, "test": 0.3}, "BINS": 10,
        "TARGETS": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
    },
    solvable_fitting: {"SHOWN": 6, "TIMED": (8, 16), "APART": 1e-3},
    solvable_scorer: {"_FORMAT": 1},
    solvable_scoring: {"LEVELS": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "SHOWN": 5},
    sppo: {"NORMALIZED_RANGE": (0.02, 0.98)},
    tool_audit: {"CHARACTERS": 4},
    tool_audit_measures: {"AT_ONCE": 1 << 20},
    tool_audit_model: {"PLACES": 6},
    worlds_habit: {
        "ACTIONS": 24, "HABIT": 0, "GROUPS": 8, "SAMPLES": 8, "BETA": 0.04, "WORLD": 0, "HEAD": 1, "UPDATE": 2,
    },
    worlds_sequences: {"SAMPLES": 8, "MINI_BATCHES": 2, "DUAL_CLIP": 3.0, "WORLD": 0, "UPDATE": 1},
    worlds_steps: {
        "LEVELS": (4, 5, 6, 7, 8), "ERROR": 0.1, "MISSED": 0.2, "WIDTH": 32, "LAYERS": 2, "HEADS": 4, "CONTEXT": 64,
        "_TRAIN": 0, "_TEST": 1, "_ROLLOUTS": 2,
    },
    worlds_strategies: {
        "STRATEGIES": 8, "SLIVER": 1e-3, "GROUPS": 32, "SAMPLES": 8, "MINI_BATCHES": 4, "REACH": 1e-3, "DEAD": 0.01,
        "WORLD": 0, "UPDATE": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("module", CHOSEN, ids=lambda module: module.__name__.rpartition(".")[2])
def test_what_was_chosen(module):
    assert {name: getattr(module, name) for name in CHOSEN[module]} == CHOSEN[module]


def test_worlds_of_several_parts():
    assert np.array_equal(solvable.COVERAGES, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    world = dots_world.WORLD
    assert (world.levels, world.max_new_tokens) == ((1, 2, 3, 4, 5, 6, 7), 42)
    policies = {name: (each.error, each.correct) for name, each in worlds_steps.POLICIES.items()}
    assert policies == {"strong": (0.05, 0.7), "weak": (0.25, 0.05)}
    games = {name: (game.right, game.alone) for name, game in nested_world.GAMES.items()}
    assert games == {"sums": (0.85, 0.55), "matrix": (0.6, 0.15), "tictactoe": (0.6, 0.15), "spy": (0.6, 0.15)}
    assert nested_world.GAMES["matrix"].make.keywords["shifts"] == (0,)
    told = {"opponent": 0.5, "compact": True}
    assert nested_world.GAMES["tictactoe"].make.keywords == told
    assert nested_world.TRANSFER["mirrored-tictactoe"].keywords == told | {"mirror": True}
    assert nested_world.TRANSFER["larger-sums"].args == ((12, 13),)


def test_what_holds_arrays_is_compared_by_identity():
    """Equality of its fields would be an array, whose truth nobody knows; and such a thing can be a key."""
    package = Path(recipe.__file__).parent
    names = [path.stem for path in sorted(package.glob("*.py")) if not path.stem.startswith("_") and path.stem != "trl"]
    alone = {
        f"{name}.{each.__name__}"
        for name in names
        for each in vars(importlib.import_module(f"{package.parent.name}.{package.name}.{name}")).values()
        if inspect.isclass(each) and each.__module__.endswith(f".{name}") and not _compares_fields(each)
    }
    assert alone == ALONE
    with pytest.raises(TypeError):
        recipe.Advantage(lambda step, recipe: step.rewards)  # type: ignore[misc]  # by names alone


def _compares_fields(each):
    return getattr(each, "__dataclass_params__", SimpleNamespace(eq=True)).eq


ALONE = {
    "actguide_world.GuideWorld",
    "dots.DifficultyEstimate",
    "dots_world.DotsWorld",
    "measures.Solved",
    "nait.Refreshed",
    "predicting.PredictorSource",
    "predicting.Rates",
    "prm_evaluation.Evaluating",
    "prm_evaluation_measures.Judged",
    "prm_evaluation_measures.Steps",
    "prm_label_drawing.Completed",
    "prm_label_drawing.Solution",
    "prm_labeling.Labeling",
    "prm_scoring.Scoring",
    "prm_training.Learning",
    "prm_training.Training",
    "reinforcing.Reinforcing",
    "replay.ReplayGroup",
    "solvable_fitting.Fitting",
    "solvable_fitting.Learnt",
    "solvable_fitting.Sampled",
    "solvable_scorer.Scorer",
    "solvable_scoring.Scoring",
    "tool_audit.Measured",
    "tool_audit.ToolAuditing",
    "tool_audit_measures.Steps",
    "tool_audit_measures.TextEntropies",
    "worlds_steps.Chains",
    "worlds_steps.Completions",
    "worlds_steps.StepWorld",
}
