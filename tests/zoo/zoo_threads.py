"""Fits in threads."""

from __future__ import annotations

import threading

from zoo import Net, Run, fit, has_columns

FIRST = has_columns("grad_norm", "grad_output_norm", "output_rms", layer="0")


@fit(expect=FIRST)
def fit_in_another_thread(run: Run) -> None:
    own, model = run.new_callbacks(), run.keep(Net(run))
    thread = threading.Thread(target=lambda: run.trainer(own=own, max_epochs=1).fit(model))
    thread.start()
    thread.join()
