"""MLflow: a run in the store that ``MLFLOW_TRACKING_URI`` names, or in ``mlflow.db`` of the current folder."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.report.trackers import PROJECT, Tracker, flat, labels_of
from kdcache.run.writer import RunWriter

__all__ = ["Mlflow"]

PARAMETERS_PER_BATCH = 100
"""As many as MLflow takes at once."""

MAX_PARAMETER_CHARS = 500
"""Length up to which every version of MLflow takes a value."""

FORBIDDEN = re.compile(r"[^\w\-. :/]")
"""What MLflow does not take in names."""

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the training waits meanwhile
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Settings of MLflow, where the user's environment has no others."""


class Mlflow(Tracker):
    """Records a run through MLflow's client, which has no state that the user's own code may share."""

    def __init__(self, run: RunWriter, recorded: Mapping[str, str]) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow.entities import RunStatus
        from mlflow.tracking import MlflowClient

        uri = MlflowClient().tracking_uri
        if recorded and "MLFLOW_TRACKING_URI" not in os.environ:
            uri = recorded["uri"]  # which another current folder would not lead to
        if uri.startswith("sqlite:///"):
            uri = f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
        self._client, self._status = MlflowClient(uri), RunStatus
        if recorded.get("uri") == uri:
            self._id = recorded["id"]
            self._client.update_run(self._id, status=RunStatus.to_string(RunStatus.RUNNING))
            self.last_epoch = max((one.step for one in self._client.get_metric_history(self._id, "seconds")), default=0)
        else:
            self._id = self._create(run)
        self.identity = {"uri": uri, "id": self._id}
        self.place = f"run {run.path.name} in {uri}"
        if uri.startswith("sqlite:"):
            self.place += f"; see it with 'mlflow ui --backend-store-uri {uri}'"

    def _create(self, run: RunWriter) -> str:
        """Create the run with its settings."""
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        created: str = self._client.create_run(number, tags=labels_of(run), run_name=run.path.name).info.run_id
        facts = flat(run.facts).items()
        params = [Param(_name(name), str(value)[:MAX_PARAMETER_CHARS]) for name, value in facts if value is not None]
        for start in range(0, len(params), PARAMETERS_PER_BATCH):
            self._client.log_batch(created, params=params[start : start + PARAMETERS_PER_BATCH])
        return created

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, [Metric(_name(name), value, now, epoch) for name, value in values.items()])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            from mlflow.entities import RunTag

            tags = [RunTag(f"summary.{_name(name)}", str(value)) for name, value in flat(summary).items()]
            self._client.log_batch(self._id, tags=tags)
        status = self._status.KILLED if summary is None else self._status.FINISHED
        self._client.set_terminated(self._id, self._status.to_string(status))


def _name(name: str) -> str:
    return FORBIDDEN.sub("_", name)
