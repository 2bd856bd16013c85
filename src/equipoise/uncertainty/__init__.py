"""How sure a model is of what it says: per token, per answer, and as a sampler.

Names are imported on first use, so that the command line stays light.
"""
