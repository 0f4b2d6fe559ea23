"""What is wrong with a batch, a head or an initialization, seen in one pass. A healthy network gets no word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from gradwatch.preflight import rules_of_data, rules_of_networks
from gradwatch.preflight.seen import Seen
from gradwatch.records import Diagnosis

_RULES: tuple[Callable[[Seen], Iterator[Diagnosis]], ...] = (
    rules_of_networks.crash,
    rules_of_networks.head,
    rules_of_data.inputs,
    rules_of_data.target,
    rules_of_data.reach,
    rules_of_networks.dead,
    rules_of_networks.large,
    rules_of_networks.surprise,
    rules_of_networks.copies,
    rules_of_networks.foreign,
)


def ranked(seen: Seen) -> list[Diagnosis]:
    """The likeliest first; what a rule here explains needs no second, weaker cause."""
    own = _merged(diagnosis for rule in _RULES for diagnosis in rule(seen))
    explained = {finding for diagnosis in own for finding in diagnosis.findings}
    others = [other for other in seen.run.diagnoses if not other.findings or not set(other.findings) <= explained]
    causes = {diagnosis.cause for diagnosis in own}
    others = [other for other in others if other.cause not in causes]
    return sorted([*own, *others], key=lambda diagnosis: -diagnosis.score)


def _merged(diagnoses: Iterable[Diagnosis]) -> list[Diagnosis]:
    """One of each cause, the strongest, with the evidence of all."""
    causes: dict[str, Diagnosis] = {}
    for new in sorted(diagnoses, key=lambda diagnosis: -diagnosis.score):
        old = causes.get(new.cause)
        causes[new.cause] = new if old is None else replace(old, evidence=f"{old.evidence} {new.evidence}")
    return list(causes.values())
