"""Healthy programs that look sick to a rule of thumb."""
