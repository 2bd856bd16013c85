"""Results by hand, for tests of the judging: what a study's runs would have stored."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from equipoise.study.declare import Arm, Outcome, Study
from equipoise.study.results import Results, RunInfo, items_schema, measurements_schema


def declare(*claims, outcomes=None, arms=("sago", "pcgrad"), seeds=5, **more) -> Study:
    outcomes = outcomes or [Outcome("accuracy", better="higher")]
    return Study(
        name="hand-made",
        arms=[Arm(name) for name in arms],
        outcomes=outcomes,
        claims=claims,
        run=lambda run: None,
        seeds=seeds,
        budget="optimizer_steps",
        without_control="made by hand",
        **more,
    )


class Book:
    """Collects what runs measured; `results()` gives it as the engine would."""

    def __init__(self, study: Study) -> None:
        self.study, self.runs, self.index = study, [], {}
        self.measurements, self.items = [], []

    def run(self, arm, seed, *, state="complete", role="test", point=0, cost=None) -> int:
        if (arm, seed, role, point) not in self.index:
            self.index[arm, seed, role, point] = len(self.runs)
            key = f"{arm}-{point}-{seed}" if role == "test" else f"{arm}-{point}-{role}-{seed}"
            cost = {"work": {"build": cost or {}}, "spent": {}}
            self.runs.append(RunInfo(key, arm, "method", point, {}, seed, role, state, cost, Path(key), "f" * 8))
        return self.index[arm, seed, role, point]

    def measure(self, arm, seed, outcome, value, *, of=None, missing=0, at=None, where=None, **run) -> None:
        index = self.run(arm, seed, **run)
        info = self.runs[index]
        row = {"run": index, "arm": arm, "point": info.point, "seed": seed, "role": info.role, "outcome": outcome}
        row |= {"value": value if of is None else value / of, "numerator": np.nan if of is None else float(value)}
        row |= {"of": np.nan if of is None else float(of), "missing": missing, "at": text(at), "where": text(where)}
        self.measurements.append(row | {"order": len(self.measurements)})

    def score(self, arm, seed, outcome, scores, *, ids=None, clusters=None, at=None, where=None, **run) -> None:
        index = self.run(arm, seed, **run)
        info = self.runs[index]
        ids = [f"i{n:05d}" for n in range(len(scores))] if ids is None else ids
        clusters = [""] * len(ids) if clusters is None else clusters
        head = {"run": index, "arm": arm, "point": info.point, "seed": seed, "role": info.role, "outcome": outcome}
        tail = {"at": text(at), "where": text(where)}
        for item, cluster, score in zip(ids, clusters, scores, strict=True):
            row = head | {"item": item, "cluster": str(cluster), "score": float(score)} | tail
            self.items.append(row | {"order": len(self.items)})

    def results(self, chosen=None) -> Results:
        return Results(
            study=self.study.name,
            options={},
            environment={},
            runs=self.runs,
            chosen=chosen or {arm.name: 0 for arm in self.study.arms},
            measurements=table(self.measurements, measurements_schema()),
            items=table(self.items, items_schema()),
        )


def text(value) -> str:
    return json.dumps(value, sort_keys=True) if value else ""


def table(rows, schema):
    columns = {field.name: [row[field.name] for row in rows] for field in schema}
    arrays = [
        pa.array(columns[field.name]).dictionary_encode().cast(field.type)
        if pa.types.is_dictionary(field.type) and rows
        else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)
