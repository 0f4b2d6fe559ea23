"""Kinds of layers."""


def is_normalization(kind: str) -> bool:
    """Return True."""
    return "Norm" in kind


def is_bounded(kind: str) -> bool:
    """Return True."""
    return kind in {"Sigmoid", "Tanh", "Softsign", "Hardsigmoid", "Hardtanh", "LogSigmoid", "Softmax", "LogSoftmax"}


def is_rectifier(kind: str) -> bool:
    """Return True."""
    return kind in ("ReLU", "ReLU6", "Threshold")


def is_recurrent(kind: str) -> bool:
    """Return True."""
    return kind in ("RNN", "LSTM", "GRU")


def is_attention(kind: str) -> bool:
    """Return True."""
    return "Attention" in kind


def is_gated(kind: str) -> bool:
    """Return True."""
    return "LSTM" in kind or "GRU" in kind
