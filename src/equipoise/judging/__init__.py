"""Language models as judges: what fools them (BiasScope), and harder tests made from it (JudgeBench-Pro)."""
