"""An exporter: follows a run's records and writes them where its user looks at curves. A run goes on without it."""

from __future__ import annotations

from sbp_services.service import Service
from streaming_sbp.files import read_json, write_json
from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry import sinks
from streaming_sbp.telemetry.points import PointReader
from streaming_sbp.telemetry.status import ENDED, is_alive

LOOK_EVERY_S = 2.0


class ExporterService(Service):
    """``sink`` is one of `sinks.FOLDERS`. Ends by itself when nobody works on the run, and all has been exported."""

    role = "exporter"

    def __init__(self, run: RunDir, sink: str, project: str = "", metrics_port: int = 0):
        super().__init__(run, sink, metrics_port)
        self._sink_name, self._project = sink, project
        self._state_path = run.path / sinks.FOLDERS[sink] / "exported.json"

    def startup(self) -> None:
        self.report("starting", f"opening {self._sink_name}")
        self._state_path.parent.mkdir(exist_ok=True)
        self._reader = PointReader(self.run, read_json(self._state_path))
        self._sink = sinks.open_sink(self.run, self._sink_name, self._project, self._reader.step)

    def tick(self) -> bool:
        goes_on = self.supervised or self._anyone_works()  # asked first: what is written meanwhile is still read
        self._export()
        if goes_on:
            self.sleep(LOOK_EVERY_S)
        return goes_on

    def shutdown(self) -> None:
        if self.stopping:
            self._export()  # what the others wrote before they ended
        self._sink.close()

    def _export(self) -> None:
        if points := self._reader.read():
            self._sink.write(points)
            write_json(self._state_path, self._reader.state_dict(), durable=False)
        self.report("running", f"exported up to step {self._reader.step:,}")

    def _anyone_works(self) -> bool:
        others = (said for said in self.run.read_roles().values() if said.get("role") != self.role)
        return any(is_alive(said) and said.get("state") not in ENDED for said in others)


def main(run: RunDir, sink: str, project: str = "", metrics_port: int = 0) -> int:
    sinks.require_installed(sink)
    return ExporterService(run, sink, project, metrics_port).main()
