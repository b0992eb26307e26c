"""Questions on known facts: scores equal those of plain sequences, one at a time, and the measures follow from them."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from streaming_sbp import config
from streaming_sbp.data.concepts.world import World
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.ingest import ingest
from streaming_sbp.training.questions import Question, QuestionSet


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM._from_config(settings, attn_implementation="sdpa")


QUESTIONS = [
    Question((1, 5, 6, 7), ((10,), (11, 12), (13, 14, 15)), 1),
    Question((1, 9), ((20, 21), (22,), (23,), (24, 20)), 2),
    Question((1, 30, 31, 32, 33, 34, 35), ((40, 41, 42, 43), (44,)), 0),
]


@torch.no_grad()
def plain_scores(model, question):
    scores = []
    for candidate in question.candidates:
        ids = torch.tensor([[*question.prompt, *candidate]])
        log_probs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)[0]
        start = len(question.prompt)
        scores.append(sum(float(log_probs[start - 1 + k, token]) for k, token in enumerate(candidate)))
    return np.array(scores)


def test_scores_are_those_of_separate_sequences(model, device):
    questions = QuestionSet(QUESTIONS, pad_id=0)
    found = questions._scores(QUESTIONS, model.to(device), device, "fp32")
    model.cpu()
    for question, scores in zip(QUESTIONS, found, strict=True):
        np.testing.assert_allclose(scores, plain_scores(model, question), atol=1e-4)


def test_measures(model):
    expected = [plain_scores(model, question) for question in QUESTIONS]
    ranks = [
        1 + int((scores > scores[question.right]).sum()) for scores, question in zip(expected, QUESTIONS, strict=True)
    ]
    answers = QuestionSet(QUESTIONS, pad_id=0).ask(model, torch.device("cpu"), "fp32")
    assert answers.rank == pytest.approx(np.mean(ranks))
    assert answers.accuracy == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    right = [scores[question.right] for scores, question in zip(expected, QUESTIONS, strict=True)]
    assert answers.loss == pytest.approx(-np.mean(right), abs=1e-4)


def test_questions_are_on_training_concepts_and_always_the_same(tmp_path):
    settings = config.Data(
        dataset=str(tmp_path / "d"), source="concepts", difficulty="tiny", vocab_size=600, heldout_share=0.05
    )
    ingest(settings)
    dataset = Dataset.open(settings.dataset)
    tokenizer = dataset.tokenizer()
    first = QuestionSet.of_dataset(dataset, tokenizer, 40)
    again = QuestionSet.of_dataset(dataset, tokenizer, 40)
    assert len(first) == 40
    assert first._batches == again._batches
    known, heldout = (
        {concept.name for concept in part} for part in World.of_dataset(dataset).divide(settings.heldout_groups_share)
    )
    for batch in first._batches:
        for question in batch:
            prompt = tokenizer.decode(question.prompt[1:])
            assert any(name in prompt for name in known)
            assert not any(name in prompt for name in heldout)
            assert len(question.candidates) == 12
            assert 0 <= question.right < 12
    assert QuestionSet.of_dataset(dataset, tokenizer, 0) is None
