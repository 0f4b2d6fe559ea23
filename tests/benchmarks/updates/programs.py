"""All programs: the sick ones with their twins, and the healthy ones."""

from __future__ import annotations

from updates.healthy_callbacks import CALLBACKS
from updates.healthy_models import FORMS
from updates.healthy_turns import TURNS
from updates.programs_base import Program
from updates.programs_gradients import GRADIENTS
from updates.programs_holding import HOLDING
from updates.programs_rates import RATES
from updates.programs_steps import STEPS
from updates.replicas import HEALTHY_REPLICAS, REPLICAS

SICK: dict[str, Program] = {**GRADIENTS, **HOLDING, **STEPS, **RATES, **REPLICAS}
HEALTHY: dict[str, Program] = {**FORMS, **TURNS, **CALLBACKS, **HEALTHY_REPLICAS}
PROGRAMS: dict[str, Program] = {**SICK, **HEALTHY}
IN_PROCESSES = {*REPLICAS, *HEALTHY_REPLICAS}
