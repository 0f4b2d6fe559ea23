"""The commands of ``gradwatch``: one file each, with ``add`` (its options) and what runs it."""
