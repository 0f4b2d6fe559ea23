"""The way of the Snapshots: scheduled, measured, kept, and given to the detectors."""
