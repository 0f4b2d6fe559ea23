from ecosystem.task import Fault

FAULTS: dict[str, Fault] = {}
