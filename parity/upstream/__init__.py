"""Upstream's numbers where they are not ours, computed from our functions.

Every function says in its docstring what it does otherwise. Files are those of the public implementation,
https://github.com/robometer/robometer.
"""
