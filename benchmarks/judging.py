"""How long a stored study of a million measurement rows takes to load, judge and render. Prints seconds and memory.

    python benchmarks/judging.py [--rows 1000000] [--runs 40] [--folder /dev/shm]

The runs are made up and written as the engine would have stored them: paths of accuracies on two splits and a
perplexity, two arms by matched and simple claims. The first load reads every file and verifies its digest; the second
goes through the Parquet cache that the first one left, and is what `equipoise study report` takes on a folder that was
read before.
"""

import argparse
import hashlib
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from equipoise.study import Arm, Claim, Outcome, Study, better, matched, not_worse
from equipoise.study.judging import judge
from equipoise.study.report import render
from equipoise.study.results import load
from equipoise.study.store import identify, write_json

T = TypeVar("T")
QUESTIONS = 400
SPLITS = ("test", "validation")
OUTCOMES = [
    Outcome("forget_accuracy", better="lower", chance=0.25),
    Outcome("retain_accuracy", better="higher", chance=0.25),
    Outcome("perplexity", better="lower", log=True, unit="per token"),
]
# arm -> how fast it forgets, how much of the rest it takes with it
ARMS = {"sum": (3.0, 0.35), "pcgrad": (2.5, 0.25), "sago": (2.0, 0.2), "coin": (1.5, 0.4)}


def declared(seeds: int) -> Study:
    """Three claims, one of them at equal forgetting."""
    return Study(
        name="million",
        arms=[Arm(name, kind={"sum": "baseline", "coin": "control"}.get(name, "method")) for name in ARMS],
        outcomes=OUTCOMES,
        claims=[
            Claim(
                "keeps more at equal forgetting",
                source="made up",
                test=matched("forget_accuracy", arm="sago", rival="sum", judge="retain_accuracy", level=0.5),
            ),
            Claim("keeps more", source="made up", test=better("retain_accuracy", arm="sago", rival="pcgrad")),
            Claim(
                "stays as fluent",
                source="made up",
                test=not_worse("perplexity", arm="sago", rival="sum", margin=0.05, reason="5 % is not noticed"),
            ),
        ],
        run=lambda run: None,
        seeds=seeds,
        budget="optimizer_steps",
        trades="forgetting for retention",
        paper="none",
    )


def write(study: Study, folder: Path, rows: int) -> int:
    """The study's runs as complete folders; returns the number of measurement rows."""
    steps = max(rows // (len(ARMS) * study.seeds * len(OUTCOMES) * len(SPLITS)), 2)
    draw = np.random.default_rng(0)
    for arm in study.arms:
        for seed in range(study.seeds):
            write_run(folder / "runs", study, arm, seed, measured(arm, steps, draw))
    return steps * len(ARMS) * study.seeds * len(OUTCOMES) * len(SPLITS)


def measured(arm: Arm, steps: int, draw: np.random.Generator) -> str:
    """One run's measurements.jsonl: every outcome on both splits after each step."""
    speed, harm = ARMS[arm.name]
    done = 1 - np.exp(-speed * np.arange(1, steps + 1) / steps)
    means = {"forget_accuracy": 0.95 - 0.7 * done, "retain_accuracy": 0.95 - harm * done}
    lines: list[list[str]] = []
    for split in SPLITS:
        for outcome in OUTCOMES:
            if outcome.name in means:
                of, values = str(QUESTIONS), draw.binomial(QUESTIONS, means[outcome.name]).tolist()
            else:
                of, values = "null", np.exp(2 + harm * done + draw.normal(0, 0.02, steps)).tolist()
            head, tail = f'{{"outcome": "{outcome.name}", "value": ', f', "of": {of}, "missing": 0, "at": {{"step": '
            place = f'}}, "where": {{"split": "{split}"}}, "order": '
            start = len(lines)
            lines.append(
                [f"{head}{value}{tail}{step}{place}{step * 6 + start}}}" for step, value in enumerate(values, start=1)]
            )
    return "\n".join(line for step in zip(*lines, strict=True) for line in step) + "\n"


def write_run(home: Path, study: Study, arm: Arm, seed: int, lines: str) -> None:
    config: dict[str, Any] = {"study": study.name, "arm": arm.name, "settings": arm.points()[0], "seed": seed}
    config |= {"role": "test", "options": study.options, "threads": 1, "kind": arm.kind, "point": 0}
    config |= {"reference": "million", "code": "0" * 64, "versions": {}}
    key, config["fingerprint"] = identify(config)
    folder = home / key
    folder.mkdir(parents=True)
    cost = {"build": {"optimizer_steps": lines.count("\n") // 6, "seconds": 10.0 + seed}}
    contents = {
        "measurements.jsonl": lines.encode(),
        "cost.json": json.dumps({"work": cost, "spent": cost, "attempts": 1}).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()}
    write_json(folder / "config.json", {**config, "files": files})


def timed(what: str, call: Callable[[], T], repeats: int) -> tuple[T, NDArray[np.float64]]:
    """The call's result and its fastest time, printed: [seconds of the clock, seconds of this process]."""
    taken, result = [], None
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        result = call()
        taken.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    assert result is not None
    return result, shown(what, np.min(taken, axis=0))


def shown(what: str, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    print(f"{what:48}{seconds[0]:8.2f}{seconds[1]:8.2f}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("--runs", type=int, default=40, help="divided among four arms")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where the runs are written; default: the system's temporary folder"
    )
    arguments = parser.parse_args()
    study = declared(max(arguments.runs // len(ARMS), 1))
    with tempfile.TemporaryDirectory(prefix="equipoise-", dir=arguments.folder) as name:
        folder = Path(name)
        rows = write(study, folder, int(arguments.rows))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{rows:,} rows in {study.seeds * len(ARMS)} runs, {size / 2**20:,.0f} MiB")
        print(f"{'seconds':48}{'clock':>8}{'CPU':>8}")
        timed("load, first time: every file read, verified", lambda: load([folder], study), 1)
        results, loading = timed("load through the cache", lambda: load([folder], study), arguments.repeats)
        assert results.measurements.num_rows == rows and len(results.runs) == study.seeds * len(ARMS)
        judgement, judging = timed("judge", lambda: judge(study, results), arguments.repeats)
        _, rendering = timed("render", lambda: render(study, results, judgement, folder / "report"), arguments.repeats)
        shown("stored to judged, through the cache", loading + judging)
        shown("stored to report, through the cache", loading + judging + rendering)
        print(f"{'peak memory of the process':48}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:8.0f} MiB")
        for verdict in judgement.verdicts:
            print(f"{verdict.state}: {verdict.claim.text}; {verdict.reason}")


if __name__ == "__main__":
    main()
