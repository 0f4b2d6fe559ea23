"""What ``compare.py`` and ``plots.py`` are made of."""
