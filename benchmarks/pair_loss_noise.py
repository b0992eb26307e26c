"""How noisy the held-out pair loss is: its standard error, and that of the difference between two stages of one tuning.

    sbp ingest ... && python benchmarks/pair_loss_noise.py DATASET --tokens 1500000

The model and the settings are those of the experiment `concepts`, tuned from random weights. Every stage is judged by
the same held-out pairs, as candidates of the gate are, so differences are taken pair by pair. The loss is a ratio, nats
over target tokens, and so are the errors: of the residuals, by pair, and by target document. ``seed_gain``: nats that
the own seed document saves beside an unrelated one. A JSON line for each evaluation; the last one has them all.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch

from streaming_sbp import config
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.pairing.find import find_pairs
from streaming_sbp.synthesizer.prompt import Mismatched, PairSequences, Prompter, training_pairs
from streaming_sbp.synthesizer.tuning import PairLoss, tune
from streaming_sbp.training.model import build_model

SECTIONS = ("model", "training", "synthesizer", "generator")  # of the experiment's configuration


def error_of(residuals: np.ndarray, num_targets: float) -> float:
    """Standard error of a ratio: ``residuals`` in nats, of independent parts, over ``num_targets`` tokens in all."""
    count = len(residuals)
    return math.sqrt(count / (count - 1) * float((residuals**2).sum())) / num_targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--tokens", type=int, default=1_500_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    preset = config.read_preset("concepts", "experiment/presets")["config"]
    tree = {section: preset[section] for section in SECTIONS}
    tree["synthesizer"] |= {"tuning_tokens": arguments.tokens, "evaluate_every_steps": 40, "patience": 10**6}
    settings, device = config.build(tree), torch.device("cpu")
    dataset = Dataset.open(arguments.dataset)
    tokenizer = dataset.tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        table = find_pairs(dataset, settings.pairing, 0, scratch=Path(folder)).table
    prompter = Prompter(tokenizer, settings.synthesizer)
    heldout = np.random.default_rng(0).permutation(np.flatnonzero(table.heldout))
    chosen = np.sort(heldout[: settings.synthesizer.heldout_pairs])
    targets = table.target[chosen]
    judges = PairSequences(dataset.pairable(), table.seed[chosen], targets, prompter)
    longest, batch_tokens = prompter.longest_pair_tokens, settings.synthesizer.batch_tokens
    together, unrelated, *each = (
        PairLoss(pairs, longest, batch_tokens, tokenizer.pad_id)
        for pairs in (judges, Mismatched(judges), *([judges[i]] for i in range(len(judges))))
    )
    counts = np.array([judges[i].num_target_tokens for i in range(len(judges))], dtype=np.float64)
    model, precision = build_model(settings.model, tokenizer, seed=0), settings.training.precision
    stages, before = [], None
    training = training_pairs(table, dataset.split("train"), prompter)
    for progress in tune(model, training, together, settings, tokenizer.pad_id, device):
        if progress.pair_loss is None:
            continue
        nats = np.array([loss(model, device, precision) for loss in each]) * counts
        loss = nats.sum() / counts.sum()
        stage = {
            "tuned_tokens": progress.tuned_tokens,
            "pair_loss": loss,
            "error": error_of(nats - loss * counts, counts.sum()),
            "seed_gain": unrelated(model, device, precision) - loss,
        }
        if before is not None:
            change = (nats - before).sum() / counts.sum()
            residuals = nats - before - change * counts
            by_target = np.array([residuals[targets == target].sum() for target in np.unique(targets)])
            stage |= {
                "change": change,
                "error_of_change": error_of(residuals, counts.sum()),
                "error_of_change_by_target": error_of(by_target, counts.sum()),
            }
        before = nats
        stages.append({name: round(float(value), 4) for name, value in stage.items()})
        print(json.dumps(stages[-1]), flush=True)
    print(
        json.dumps(
            {"benchmark": "pair_loss_noise", "pairs": len(chosen), "targets": len(set(targets)), "stages": stages}
        )
    )


if __name__ == "__main__":
    main()
