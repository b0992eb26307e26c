"""An experiment: arms that differ in a few settings of the one configuration, at a scale, with seeds.

A TOML file, shipped (`streaming_sbp/experiment/presets`) or the user's own:

    title                        what it asks
    baseline, oracle             names of the arms between which a share of the gain is taken
    main, control                names of the arm that it is about, and of the one that must not do as well
    [config.SECTION]             settings of all arms
    [scales.NAME]                seeds, arms; [scales.NAME.config.SECTION] on top
      grid                       in the place of the baseline's
    [arms.NAME]                  title; [arms.NAME.config.SECTION] on top of that
      grid                       {"section.key" = [values]}: tried with the first seed, the best held-out loss is kept
      snapshot_of                an arm whose newest snapshot is given to this one (`synthesizer.mode = "given"`)
      times_real_text            how many times the baseline's unique real text it has (1 by default)

Every trial, an arm with one point of its grid and one seed, is an ordinary run (`sbp run`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streaming_sbp import config as configuration
from streaming_sbp.config import Config, ConfigError

Tree = dict[str, dict[str, Any]]
PLACES = {"run": {"dir"}, "data": {"dataset", "tokenizer"}, "synthesizer": {"snapshot"}}  # settings that name folders
PRESETS = "experiment/presets"  # folder in the package
DEFAULT_SCALE = "small"
ROLES = ("baseline", "oracle", "main", "control")


@dataclass(frozen=True)
class Arm:
    name: str
    title: str
    tree: Tree  # the whole configuration but what the trial decides
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    snapshot_of: str = ""
    times_real_text: float = 1.0

    @property
    def points(self) -> list[dict[str, Any]]:
        """The points of the grid, ``{"section.key": value}``; one empty point without a grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Trial:
    """One run of an experiment. ``point``: of the arm's grid, as pairs, so that it can be a key."""

    arm: str
    point: tuple[tuple[str, Any], ...]
    seed: int

    @property
    def folder(self) -> Path:
        """Below the experiment's folder."""
        names = [f"{key.split('.')[-1]}-{value}" for key, value in self.point]
        return Path("runs", "-".join([self.arm, *names]), f"seed-{self.seed}")

    def __str__(self) -> str:
        point = ", ".join(f"{key} = {value}" for key, value in self.point)
        return f"{self.arm}{f' ({point})' if point else ''}, seed {self.seed}"


@dataclass(frozen=True)
class Experiment:
    name: str
    title: str
    scale: str
    num_seeds: int
    baseline: str
    oracle: str
    main: str
    control: str
    arms: Mapping[str, Arm]  # in the order in which they are reported; baseline and oracle are always among them

    def __post_init__(self) -> None:
        for arm in self.arms.values():
            if arm.snapshot_of and arm.snapshot_of not in self.arms:
                raise ConfigError(
                    f"{self.name}: arm {arm.name} needs the snapshot of {arm.snapshot_of!r}; expected it among the "
                    f"arms: {', '.join(self.arms)}"
                )

    def trials(self, arm: str, seed: int) -> list[Trial]:
        return [Trial(arm, tuple(point.items()), seed) for point in self.arms[arm].points]

    def data_tree(self, arm: str, seed: int, out: Path) -> dict[str, Any]:
        """Section `data` of an arm: one data set for all arms with the same text, one tokenizer for all of a seed."""
        text, common = self._text(arm), self._text(self.baseline)
        if text.get("source") == "concepts":
            text = text | {"concept_seed": seed}
        folder = out / "data" / (f"seed-{seed}" if text.get("source") == "concepts" else "")
        if self._text(arm) == common:
            return text | {"dataset": str(folder / "real")}
        first = next(name for name in self.arms if self._text(name) == self._text(arm))
        return text | {"dataset": str(folder / first), "tokenizer": str(folder / "real" / "tokenizer")}

    def run_config(self, trial: Trial, out: Path, snapshot: str = "") -> Config:
        """The configuration of a trial. ``snapshot``: the folder that ``snapshot_of`` has led to.

        Raises ConfigError.
        """
        arm = self.arms[trial.arm]
        tree = merged(arm.tree, {"run": {"dir": str(out / trial.folder), "seed": trial.seed}})
        tree["data"] = self.data_tree(trial.arm, trial.seed, out)
        if arm.snapshot_of:
            tree = merged(tree, {"synthesizer": {"mode": "given", "snapshot": snapshot}})
        overrides = [f"{key}={configuration.toml_text(value)}" for key, value in trial.point]
        return configuration.build(configuration.apply_overrides(tree, overrides))

    def check(self, out: Path) -> None:
        """Build the configuration of every trial, so that a mistake is found before hours of work. ConfigError."""
        for arm in self.arms.values():
            for trial in self.trials(arm.name, 0):
                try:
                    self.run_config(trial, out, "given")
                except ConfigError as error:
                    raise ConfigError(f"{self.name}, arm {trial}: {error}") from None

    def _text(self, arm: str) -> dict[str, Any]:
        return self.arms[arm].tree.get("data", {})


def fingerprint(config: Config) -> str:
    """Of the settings that differ from their defaults, but for where things lie: equal on another machine."""
    settings = config.model_dump(mode="json", exclude=PLACES, exclude_defaults=True)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def names() -> list[str]:
    """The shipped experiments."""
    return configuration.preset_names(PRESETS)


def load(
    experiment: str,
    scale: str = DEFAULT_SCALE,
    num_seeds: int = 0,
    only: tuple[str, ...] = (),
    overrides: tuple[str, ...] = (),
) -> Experiment:
    """A shipped experiment by name, or the TOML file at a path.

    ``num_seeds`` and ``only`` (arms, beside baseline and oracle) take the place of what the scale says when they are
    not 0 or empty; ``overrides``, ``section.key=value``, are settings of all arms. Raises ConfigError.
    """
    tree = _read(experiment)
    _check_keys(experiment, tree, {"title", *ROLES, "config", "scales", "arms"}, {"config"})
    name = Path(experiment).stem
    for role in ROLES:
        if tree[role] not in tree["arms"]:
            raise ConfigError(f"{name}: {role} = {tree[role]!r}: expected one of {', '.join(tree['arms'])}")
    if scale not in tree["scales"]:
        raise ConfigError(f"{name}: scale {scale!r}: expected one of {', '.join(tree['scales'])}")
    chosen = tree["scales"][scale]
    _check_keys(f"{name}, scale {scale}", chosen, {"seeds", "arms", "config", "grid"}, {"config", "grid"})
    if "grid" in chosen:
        tree["arms"][tree["baseline"]]["grid"] = chosen["grid"]
    wanted = only or tuple(chosen["arms"])
    wanted = tuple(dict.fromkeys((tree["baseline"], tree["oracle"], *wanted)))
    if unknown := [arm for arm in wanted if arm not in tree["arms"]]:
        raise ConfigError(f"{name}: arms {', '.join(unknown)}: expected some of {', '.join(tree['arms'])}")
    wanted += tuple(
        needed for arm in wanted if (needed := tree["arms"][arm].get("snapshot_of")) and needed not in wanted
    )
    common = merged(tree["config"], chosen.get("config", {}))
    common = configuration.apply_overrides(common, overrides)
    arms = {arm: _arm(name, arm, tree["arms"][arm], common) for arm in tree["arms"] if arm in wanted}
    roles = {role: tree[role] for role in ROLES}
    return Experiment(name, tree["title"], scale, num_seeds or chosen["seeds"], **roles, arms=arms)


def merged(tree: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """A copy of ``tree`` with the settings of ``over`` in the place of its own."""
    result = {section: dict(values) for section, values in tree.items()}
    for section, values in over.items():
        result[section] = result.get(section, {}) | values
    return result


def _arm(experiment: str, name: str, tree: Mapping[str, Any], common: Tree) -> Arm:
    optional = {"config", "grid", "snapshot_of", "times_real_text"}
    _check_keys(f"{experiment}, arm {name}", tree, {"title"} | optional, optional)
    return Arm(
        name,
        tree["title"],
        merged(common, tree.get("config", {})),
        tree.get("grid", {}),
        tree.get("snapshot_of", ""),
        tree.get("times_real_text", 1.0),
    )


def _read(experiment: str) -> dict[str, Any]:
    if experiment.endswith(".toml") or Path(experiment).is_file():
        return configuration.read_toml(experiment)
    if experiment not in names():
        raise ConfigError(f"experiment {experiment!r}: expected one of {', '.join(names())}, or a TOML file")
    return configuration.read_preset(experiment, PRESETS)


def _check_keys(where: str, tree: Mapping[str, Any], known: set[str], optional: set[str]) -> None:
    if unknown := set(tree) - known:
        raise ConfigError(f"{where}: unknown {', '.join(sorted(unknown))}; expected {', '.join(sorted(known))}")
    if missing := known - optional - set(tree):
        raise ConfigError(f"{where}: expected {', '.join(sorted(missing))}")
