import numpy as np

from equipoise.study import Arm, Claim, Outcome, Run, Study, better, study


@study("mine", paper="doi:10.1023/A:1007662407062", trades="a second weight vector for accuracy")
def mine(steps: int = 500) -> Study:
    """The average of all weights that a perceptron goes through, against its last ones."""
    return Study(
        seeds=10,
        budget="steps",
        arms=[
            Arm("averaged", weights="average"),
            Arm("last", kind="baseline", weights="last"),
            Arm("any", kind="control", weights="random"),
        ],
        outcomes=[Outcome("accuracy", better="higher", chance=0.5)],
        claims=[
            Claim(
                "Averaged weights are more accurate than the last ones at equal steps.",
                source="section 5",
                test=better(
                    "accuracy", arm="averaged", rival="last", margin=0.02, reason="two points pay for the vector"
                ),
            )
        ],
        run=run,
    )


def run(run: Run) -> None:
    world = np.random.default_rng(0)  # the same questions in every seed
    truth, questions = world.normal(size=20), world.normal(size=(200, 20))
    path = np.zeros((run.options["steps"] + 1, 20))
    for step in range(run.options["steps"]):  # run.generator draws the same for all arms of a seed
        x = run.generator.normal(size=20)
        label = np.sign(x @ truth) * (-1 if run.generator.random() < 0.1 else 1)  # one label in ten is wrong
        path[step + 1] = path[step] + (label * x if label * (x @ path[step]) <= 0 else 0)
    chosen = {"average": path.mean(axis=0), "last": path[-1], "random": run.generator.choice(path)}
    correct = np.sign(questions @ chosen[run.settings["weights"]]) == np.sign(questions @ truth)
    run.items("accuracy", [f"question {index}" for index in range(200)], correct)
    run.spend(steps=run.options["steps"])
