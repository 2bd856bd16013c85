"""How often an audit finds a bias in a judge that has none: the paired rule against the published one.

    python scripts/false_discoveries.py                     # 200 audits of each, some two minutes on one core
    python scripts/false_discoveries.py --audits 1000       # stored in scripts/false_discoveries.json as well

Judge and teacher are simulated, without a model. The judge sees quality through noise that is a function of the text: every
rewrite changes some verdicts, for better and for worse alike. One kind also prefers whatever stands first. The teacher's
rewrites add a word that means nothing, and it proposes biases by chance. Nothing is there to be found: every bias found is
false, and the share of audits that find any is the false discovery rate.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

from equipoise.core.files import write_atomic
from equipoise.core.progress import progress
from equipoise.core.statistics import wilson
from equipoise.judging.biases import Bias, key
from equipoise.judging.biasscope import BiasScopeSettings, Rule, biasscope
from equipoise.judging.pairs import Pair
from equipoise.judging.roles import Case, JudgeComparison, JudgeVerdict, Proposal
from equipoise.judging.rules import draw

RESULT = Path(__file__).with_suffix(".json")
RULES: tuple[Rule, ...] = ("paired", "published")
JUDGES = {"unbiased": 0.0, "prefers what stands first": 0.8}  # added to the margin of the first answer
PARTS = (40, 60, 60)  # pairs for discovery, selection and report; the published rule uses the last two together
CANDIDATES, NAMES = 3, 12


@dataclass
class Noise:
    """A judge of quality 1 against 0 seen through standard normal noise of each text, and of the place by `position`."""

    seed: int
    position: float
    name: str = "noise"
    known: dict[str, float] = field(default_factory=dict)

    def value(self, text: str) -> float:
        if text not in self.known:
            quantile = NormalDist().inv_cdf((draw(self.seed, text) * 2**52 + 0.5) / 2**52)
            self.known[text] = text.startswith("better") + quantile
        return self.known[text]

    def compare(self, comparisons: Sequence[JudgeComparison], *, phase: str) -> list[JudgeVerdict]:
        margins = [self.position + self.value(each.first) - self.value(each.second) for each in comparisons]
        return [JudgeVerdict(1 if margin > 0 else 2, margin=margin) for margin in margins]

    def explain(self, cases: Sequence[Case]) -> list[str]:
        return [""] * len(cases)


class Blind:
    """A teacher whose rewrites mean nothing and whose proposals are drawn by chance."""

    name = "blind"

    def perturb(self, wanted: Sequence[tuple[Pair, Bias]], *, phase: str) -> list[str | None]:
        return [f"{pair.rejected} ({bias.name})" for pair, bias in wanted]

    def identify(self, cases: Sequence[Case]) -> list[Proposal]:
        numbers = [int(draw(case.comparison.first, case.comparison.second) * NAMES) for case in cases]
        return [Proposal(Bias(f"candidate {number}", "Nothing that the judge goes by.")) for number in numbers]

    def same(self, couples: Sequence[tuple[Bias, Bias]]) -> list[bool | None]:
        return [key(new.name) == key(known.name) for new, known in couples]


def audit(seed: int, rule: Rule, position: float, *, parts: tuple[int, int, int] = PARTS) -> tuple[int, int]:
    """(false discoveries, biases measured) of one audit."""
    pairs = [
        Pair(
            f"{seed}-{n}", f"question {n}", f"better {n}", f"worse {n}", group=str(n), chosen_first=draw(seed, n) < 0.5
        )
        for n in range(sum(parts))
    ]
    ends = parts[0], parts[0] + parts[1]
    divided = pairs[: ends[0]], pairs[ends[0] : ends[1]], pairs[ends[1] :]
    settings = BiasScopeSettings(rule=rule, candidates=CANDIDATES, seed=seed)
    found = biasscope(Noise(seed, position), Blind(), *divided, settings=settings)
    return len(found.found), len(found.screened)


def rates(audits: int) -> list[dict[str, Any]]:
    """For each judge and rule: audits with any false discovery, with Wilson's interval; biases found and measured."""
    rows = []
    with progress("audits", total=audits * len(JUDGES) * len(RULES), unit="audits") as bar:
        for judge, position in JUDGES.items():
            for rule in RULES:
                counts = []
                for seed in range(audits):
                    counts.append(audit(seed, rule, position))
                    bar.advance(1)
                false = sum(found > 0 for found, _ in counts)
                rows.append(
                    {
                        "judge": judge,
                        "rule": rule,
                        "audits": audits,
                        "audits_with_false_discoveries": false,
                        "rate": false / audits,
                        "interval": wilson(false, audits),
                        "false_discoveries": sum(found for found, _ in counts),
                        "biases_measured": sum(measured for _, measured in counts),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--audits", type=int, default=200, help="of each judge by each rule (default: 200)")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    begin = time.process_time()
    rows = rates(arguments.audits)
    print(f"{'judge':<26}{'rule':<11}{'audits with a false discovery':<44}{'biases found, of those measured'}")
    for row in rows:
        low, high = row["interval"]
        share = f"{row['audits_with_false_discoveries']} of {row['audits']}: {row['rate']:.3f} [{low:.3f}, {high:.3f}]"
        found = f"{row['false_discoveries']} of {row['biases_measured']}"
        print(f"{row['judge']:<26}{row['rule']:<11}{share:<44}{found}")
    result = {"alpha": BiasScopeSettings().alpha, "pairs": PARTS, "rows": rows}
    write_atomic(arguments.out, json.dumps(result, indent=1) + "\n")
    print(f"{time.process_time() - begin:.0f} s of CPU")
    print(arguments.out)


if __name__ == "__main__":
    main()
