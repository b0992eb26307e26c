"""Sabotaged synthesizers, real small ones, and the measure that must send each of them into quarantine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from streaming_sbp import config
from streaming_sbp.synthesizer.engines.base import Sampling
from streaming_sbp.synthesizer.engines.transformers import TransformersEngine
from streaming_sbp.synthesizer.gate import decide
from streaming_sbp.synthesizer.prompt import Mismatched, Prompter
from streaming_sbp.synthesizer.quality import measure_trial, sample_trial
from streaming_sbp.synthesizer.reference import Reference
from streaming_sbp.synthesizer.tuning import PairLoss, tune
from tests.unit.synthesizer_models import (
    NUM_TOPICS,
    make_model,
    make_tokenizer,
    topic_documents,
    topic_pairs,
    tuning_config,
)

CPU = torch.device("cpu")
GENERATOR = config.Generator(batch_size=16, min_new_tokens=4, max_new_tokens=40, precision="fp32")
SEED_TOKENS, NUM_TRIAL, NUM_CORPUS = 16, 48, 400
Target = Callable[[np.ndarray], np.ndarray]


class Corpus:
    """Documents about topics, each topic with words of its own."""

    def __init__(self, num_documents: int, num_tokens: int, seed: int):
        rng = np.random.default_rng(seed)
        self.documents = [topic_documents(i % NUM_TOPICS, rng, num_tokens) for i in range(num_documents)]
        self.num_tokens = np.full(num_documents, num_tokens)
        self.ids = [f"{seed}:{i}" for i in range(num_documents)]

    def __len__(self) -> int:
        return len(self.documents)

    def tokens(self, i: int) -> np.ndarray:
        return self.documents[i]


class Bench:
    """Judges a model as the tuner does."""

    def __init__(self, folder: Path):
        self.tokenizer = make_tokenizer()
        self.prompter = Prompter(self.tokenizer, tuning_config().synthesizer)
        pairs, row_tokens = topic_pairs(self.prompter, 64, 100), self.prompter.longest_pair_tokens
        self.judge = PairLoss(pairs, row_tokens, 1024, 0)
        self.unrelated = PairLoss(Mismatched(pairs), row_tokens, 1024, 0)
        self.engine = TransformersEngine(CPU, "fp32", 16, self.tokenizer)
        self.folder = folder
        self.untuned_loss = self.judge(self.new_model(), CPU, "fp32")
        self.corpus = Corpus(NUM_CORPUS, SEED_TOKENS, 0)
        self.real = Corpus(NUM_TRIAL, 14, 1).documents
        related = list(zip(self.corpus.documents, self.real, strict=False))  # of the same topic
        self.reference = Reference.build(self.corpus, self.real, related, self.tokenizer.vocab_size, 2**20, 0.5)

    def new_model(self) -> PreTrainedModel:
        return make_model(self.tokenizer.vocab_size, hidden_size=64)

    def tuned(self, target: Target | None = None, tokens: int = 100_000) -> PreTrainedModel:
        """Tuned on pairs of a topic, or on pairs of a seed and what ``target`` makes of it."""
        if target is None:
            pairs, judges = topic_pairs(self.prompter, 400, 5), topic_pairs(self.prompter, 32, 6)
        else:
            made = [self.prompter.pair(seed, target(seed)) for seed in Corpus(432, SEED_TOKENS, 5).documents]
            pairs, judges = made[:400], made[400:]
        model = self.new_model()
        judge = PairLoss(judges, self.prompter.longest_pair_tokens, 1024, 0)
        for _ in tune(model, pairs, judge, tuning_config(tuning_tokens=tokens, patience=10), 0, CPU):
            pass
        return model

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        model.save_pretrained(self.folder)
        self.engine.load(self.folder)
        seeds = self.corpus.documents[:NUM_TRIAL]
        prompts = [self.prompter.prompt(seed) for seed in seeds]
        trial = sample_trial(self.engine, seeds, prompts, Sampling.of(GENERATOR), 1)
        assert trial is not None
        losses = {
            "pair_loss": self.judge(model, CPU, "fp32"),
            "untuned_pair_loss": self.untuned_loss,
            "unrelated_pair_loss": self.unrelated(model, CPU, "fp32"),
        }
        return losses | measure_trial(trial, self.real, GENERATOR, self.reference)

    # --- the sabotaged ones ---

    def random(self) -> PreTrainedModel:
        return make_model(self.tokenizer.vocab_size, seed=9, hidden_size=64)

    def copying(self) -> PreTrainedModel:
        return self.tuned(lambda seed: seed, tokens=150_000)

    def repeating(self) -> PreTrainedModel:
        return self.tuned(lambda seed: np.tile(seed[:2], 9))

    def reciting(self) -> PreTrainedModel:
        """Says documents of the corpus by heart, whatever the seed."""
        rng = np.random.default_rng(3)
        return self.tuned(lambda seed: self.corpus.documents[int(rng.integers(10))], tokens=150_000)


SABOTAGE: dict[str, tuple[Callable[[Bench], PreTrainedModel], str]] = {  # name -> (model, measure that is about it)
    "random weights": (Bench.random, "pair_loss"),
    "copies its seed": (Bench.copying, "copied_share"),
    "repeats itself": (Bench.repeating, "repetitive_share"),
    "recites the corpus": (Bench.reciting, "corpus_13gram_share"),
}


def faults(measures: dict[str, float], serving_pair_loss: float | None = None, mode: str = "tuned") -> list[str]:
    """The measures for which the gate with its default bounds refuses a candidate; none when it is published."""
    serving = None if serving_pair_loss is None else {"pair_loss": serving_pair_loss}
    return decide(measures, serving, config.Gate(), mode).measures


def sabotage_caught(folder: Path) -> str:
    """As "4/4": sabotaged candidates that are refused by the measure that is about their fault.

    Raises RuntimeError when the gate refuses the honest one, for then it proves nothing.
    """
    bench = Bench(folder)
    honest = bench.measure(bench.tuned())
    if faults(honest):
        raise RuntimeError(f"the honest candidate is refused for {faults(honest)}: {honest}")
    caught = [measure in faults(bench.measure(make(bench)), honest["pair_loss"]) for make, measure in SABOTAGE.values()]
    return f"{sum(caught)}/{len(caught)}"
