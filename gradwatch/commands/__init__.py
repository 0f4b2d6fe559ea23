"""The commands of ``gradwatch``: one file each, with ``add`` (declares its options) and ``run``."""
