"""One module per group of recorded cases; its `rows(recorded_set)` yields a `Row` for every comparison."""
