"""Benchmarks as Inspect tasks: `inspect eval equipoise/NAME --model ...`."""
