"""Robometer, a reward model for robots: progress, success and preference from the video of a trajectory."""

__version__ = "0.1.0"
