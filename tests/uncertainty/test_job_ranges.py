"""What the options of the jobs take, at the ends of their ranges."""

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from equipoise.uncertainty import bayes_job, job, sampling_job


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        (bayes_job.Count, (1, 2), (0, -1)),
        (bayes_job.Positive, (1e-9, 0.5), (0.0, -1.0)),
        (job.Count, (1,), (0,)),
        (job.Scale, (0.0, 5.0), (-1e-9,)),
        (job.Open, (1e-9, 0.999), (0.0, 1.0)),
        (job.Kept, (1e-9, 1.0), (0.0, 1.001)),
        (job.Certainty, (0.5, 0.999), (0.499, 1.0)),
        (job.Seed, (0, 7), (-1,)),
        (sampling_job.Several, (2,), (1,)),
        (sampling_job.Count, (1,), (0,)),
        (sampling_job.Whole, (0,), (-1,)),
        (sampling_job.Likeliest, (2, 20), (1, 21)),
        (sampling_job.Temperature, (0.0, 3.0), (-0.1, math.inf)),
    ],
)
def test_ranges_at_their_ends(kind, taken, refused):
    adapter = TypeAdapter(kind)
    for value in taken:
        assert adapter.validate_python(value) == value
    for value in refused:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


@pytest.mark.parametrize("settings", [bayes_job.TeacherSettings, bayes_job.StudentSettings])
def test_settings_refuse_what_they_do_not_know(settings):
    with pytest.raises(ValidationError):
        settings(stepz=3)
