"""Sweeps without Ray: what is searched, what the next trial tries, what became of each trial, and what that means."""
