"""The course of Snapshots: scheduled, taken in, kept, looked at by the detectors."""
