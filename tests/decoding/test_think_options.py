"""The options of the job at the least and the most that they may be."""

import pytest
from pydantic import TypeAdapter, ValidationError

from equipoise.decoding import job


@pytest.mark.parametrize(
    ("kind", "may", "may_not"),
    [
        (job.Count, (1, 10**9), (0,)),
        (job.Tokens, (0, 10**9), (-1,)),
        (job.Limit, (-1, 10**9), (-2,)),
        (job.Positive, (1e-9, 1e9), (0,)),
        (job.Least, (0, 1e9), (-1e-9,)),
        (job.Chance, (0, 1), (-1e-9, 1.001)),
        (job.Share, (1e-9, 1), (0, 1.001)),
    ],
)
def test_an_option_has_limits(kind, may, may_not):
    read = TypeAdapter(kind).validate_python
    assert [read(value) for value in may] == [*may]
    for value in may_not:
        with pytest.raises(ValidationError):
            read(value)
