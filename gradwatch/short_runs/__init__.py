"""Short, quiet, watched trainings of a copy: the one engine of `check`, `testing`, `preflight` and `trial`."""
