"""One whole step of GRPO, rollout and update, beside TRL's GRPOTrainer: tokens a second, and memory.

    python benchmarks/reinforcement.py                                    # tiny, about a minute
    python benchmarks/reinforcement.py --examples 0                       # prompts of 5 to 15 tokens instead of about 60
    python benchmarks/reinforcement.py --model smollm2 --generations 4 --steps 3
    python benchmarks/reinforcement.py --cache static                     # TRL with transformers' preallocated cache

Two processes, one of each, that take turns step by step (the first of a pair changes), so that both see the same machine; a
ratio is the median over the pairs. The same folder with a model in float32, prompts, responses a prompt and tokens of each
(no token ends a response early), temperature, AdamW, one optimizer step a rollout on all responses at once, no KL, no
checkpoints, no logs. What lies between two steps belongs to the second. Memory is the peak of a process above what it held
once everything was imported. Linux only, since the peak is set back through /proc.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="tiny", choices=["tiny", "smollm2"])
parser.add_argument("--prompts", type=int, default=8)
parser.add_argument("--examples", type=int, default=3, help="solved problems before the one that a prompt asks")
parser.add_argument("--generations", type=int, default=8, help="responses a prompt")
parser.add_argument("--tokens", type=int, default=32, help="of a response")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--warm-up", type=int, default=3, help="steps before those that count")
parser.add_argument("--cache", default=None, help="TRL's cache_implementation; not given: its default")

RATE, TEMPERATURE = 1e-5, 1.0


@dataclass(frozen=True)
class Work:
    """What both do."""

    folder: str
    prompts: tuple[str, ...]
    generations: int
    tokens: int
    steps: int
    never: int  # the number of a token that the model does not have, so that no response ends early
    cache: str | None

    @property
    def responses(self) -> int:
        return len(self.prompts) * self.generations


class Turns:
    """A step ends when it is called, and the next begins when the other process has had its turn."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
        self.level = held("VmRSS")
        self._begin(0)

    def _begin(self, peak: int) -> None:
        self.connection.send(peak)
        self.connection.recv()
        self.clock, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self, *_: object) -> None:
        self.connection.send((time.perf_counter() - self.clock, time.process_time() - self.cpu))
        self._begin(held("VmHWM") - self.level)


def held(name: str) -> int:
    """Bytes of this process, by the name of a line of its status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def odd(text: str) -> float:
    """A reward that takes no time: the share of odd digits and vowels."""
    return sum(character in "13579aeiou" for character in text) / max(len(text), 1)


def ours(connection: Connection, work: Work) -> None:
    import transformers.models.llama.modeling_llama  # noqa: F401

    from equipoise.data.problems import Problem
    from equipoise.language.model import load
    from equipoise.reinforcement.recipe import recipe
    from equipoise.reinforcement.training import ReinforceState, prepare, train

    turns = Turns(connection)
    language_model = load(work.folder, chat_template="none")
    language_model.model.generation_config.eos_token_id = work.never
    chosen = recipe(
        "grpo",
        steps=work.steps,
        prompts_per_step=len(work.prompts),
        num_generations=work.generations,
        max_new_tokens=work.tokens,
        temperature=TEMPERATURE,
        learning_rate=RATE,
        rollout_batch_size=work.responses,
    )
    problems = [Problem(prompt, prompt, ("",)) for prompt in work.prompts]
    written = []

    def reward(_: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [odd(text) for text in texts]

    def callback(state: ReinforceState) -> None:
        written.append(state.metrics["generated_tokens"])
        turns()

    train(prepare(language_model, chosen), chosen, problems, reward, callbacks=[callback])
    assert set(written) == {work.responses * work.tokens}


def theirs(connection: Connection, work: Work) -> None:
    import transformers.models.llama.modeling_llama  # noqa: F401
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    turns = Turns(connection)

    class Step(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            turns()

    def reward(completions: list[str], completion_ids: list[list[int]], **_: object) -> list[float | None]:
        assert [len(ids) for ids in completion_ids] == [work.tokens] * work.responses
        return [odd(text) for text in completions]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder,
            model_init_kwargs={"dtype": "float32"},
            max_steps=work.steps,
            per_device_train_batch_size=work.responses,
            num_generations=work.generations,
            max_completion_length=work.tokens,
            temperature=TEMPERATURE,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            loss_type="grpo",
            beta=0.0,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            cache_implementation=work.cache,
        )
        tokenizer = AutoTokenizer.from_pretrained(work.folder)
        data = Dataset.from_list([{"prompt": prompt} for prompt in work.prompts])
        trainer = GRPOTrainer(work.folder, reward, config, data, processing_class=tokenizer, callbacks=[Step()])
        trainer.eos_token_ids = trainer.generation_config.eos_token_id = [work.never]
        trainer.train()


def main() -> None:
    arguments = parser.parse_args()
    from equipoise.data.arithmetic import CHARACTERS, problems
    from equipoise.language import catalog
    from equipoise.language.tiny import tiny

    asked = problems(arguments.prompts, seed=0, kind="chain", levels=(2, 3, 4, 5, 6))
    solved = problems(arguments.examples, seed=1, kind="chain", levels=(1, 2, 3)) if arguments.examples else []
    shown = "".join(problem.prompt + ";".join(problem.steps) + "\n" for problem in solved)
    with tempfile.TemporaryDirectory() as name:
        if arguments.model == "tiny":
            tiny([CHARACTERS], seed=0, tokens="characters").save(name)
        work = Work(
            folder=name if arguments.model == "tiny" else str(catalog.folder(arguments.model)),
            prompts=tuple(shown + problem.prompt for problem in asked),
            generations=arguments.generations,
            tokens=arguments.tokens,
            steps=arguments.warm_up + arguments.steps,
            never=1 << 20,
            cache=arguments.cache,
        )
        context = multiprocessing.get_context("spawn")
        ends, processes = {}, []
        for side in (ours, theirs):
            ends[side], other = context.Pipe()
            processes.append(context.Process(target=side, args=(other, work)))
            processes[-1].start()
            other.close()
            ends[side].recv()
        times, peaks = {ours: [], theirs: []}, {}
        for step in range(work.steps):
            for side in (ours, theirs) if step % 2 else (theirs, ours):
                ends[side].send(None)
                times[side].append(ends[side].recv())
                peaks[side] = ends[side].recv()
        for side, process in zip(ends, processes, strict=True):
            ends[side].send(None)
            process.join()
            assert process.exitcode == 0

    counted = {side: list(zip(*each[arguments.warm_up :], strict=True)) for side, each in times.items()}
    ratios = [
        statistics.median(their / our for our, their in zip(*pair, strict=True))
        for pair in zip(counted[ours], counted[theirs], strict=True)
    ]
    tokens = work.responses * work.tokens
    print(
        f"{arguments.model}, {arguments.prompts} prompts of {statistics.mean(map(len, work.prompts)):.0f} characters, "
        f"{arguments.generations} responses each of {arguments.tokens} tokens, "
        f"{os.environ['OMP_NUM_THREADS']} thread(s), {arguments.steps} steps\n"
    )
    print("| | tokens a second | ms a step | CPU, ms a step | peak memory, MB |\n|---|---:|---:|---:|---:|")
    for side, label in ((ours, "equipoise"), (theirs, "TRL")):
        seconds, cpu = map(statistics.median, counted[side])
        print(
            f"| {label} | {tokens / seconds:,.0f} | {1e3 * seconds:.0f} | {1e3 * cpu:.0f} | {peaks[side] / 1e6:.0f} |"
        )
    print(f"| ratio | {ratios[0]:.2f} | | {ratios[1]:.2f} | {peaks[ours] / peaks[theirs]:.2f} |")


if __name__ == "__main__":
    main()
