"""`equipoise report`: draw the page of a finished job again, from what its folder holds."""

import importlib
from pathlib import Path

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.folder import read_manifest
from equipoise.core.job import REPORT, Job
from equipoise.core.terminal import say

JOBS = {
    "audit forgetting": "equipoise.unlearning.audit_job:audit_forgetting",
    "audit judge": "equipoise.judging.job:audit_judge",
    "audit tools": "equipoise.reinforcement.tool_audit_job:audit_tools",
    "certify run": "equipoise.verification.job:certify",
    "control collect": "equipoise.control.job:collect",
    "control evaluate": "equipoise.control.job:evaluate",
    "control train": "equipoise.control.job:train",
    "detoxify": "equipoise.unlearning.detoxify_job:detoxify",
    "memory ask": "equipoise.agents.job:ask",
    "memory compare": "equipoise.agents.job:compare",
    "memory compose": "equipoise.agents.compose_job:compose",
    "prm evaluate": "equipoise.reinforcement.prm_evaluation_job:evaluate",
    "prm label": "equipoise.reinforcement.prm_label_job:label",
    "prm score": "equipoise.reinforcement.prm_scoring_job:score",
    "prm train": "equipoise.reinforcement.prm_training_job:train",
    "reinforce": "equipoise.reinforcement.job:reinforce",
    "route evaluate": "equipoise.routing.job:evaluate",
    "route fit": "equipoise.routing.job:fit",
    "route label": "equipoise.routing.job:label",
    "rule evaluate": "equipoise.privacy.job:evaluate",
    "rule fit": "equipoise.privacy.job:fit",
    "rule plan": "equipoise.privacy.job:plan",
    "solvable fit": "equipoise.reinforcement.solvable_job:fit",
    "solvable score": "equipoise.reinforcement.solvable_job:score",
    "uncertainty bayesianize": "equipoise.uncertainty.bayes_job:bayesianize",
    "uncertainty distill": "equipoise.uncertainty.bayes_job:distill",
    "uncertainty score": "equipoise.uncertainty.job:score",
    "uncertainty select": "equipoise.uncertainty.job:select",
    "think": "equipoise.decoding.job:think",
    "unlearn": "equipoise.unlearning.job:unlearn",
    "audit sampling": "equipoise.uncertainty.sampling_job:audit_sampling",
}


def report(folder: Path) -> int:
    """Draw the report of a job's folder again, from what it holds; does no work anew.

    Example: `equipoise report equipoise-out/unlearn`

    Parameters
    ----------
    folder
        A folder that a job finished.
    """
    job = job_of(folder)
    job.redraw(folder)
    for line in job.stored(folder).summary():
        say(line)
    print(folder / REPORT)
    return 0


def job_of(folder: Path) -> Job:
    """The job that made a folder. Raises BadInput for one that no job of this version finished."""
    command = read_manifest(folder)["command"]
    if command not in JOBS:
        raise BadInput(
            f"{folder} was made by {command!r}, which this version does not have. {did_you_mean(command, JOBS)}"
        )
    module, _, name = JOBS[command].partition(":")
    return getattr(importlib.import_module(module), name)
