"""The parts of ``compare.py`` and ``plots.py``."""
