"""The measurements of a study as one table: checked before anything is said of them, and written beside the report."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.core.errors import WorkFailed
from equipoise.core.files import produce_atomic
from equipoise.study.scores import columns_of
from equipoise.study.summary_text import words

if TYPE_CHECKING:
    import pyarrow as pa

    from equipoise.study.declare import Study
    from equipoise.study.results import Results


def check_rates(results: "Results") -> None:
    """Raises WorkFailed for the first stored proportion that is no whole count out of its n, naming its run.

    nan of n is one that is undefined.
    """
    table = results.measurements
    value, numerator, of, missing = (values_of(table, name) for name in ("value", "numerator", "of", "missing"))
    counted = np.isfinite(of)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = (numerator == np.round(numerator)) & (of == np.round(of))
        inside = (numerator >= 0) & (numerator <= of) & (of > 0)
        equal = np.abs(value - numerator / of) <= 1e-9
    fine = (whole & inside & equal) | (np.isnan(value) & ((of == 0) | np.isnan(numerator)))
    wrong = np.flatnonzero((counted & ~fine) | (missing < 0))
    if wrong.size:
        row = {name: table[name][int(wrong[0])].as_py() for name in table.column_names}
        raise WorkFailed(
            f"Run {results.runs[row['run']].key}: {row['outcome']} = {row['value']:g} is not attainable as "
            f"{row['numerator']:g} of {row['of']:g} ({row['missing']} missing){_at_words(row['at'])}. The report prints "
            "no such rate: measure a whole count with of=, or a mean of scores without it."
        )
    if results.items.num_rows:
        _check_items(results)


def _check_items(results: "Results") -> None:
    """Raises WorkFailed for a value without a count of its own that its right and wrong answers do not give.

    It would stand beside their count, and the verdicts, which go by the answers, would be about another number.
    """
    names: dict[str, dict[str, int]] = {"outcome": {}, "where": {}, "at": {}}
    every_run = np.ones(len(results.runs) + 1, bool)
    measured, items = (columns_of(table, every_run, names) for table in (results.measurements, results.items))

    def places(of: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.ravel_multi_index(
            [of["run"], *(of[name] for name in names)],
            [every_run.size, *(max(len(each), 1) for each in names.values())],
        )

    order = np.argsort(places(items), kind="stable")
    known, starts = np.unique(places(items)[order], return_index=True)
    score = items["score"][order]
    right, answered = (np.add.reduceat(each, starts) for each in (np.nan_to_num(score), np.isfinite(score) * 1.0))
    plain = np.logical_and.reduceat(np.isin(score, (0.0, 1.0)) | np.isnan(score), starts) & (answered > 0)
    at = np.minimum(np.searchsorted(known, places(measured)), known.size - 1)
    bare = np.isnan(measured["of"]) & np.isfinite(measured["value"]) & (known[at] == places(measured)) & plain[at]
    wrong = np.flatnonzero(bare & ~np.isclose(measured["value"] * answered[at], right[at], rtol=0, atol=1e-6))
    if wrong.size:
        row = {name: results.measurements[name][int(wrong[0])].as_py() for name in ("run", "outcome", "value", "at")}
        place = at[wrong[0]]
        raise WorkFailed(
            f"Run {results.runs[row['run']].key}: {row['outcome']} = {row['value']:g}, but {right[place]:g} of its "
            f"{answered[place]:g} answers are right{_at_words(row['at'])}. The report prints no such rate: let run.items "
            "derive it, or give what is no share of right answers a name of its own."
        )


def tidy(study: "Study", results: "Results") -> "pa.Table":
    """All measurements as one table that needs nothing beside it: a row names its run, settings, role, whether chosen.

    The dial of the study is a column of its own. The schema's metadata, key `equipoise`, holds study, options,
    environment, costs and states of all runs, also of those without a row, as JSON.
    """
    import pyarrow as pa

    table, runs = results.measurements, results.runs
    index = pa.array(values_of(table, "run"), pa.int32())

    def of_run(values: Iterable[Any], type_: "pa.DataType") -> "pa.DictionaryArray | pa.Array":
        return pa.array(list(values), type_).take(index)

    chosen = [run.role == "test" and results.chosen.get(run.arm, run.point) == run.point for run in runs]
    codes, ats = codes_of(table, "at")
    places = np.array([place_of(mapping(stored), study.dial) for stored in ats] or [math.nan])[codes]
    columns: dict[str, Any] = {
        "run": of_run((run.key for run in runs), pa.string()),
        "arm": of_run((run.arm for run in runs), pa.string()),
        "kind": of_run((run.kind for run in runs), pa.string()),
        "point": table["point"],
        "settings": of_run((json.dumps(run.settings, sort_keys=True) for run in runs), pa.string()),
        "seed": table["seed"],
        "role": of_run((run.role for run in runs), pa.string()),
        "chosen": of_run(chosen, pa.bool_()),
        "outcome": table["outcome"].cast(pa.string()),
        study.dial if study.dial not in table.column_names else f"at_{study.dial}": pa.array(places, from_pandas=True),
        **{name: table[name] for name in ("value", "numerator", "of", "missing")},
        **{name: table[name].cast(pa.string()) for name in ("at", "where")},
        "order": table["order"],
    }
    about = {
        "study": study.name,
        "paper": study.paper,
        "options": study.options,
        "environment": results.environment,
        "chosen": results.chosen,
        "runs": [
            {
                "run": r.key,
                "arm": r.arm,
                "seed": r.seed,
                "role": r.role,
                "state": r.state,
                "error": r.error,
                "cost": r.cost,
            }
            for r in runs
        ],
    }
    return pa.table(columns).replace_schema_metadata({"equipoise": json.dumps(about, sort_keys=True, default=str)})


def write_table(table: "pa.Table", path: Path) -> Path:
    """Write a table as Parquet, whole or not at all."""
    import pyarrow.parquet as parquet

    produce_atomic(path, lambda target: parquet.write_table(table, target, compression="zstd"))
    return path


def values_of(table: "pa.Table", name: str) -> np.ndarray:
    """A column of numbers."""
    return table[name].combine_chunks().to_numpy(zero_copy_only=False)


def codes_of(table: "pa.Table", name: str) -> tuple[np.ndarray, list[str]]:
    """A text column as integer codes and their values; nulls count as the empty text."""
    import pyarrow as pa

    column = table[name].combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.fill_null("").dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    values = ["" if v is None else v for v in column.dictionary.to_pylist()]
    if column.null_count:
        return np.asarray(column.indices.fill_null(len(values))), [*values, ""]
    return np.asarray(column.indices), values


def mapping(stored: "str | Mapping[str, Any] | None") -> dict[str, Any]:
    """`at` and `where` as a dictionary, however they are kept."""
    if not stored:
        return {}
    value = json.loads(stored) if isinstance(stored, str) else stored
    return dict(value) if isinstance(value, Mapping) else {}


def place_of(at: Mapping[str, Any], dial: str) -> float:
    """Where on the path: the value of the dial, nan without one."""
    value = at.get(dial)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _at_words(stored: str | None) -> str:
    at = mapping(stored)
    return f" at {words(at)}" if at else ""
