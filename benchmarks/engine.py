"""What the study engine costs beside the work: empty runs, each in a process of its own, stored, resumable and judged.

    python benchmarks/engine.py                       # 1,000 empty runs, two at a time; 10,000 runs listed and judged
    python benchmarks/engine.py --runs 100 --listed 0

A run measures one number; "torch": of a study that imports torch, as those of models do. Beside it, where installed: the
same empty function as jobs of a Hydra multirun, and as trials of an Optuna study in an SQLite file. Both stay in one
process: what dies there takes the others with it, and nothing resumes within a run.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

SOURCE = '''
from equipoise.study import Arm, Claim, Outcome, Study, better, study
{more}
@study("empty", paper="none", trades="nothing for nothing")
def empty() -> Study:
    """Runs that do nothing."""
    return Study(
        seeds={seeds}, budget="calls", run=work, outcomes=[Outcome("value", better="higher")],
        arms=[Arm("one"), *[Arm(f"arm{{k}}", kind="baseline") for k in range(8)], Arm("control", kind="control")],
        claims=[Claim("none", source="none", test=better("value", arm="one", rival="control", units=("seed",)))])

def work(run):
    run.measure("value", float(run.seed))
'''

HYDRA = """
import hydra

@hydra.main(version_base=None, config_path=None, config_name=None)
def main(config):
    return 0.0

main()
"""


def ours(folder: Path, runs: int, preload: str, workers: int) -> float:
    """Seconds for the runs, with everything that starts and ends them."""
    from equipoise.core import progress
    from equipoise.study import registry
    from equipoise.study.execute import run_study

    source = folder / f"empty_{preload or 'bare'}_{workers}.py"
    source.write_text(SOURCE.format(seeds=runs // 10, more=f"import {preload}\n" if preload else ""))
    began = time.perf_counter()
    with progress.quiet(True):
        done = run_study(registry.load(str(source)), {}, out=folder / source.stem, workers=workers)
    assert not done.failed
    return time.perf_counter() - began


def hydra(folder: Path, runs: int) -> float:
    script = folder / "hydra_job.py"
    script.write_text(HYDRA)
    began = time.perf_counter()
    command = [sys.executable, str(script), "--multirun", f"+seed=range({runs})", f"hydra.sweep.dir={folder / 'hydra'}"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - began


def optuna(folder: Path, runs: int) -> float:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    began = time.perf_counter()
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(storage=f"sqlite:///{folder / 'optuna.db'}", sampler=sampler)
    study.optimize(lambda trial: float(trial.suggest_int("seed", 0, runs)), n_trials=runs)
    return time.perf_counter() - began


def read(folder: Path, runs: int) -> dict[str, float]:
    """Seconds for listing and judging a folder with so many runs, made by copying one."""
    import shutil

    from equipoise.study import registry
    from equipoise.study.judging import judge
    from equipoise.study.results import load
    from equipoise.study.store import identify, read_json, write_json

    source = folder / "empty_bare_2.py"
    declaration = registry.load(str(source))
    wide = folder / "wide"
    shutil.copytree(folder / "empty_bare_2", wide, ignore=shutil.ignore_patterns("cache"))
    sources = sorted((wide / "runs").iterdir())
    seeds, known = runs // 10, len(sources) // 10
    for folder_of_run in sources:
        made = read_json(folder_of_run / "config.json")
        for copy in range(1, -(-seeds // known)):
            config = {**made, "seed": made["seed"] + copy * known}
            key, config["fingerprint"] = identify(config)
            clone = shutil.copytree(folder_of_run, wide / "runs" / key)
            write_json(clone / "config.json", config)
    study = declaration.build()
    seconds = {}
    for name in ("listed first", "listed from the cache"):
        began = time.perf_counter()
        results = load([wide], study)
        seconds[name] = time.perf_counter() - began
    began = time.perf_counter()
    judge(study, results)
    seconds["judged"] = time.perf_counter() - began
    seconds["runs"] = len(results.runs)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--listed", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the runs are stored (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        rows = [
            (
                f"equipoise, {workers} at a time{', torch' if preload else ''}",
                ours(folder, arguments.runs, preload, workers),
            )
            for preload, workers in (("", 2), ("", 1), ("torch", 2))
        ]
        rows += [
            (name, peer(folder, arguments.runs))
            for name, module, peer in (("Hydra multirun", "hydra", hydra), ("Optuna, SQLite", "optuna", optuna))
            if find_spec(module)
        ]
        print(f"{arguments.runs:,} empty runs{'':22}seconds   ms a run")
        for name, seconds in rows:
            print(f"{name:38}{seconds:8.1f}{1e3 * seconds / arguments.runs:11.1f}")
        if arguments.listed:
            found = read(folder, arguments.listed)
            print(f"\n{found.pop('runs'):,.0f} stored runs")
            for name, seconds in found.items():
                print(f"{name:38}{seconds:8.2f} s")


if __name__ == "__main__":
    main()
