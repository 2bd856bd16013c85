import threading
import time

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from equipoise.core.errors import BadInput
from equipoise.core.limit import at_most

LOOPS = (
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
)


def test_a_template_of_loops_in_loops_ends_in_any_thread():
    template = ImmutableSandboxedEnvironment().from_string(LOOPS)
    said = []

    def render():
        with pytest.raises(BadInput, match="takes too long") as error, at_most(0.05, "The template takes too long."):
            template.render()
        said.append(error.value)

    began = time.monotonic()
    render()
    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert len(said) == 2
    assert time.monotonic() - began < 20


def test_what_ends_in_time_is_left_alone_and_leaves_no_thread():
    before = threading.active_count()
    for _ in range(20):
        with at_most(60, "late"):
            value = sum(range(100))
        assert value == 4950
    with pytest.raises(KeyError), at_most(60, "late"):
        raise KeyError
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before


def test_an_end_in_the_last_moment_never_arrives_outside():
    outcomes = set()
    for _ in range(200):
        try:
            with at_most(0.0005, "late"):
                time.sleep(0.0004)
            outcomes.add("done")
        except BadInput:
            outcomes.add("late")
        for _ in range(100):
            pass
    assert outcomes <= {"done", "late"}
