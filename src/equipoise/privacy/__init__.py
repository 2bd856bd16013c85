"""Rules learned from people's records that say no more about one person than was agreed.

Names are imported on first use, so that the command line stays light.
"""
