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
      more_real_text             true: the baseline, but with more unique real text; data efficiency is read off such
      scales                     names of those that its lengths are meant for (all by default)

Every trial, an arm with one point of its grid and one seed, is an ordinary run (`sbp run`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from streaming_sbp import config as configuration
from streaming_sbp.config import Config, ConfigError

Tree = dict[str, dict[str, Any]]
Values = Annotated[list[str | bool | int | float], Field(min_length=1)]
Grid = dict[Annotated[str, StringConstraints(pattern=r"^\w+\.\w+$")], Values]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # a folder has it
PLACES = {"run": {"dir"}, "data": {"dataset", "tokenizer"}, "synthesizer": {"snapshot"}}  # settings that name folders
OF_THE_TRIAL = ("run.dir", "run.seed", "data.dataset", "data.concept_seed", "synthesizer.snapshot")
PRESETS = "experiment/presets"  # folder in the package
DEFAULT_SCALE = "small"
OF_SYNTHETIC_TEXT = ("mix", "pairing", "synthesizer", "gate", "snapshots", "generator", "stream", "journal")  # sections
ROLES = ("baseline", "oracle", "main", "control")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Scale(_Part):
    seeds: Annotated[int, Field(ge=1)]
    arms: list[str]
    config: Tree = {}
    grid: Grid | None = None


class _Arm(_Part):
    title: str
    config: Tree = {}
    grid: Grid = {}
    snapshot_of: str = ""
    more_real_text: bool = False
    scales: list[str] = []

    @property
    def keys(self) -> set[str]:
        """``section.key`` of the settings that it sets itself, without those of its grid."""
        return {f"{section}.{key}" for section, values in self.config.items() for key in values}


class _File(_Part):
    title: str
    baseline: str
    oracle: str
    main: str
    control: str
    config: Tree = {}
    scales: Annotated[dict[Name, _Scale], Field(min_length=1)]
    arms: Annotated[dict[Name, _Arm], Field(min_length=1)]


@dataclass(frozen=True)
class Arm:
    name: str
    title: str
    tree: Tree  # the whole configuration but what the trial decides
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    snapshot_of: str = ""
    more_real_text: bool = False

    @property
    def points(self) -> list[dict[str, Any]]:
        """The points of the grid, ``{"section.key": value}``; one empty point without a grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of an experiment; the same one in whatever order ``point``, of the arm's grid, names its settings."""

    arm: str
    point: tuple[tuple[str, Any], ...]
    seed: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trial) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[str, frozenset[tuple[str, Any]], int]:
        return self.arm, frozenset(self.point), self.seed

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
    beside: frozenset[str] = frozenset()  # those of them that are only reported, as far as results are there
    own_settings: Mapping[str, list[str]] = field(default_factory=dict)  # overridden key -> arms that keep their own

    @property
    def to_run(self) -> list[str]:
        return [arm for arm in self.arms if arm not in self.beside]

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
        configs = {}
        for trial in (trial for arm in self.arms for trial in self.trials(arm, 0)):
            try:
                configs[trial] = self.run_config(trial, out, "given")
                _check_synthetic_text(configs[trial])
            except ConfigError as error:
                raise ConfigError(f"{self.name}, arm {trial}: {error}") from None
        baseline = configs[self.trials(self.baseline, 0)[0]]
        for trial, config in configs.items():
            if difference := _heldout_difference(config, baseline):
                raise ConfigError(f"{self.name}, arm {trial}: {difference}")

    def _text(self, arm: str) -> dict[str, Any]:
        return self.arms[arm].tree.get("data", {})


def _check_synthetic_text(config: Config) -> None:
    """Raises ConfigError when a run ends before there could be any."""
    if config.synthesizer.mode in ("off", "given"):
        return
    begins = max(config.first_tuned_tokens, config.mix.start_by_tokens)
    if config.training.total_tokens <= begins:
        raise ConfigError(
            f"training.total_tokens = {config.training.total_tokens}: expected more than {begins}, before which there "
            "is no synthesizer; train longer, or lower checkpoint.every_tokens, synthesizer.first_checkpoint_tokens "
            "and mix.start_by_tokens"
        )


def _heldout_difference(config: Config, baseline: Config) -> str:
    """How the held-out loss of a run would be of other documents than the baseline's; "" if it would not."""
    found, wanted = _heldout_tokens(config), _heldout_tokens(baseline)
    if found == wanted:
        return ""
    return (
        f"evaluation.heldout_sequences = {config.evaluation.heldout_sequences} of training.sequence_tokens = "
        f"{config.training.sequence_tokens}: these hold {found} tokens of held-out text, those of the baseline "
        f"{wanted}, and losses on other documents cannot be compared; in a TOML file of your own, set "
        f"evaluation.heldout_sequences of this arm so that the two together make {wanted} tokens"
    )


def _heldout_tokens(config: Config) -> int:
    return config.evaluation.heldout_sequences * config.training.sequence_tokens


def settings(config: Config) -> Tree:
    """Those that differ from their defaults and have an effect, but for where things lie: equal on another machine."""
    return effective(config.model_dump(mode="json", exclude=PLACES, exclude_defaults=True))


def effective(tree: Tree) -> Tree:
    """``tree`` without what has no effect: how synthetic text would be made, where real text is trained on alone.

    So a baseline is not run again when only that has changed.
    """
    if tree.get("synthesizer", {}).get("mode") != "off" or tree.get("mix", {}).get("pair_share"):
        return tree
    kept = {section: values for section, values in tree.items() if section not in OF_SYNTHETIC_TEXT}
    return kept | {"synthesizer": {"mode": "off"}}


def names() -> list[str]:
    """The shipped experiments."""
    return configuration.preset_names(PRESETS)


def title(experiment: str) -> str:
    """What it asks. Raises ConfigError."""
    return _read(experiment).title


def choice(experiment: str, scale: str = DEFAULT_SCALE, only: tuple[str, ...] = ()) -> dict[str, tuple[str, str]]:
    """Of every arm its title, and whether it runs: "yes", "when asked for", or the scales that it is for.

    ``only``: as in ``load``. Raises ConfigError.
    """
    file = _read(experiment)
    runs = load(experiment, scale, only=only).to_run

    def when(arm: str) -> str:
        if unfit := _unfit(arm, scale, file):
            return f"at {' or '.join(file.arms[unfit].scales)}"
        return "yes" if arm in runs else "when asked for"

    return {arm: (own.title, when(arm)) for arm, own in file.arms.items()}


def load(
    experiment: str,
    scale: str = DEFAULT_SCALE,
    num_seeds: int = 0,
    only: tuple[str, ...] = (),
    overrides: tuple[str, ...] = (),
    beside: Iterable[str] = (),
) -> Experiment:
    """A shipped experiment by name, or the TOML file at a path.

    ``num_seeds`` and ``only`` (arms, beside baseline and oracle) take the place of what the scale says when they are
    not 0 or empty; ``overrides``, ``section.key=value``, are settings of all arms that do not set that key themselves;
    ``beside``: arms that are not run, but reported. Raises ConfigError.
    """
    name, file = Path(experiment).stem, _read(experiment)
    _check_names(name, file)
    if scale not in file.scales:
        raise ConfigError(f"{name}: scale {scale!r}: expected one of {', '.join(file.scales)}")
    if given_as_setting := [override for override in overrides if override in file.arms]:
        raise ConfigError(f"{', '.join(given_as_setting)}: expected section.key=value; arms are asked for with --arms")
    chosen = file.scales[scale]
    wanted = list(dict.fromkeys((file.baseline, file.oracle, *(only or chosen.arms))))
    if unknown := [arm for arm in wanted if arm not in file.arms]:
        raise ConfigError(f"{name}: arms {', '.join(unknown)}: expected some of {', '.join(file.arms)}")
    for arm in wanted:
        if unfit := _unfit(arm, scale, file):
            whose = "its lengths" if unfit == arm else f"the lengths of {unfit}, whose snapshot it is given,"
            raise ConfigError(
                f"{name}, arm {arm}: {whose} are meant for scale {' or '.join(file.arms[unfit].scales)}, got {scale}; "
                "leave it out, or say in a TOML file of your own what they should be"
            )
    wanted += [source for arm in wanted if (source := file.arms[arm].snapshot_of) and source not in wanted]
    common = configuration.apply_overrides(merged(file.config, chosen.config), overrides)
    only_shown = frozenset(beside) & set(file.arms) - set(wanted)
    arms = {}
    for arm in file.arms:
        if arm in wanted or arm in only_shown:
            own = file.arms[arm]
            grid = chosen.grid if arm == file.baseline and chosen.grid is not None else own.grid
            tree = merged(common, own.config)
            arms[arm] = Arm(arm, own.title, tree, grid, own.snapshot_of, own.more_real_text)
    roles = {role: getattr(file, role) for role in ROLES}
    own_settings = _own_settings(name, file, [arms[arm] for arm in wanted], overrides)
    return Experiment(
        name,
        file.title,
        scale,
        num_seeds or chosen.seeds,
        **roles,
        arms=arms,
        beside=only_shown,
        own_settings=own_settings,
    )


def _unfit(arm: str, scale: str, file: _File) -> str:
    """The arm itself, or the one whose snapshot it is given, when its lengths are not meant for ``scale``; else ""."""
    parts = filter(None, (arm, file.arms[arm].snapshot_of))
    return next((part for part in parts if file.arms[part].scales and scale not in file.arms[part].scales), "")


def _check_names(name: str, file: _File) -> None:
    """What names an arm must name one that can be that."""
    for role in ROLES:
        if (arm := getattr(file, role)) not in file.arms:
            raise ConfigError(f"{name}: {role} = {arm!r}: expected one of {', '.join(file.arms)}")
    if file.baseline == file.oracle:
        raise ConfigError(f"{name}: baseline = oracle = {file.baseline!r}: expected two arms")
    for arm, own in file.arms.items():
        _check_arm(f"{name}, arm {arm}", own, file)
        if not (source := own.snapshot_of):
            continue
        if source not in file.arms:
            raise ConfigError(f"{name}, arm {arm}: snapshot_of = {source!r}: expected one of {', '.join(file.arms)}")
        reason = (
            "is given a snapshot itself"
            if file.arms[source].snapshot_of
            else "has a grid"
            if file.arms[source].grid
            else "makes no snapshot"
            if _mode(file, source) in ("off", "given")
            else ""
        )
        if reason:
            raise ConfigError(
                f"{name}, arm {arm}: snapshot_of = {source!r}, which {reason}; expected one that makes one"
            )


def _check_arm(where: str, arm: _Arm, file: _File) -> None:
    if taken := sorted((arm.keys | set(arm.grid)) & set(OF_THE_TRIAL)):
        raise ConfigError(f"{where}: {', '.join(taken)}: each trial has its own; leave it out")
    if of_data := sorted(key for key in arm.grid if key.startswith("data.")):
        raise ConfigError(f"{where}: grid over {', '.join(of_data)}: expected an arm for each text")
    if twice := sorted(key for key, values in arm.grid.items() if len(set(map(str, values))) < len(values)):
        raise ConfigError(f"{where}: grid over {', '.join(twice)}: expected each value once")
    if unknown := sorted(set(arm.scales) - set(file.scales)):
        raise ConfigError(f"{where}: scales {', '.join(unknown)}: expected some of {', '.join(file.scales)}")


def _mode(file: _File, arm: str) -> str:
    return str(merged(file.config, file.arms[arm].config).get("synthesizer", {}).get("mode", "tuned"))


def _own_settings(name: str, file: _File, wanted: list[Arm], overrides: tuple[str, ...]) -> dict[str, list[str]]:
    """Overridden keys that some arms set themselves. Raises ConfigError for a key that each trial has its own of."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    if taken := sorted(set(keys) & set(OF_THE_TRIAL)):
        raise ConfigError(f"{name}: {', '.join(taken)}: each trial has its own; see --out and --seeds")
    own = {arm.name: file.arms[arm.name].keys | set(arm.grid) for arm in wanted}
    found = {key: [arm for arm in own if key in own[arm]] for key in keys}
    return {key: arms for key, arms in found.items() if arms}


def merged(tree: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """A copy of ``tree`` with the settings of ``over`` in the place of its own."""
    result = {section: dict(values) for section, values in tree.items()}
    for section, values in over.items():
        result[section] = result.get(section, {}) | values
    return result


def _read(experiment: str) -> _File:
    path = Path(experiment)
    if path.is_file():
        tree = configuration.read_toml(experiment)
    elif experiment in names():
        tree = configuration.read_preset(experiment, PRESETS)
    else:
        got = "a folder" if path.is_dir() else "no such file" if path.suffix or path.name != experiment else "unknown"
        raise ConfigError(
            f"experiment {experiment!r}: {got}; expected one of {', '.join(names())}, or the path of a TOML file"
        )
    try:
        return _File.model_validate(tree)
    except ValidationError as error:
        name = Path(experiment).stem
        raise ConfigError("\n".join(f"{name}: {_explain(item)}" for item in error.errors())) from None


def _explain(item: Any) -> str:
    *where, key = (str(part) for part in item["loc"])
    inside = f"{'.'.join(where)}: " if where else ""
    if item["type"] == "missing":
        return f"{inside}missing key {key}"
    if item["type"] == "extra_forbidden":
        parts: dict[str, type[_Part]] = {"arms": _Arm, "scales": _Scale}
        known = parts.get(where[0], _File) if where else _File
        return f"{inside}unknown {key}; expected {', '.join(known.model_fields)}"
    return f"{inside}{key} = {item['input']!r}: {item['msg']}"
