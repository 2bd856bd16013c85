"""Chat models for pipelines, on Inspect AI's model layer: every call recorded, replayable, counted, within a budget."""
