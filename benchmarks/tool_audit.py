"""How long `audit tools` takes for calls whose log-probabilities are logged: read, measured, written and drawn.

    python benchmarks/tool_audit.py --calls 10000 --top 5

The traces are made up first (not timed): four calls and an answer each, texts of 40 tokens, replies of 60 words, in the form
of OpenAI's messages with the `top` likeliest tokens of each. The time of reading the JSON alone stands beside it.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from equipoise.core.progress import quiet
from equipoise.reinforcement.tool_audit_job import audit_tools

CALLS, TOKENS, REPLY = 4, 40, 60
TOOLS = ("search", "open_page", "calculator", "python")


def write(path: Path, traces: int, top: int) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(2000)]
    others = [{"token": f" {word}", "bytes": list(f" {word}".encode())} for word in words[:top]]
    with path.open("w") as file:
        for number in range(traces):
            messages: list[dict] = [{"role": "user", "content": f"Question {number}?"}]
            ease = rng.random() * 0.6 + 0.4
            for step in range(CALLS + 1):
                log_probs = np.log(rng.dirichlet(np.full(top + 1, 0.2 + ease / (step + 1)), size=TOKENS))
                log_probs = -np.sort(-log_probs, axis=1)[:, :top].round(6)
                said = [words[index] for index in rng.integers(len(words), size=TOKENS)]
                listed = [
                    {
                        "token": f" {word}",
                        "logprob": values[0],
                        "bytes": None,
                        "top_logprobs": [
                            {**other, "logprob": value} for other, value in zip(others, values, strict=True)
                        ],
                    }
                    for word, values in zip(said, log_probs.tolist(), strict=True)
                ]
                message = {"role": "assistant", "content": " ".join(said), "logprobs": {"content": listed}}
                if step < CALLS:
                    query = {"query": " ".join(words[index] for index in rng.integers(40, size=3))}
                    call = {"name": TOOLS[int(rng.integers(len(TOOLS)))], "arguments": json.dumps(query)}
                    message |= {"tool_calls": [{"id": f"c{step}", "type": "function", "function": call}]}
                    reply = " ".join(words[index] for index in rng.integers(len(words), size=REPLY))
                    messages += [message, {"role": "tool", "tool_call_id": f"c{step}", "content": reply}]
                else:
                    messages.append(message)
            file.write(
                json.dumps({"id": f"t{number}", "messages": messages, "success": bool(rng.random() < 0.6)}) + "\n"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--top", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        write(folder / "traces.jsonl", arguments.calls // CALLS, arguments.top)
        began = time.perf_counter()
        with (folder / "traces.jsonl").open() as file:
            for line in file:
                json.loads(line)
        parsed = time.perf_counter() - began
        began, cpu = time.perf_counter(), time.process_time()
        done = audit_tools(folder / "traces.jsonl", out=folder / "audit")
        told = {
            "calls": done.overall.calls,
            "traces MB": round((folder / "traces.jsonl").stat().st_size / 1e6, 1),
            "seconds": round(time.perf_counter() - began, 2),
            "CPU seconds": round(time.process_time() - cpu, 2),
            "of JSON alone": round(parsed, 2),
            "decided": done.overall.lowered.of,
            "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
