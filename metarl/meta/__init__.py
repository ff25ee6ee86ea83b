"""The meta-gradient: unrolled updates, the outer objective, estimators, the update."""
