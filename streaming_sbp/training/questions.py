"""Questions on facts of the training documents, where the truth is known: does the model know what it has read?

A question is the begin of a sentence and a list of answers, one of them right (`data/concepts`). All answers are
scored in one row after the shared prompt, each masked from the others, which costs about as much as one document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from transformers import PreTrainedModel

from streaming_sbp.data.concepts.world import Cloze, World
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.telemetry.records import Record
from streaming_sbp.training.model import autocast

ROWS_AT_ONCE = 32
CHOICE_SEED = 20250911  # which questions are asked: the same in every run on the same world


@dataclass(frozen=True)
class Answers:
    """Means over questions. ``loss``: nats of the right answer, all its tokens, among all texts of that length."""

    accuracy: float  # the right answer is the likeliest of those listed
    rank: float  # of the right answer, 1 for the likeliest
    loss: float

    def record(self) -> dict[str, float]:
        """Its part of an `eval` record; see `recorded`."""
        return {f"question_{name}": value for name, value in asdict(self).items()}

    @classmethod
    def recorded(cls, record: Record) -> Answers | None:
        """What an `eval` record says; None where nothing was asked."""
        if record.get("question_accuracy") is None:
            return None
        return cls(**{field.name: record[f"question_{field.name}"] for field in fields(cls)})


@dataclass(frozen=True)
class Question:
    """``prompt`` with <bos>, ``candidates`` token ids each, ``right`` an index into them."""

    prompt: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    right: int

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.candidates))


class QuestionSet:
    """Always the same questions, short ones together."""

    def __init__(self, questions: Sequence[Question], pad_id: int):
        ordered = sorted(questions, key=lambda question: question.num_tokens)
        self._batches = [ordered[i : i + ROWS_AT_ONCE] for i in range(0, len(ordered), ROWS_AT_ONCE)]
        self._pad_id = pad_id

    @classmethod
    def of_dataset(cls, dataset: Dataset, tokenizer: Tokenizer, num_questions: int) -> QuestionSet | None:
        """Drawn from all questions on the concepts of training documents; None for a source without a known truth."""
        world = World.if_known(dataset)
        if world is None or not num_questions:
            return None
        known, _ = world.divide(dataset.manifest.settings["heldout_groups_share"])
        every = [cloze for concept in known for cloze in world.questions(concept)]
        chosen = np.random.default_rng(CHOICE_SEED).permutation(len(every))[:num_questions]
        return cls([_tokenised(every[i], tokenizer) for i in chosen], tokenizer.pad_id)

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    def ask(self, model: PreTrainedModel, device: torch.device, precision: str) -> Answers:
        was_training = model.training
        model.eval()
        ranks: list[int] = []
        losses: list[float] = []
        for batch in self._batches:
            for question, scores in zip(batch, self._scores(batch, model, device, precision), strict=True):
                right = scores[question.right]
                ranks.append(1 + int((scores > right).sum()))
                losses.append(-float(right))
        model.train(was_training)
        return Answers(float(np.mean([rank == 1 for rank in ranks])), float(np.mean(ranks)), float(np.mean(losses)))

    @torch.no_grad()
    def _scores(
        self, batch: list[Question], model: PreTrainedModel, device: torch.device, precision: str
    ) -> list[np.ndarray]:
        """Log-probability of each candidate, by question."""
        length = max(question.num_tokens for question in batch)
        ids = torch.full((len(batch), length), self._pad_id)
        positions = torch.zeros((len(batch), length), dtype=torch.long)
        visible = torch.eye(length, dtype=torch.bool).repeat(len(batch), 1, 1)
        before = torch.zeros((len(batch), length), dtype=torch.long)  # the token that each one is predicted from
        for row, question in enumerate(batch):
            _lay_out(question, ids[row], positions[row], visible[row], before[row])
        with autocast(device, precision):
            logits = model(
                input_ids=ids.to(device),
                position_ids=positions.to(device),
                attention_mask=visible[:, None].to(device),
                use_cache=False,
            ).logits
        predicted = logits.float().log_softmax(-1).cpu()
        rows = torch.arange(len(batch))[:, None]
        log_probs = predicted[rows, before, ids].double().numpy()
        return [_by_candidate(question, log_probs[row]) for row, question in enumerate(batch)]


def _lay_out(
    question: Question, ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor, before: torch.Tensor
) -> None:
    """Fill one row: the prompt, then every candidate, which sees the prompt and itself."""
    start = len(question.prompt)
    ids[:start] = torch.tensor(question.prompt)
    positions[:start] = torch.arange(start)
    visible[:start, :start] = torch.ones((start, start), dtype=torch.bool).tril()
    at = start
    for candidate in question.candidates:
        end = at + len(candidate)
        ids[at:end] = torch.tensor(candidate)
        positions[at:end] = torch.arange(start, start + len(candidate))
        visible[at:end, :start] = True
        visible[at:end, at:end] = torch.ones((end - at, end - at), dtype=torch.bool).tril()
        before[at:end] = torch.arange(at - 1, end - 1)
        before[at] = start - 1
        at = end


def _by_candidate(question: Question, log_probs: np.ndarray) -> np.ndarray:
    starts = len(question.prompt) + np.cumsum([0, *map(len, question.candidates[:-1])])
    return np.add.reduceat(log_probs[: question.num_tokens], starts)


def _tokenised(cloze: Cloze, tokenizer: Tokenizer) -> Question:
    return Question(
        (tokenizer.bos_id, *tokenizer.encode(cloze.prompt)),
        tuple(tuple(tokenizer.encode(answer)) for answer in cloze.candidates),
        cloze.candidates.index(cloze.answer),
    )
