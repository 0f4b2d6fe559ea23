"""TensorBoard's HParams: verdict and causes as columns, unless the user has hyperparameters there."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from models import Net, loader, mlp, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from gradwatch import GradientMonitor


class Tuned(Net):
    def __init__(self, rate: float) -> None:
        super().__init__(mlp())
        self.save_hyperparameters()


def started(folder: Path) -> HParamsPluginData:
    events = EventAccumulator(str(next(folder.rglob("events*")).parent))
    events.Reload()
    metadata: Any = events.SummaryMetadata("_hparams_/session_start_info")
    return HParamsPluginData.FromString(metadata.plugin_data.content)


@pytest.mark.parametrize(("net", "names"), [(lambda: Net(mlp()), {"gradwatch/verdict", "gradwatch/causes"}),
                                            (lambda: Tuned(0.1), {"rate"})], ids=["none", "rate"])  # fmt: skip
def test_hparams(net: Any, names: set[str], tmp_path: Path) -> None:
    monitor = GradientMonitor(summary=False, record_path=False)
    trainer(tmp_path, monitor, max_steps=3, logger=TensorBoardLogger(tmp_path)).fit(net(), loader())
    assert monitor.out_of_service == []
    written = dict(started(tmp_path).session_start_info.hparams)
    assert set(written) == names
    if "gradwatch/causes" in names:
        assert written["gradwatch/causes"].string_value == "none"
        assert written["gradwatch/verdict"].string_value.startswith("No fault found so far")
