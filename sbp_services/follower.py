"""A further rank of the trainer, under torchrun: makes the first rank's batches, and trains its rows of them."""

from __future__ import annotations

from sbp_services.service import Service
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal
from streaming_sbp.telemetry.catalogue import PHASES
from streaming_sbp.training.build import build_trainer
from streaming_sbp.training.checkpoint import CheckpointStore
from streaming_sbp.training.loop import PhaseClock
from streaming_sbp.training.model import choose_device
from streaming_sbp.training.world import World


class FollowerService(Service):
    role = "follower"

    def __init__(self, run: RunDir, world: World, metrics_port: int = 0):
        super().__init__(run, f"trainer-rank-{world.rank}", metrics_port)
        self._world = world

    def startup(self) -> None:
        self.report("starting", "reading the data set and building the model")
        dataset = Dataset.open(self.config.data.dataset)
        device = choose_device(self.config.training.device)
        clock = PhaseClock(PHASES)
        journal = Journal(self.run.journal)
        self.trainer = build_trainer(self.config, dataset, journal, self.run.pairs, device, clock, self._world)
        if name := self._world.broadcast():
            store = CheckpointStore(self.run.checkpoints, self.config.checkpoint, dataset.tokenizer())
            _, state = store.load(name, self.trainer.model, self.trainer.optimizer)
            self.trainer.load_state_dict(state["trainer"])

    def tick(self) -> bool:
        going_on = self.trainer.follow()
        self.report("running", f"step {self.trainer.trained.steps}")
        return going_on

    @property
    def stopping(self) -> bool:
        """Never by itself: the first rank says when it has ended, or all of them would hang."""
        return False

    def shutdown(self) -> None:
        self._world.close()
