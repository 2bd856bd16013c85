"""Policies for systems with states and actions, and what a change of the system does to them.

Names are imported on first use, so that the command line stays light.
"""
