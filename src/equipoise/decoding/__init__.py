"""What steers a model while it writes.

Names are imported on first use, so that the command line stays light.
"""
