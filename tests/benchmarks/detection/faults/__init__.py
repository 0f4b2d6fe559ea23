"""The families of faults, one file for those that belong together."""
