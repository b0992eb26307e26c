"""The embedder "self": hidden states of the trainer's own checkpoint, pooled over a document's tokens.

A mean over all tokens says mostly what all documents have in common. So tokens are weighted by how rare they are
(a / (a + share of all tokens), Arora et al. 2017), and the pooled vectors are centred and whitened: each direction
counts as much as another. docs/experiments.md has what each step brings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from streaming_sbp.config import ConfigError
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.pairing.embed import unit_rows

BATCH_DOCUMENTS = 32
LAYERS = (0, -1)  # hidden states that are pooled and set side by side: the embedding of the tokens, and the last layer
RARITY = 1e-3  # a of Arora et al.
SMALLEST_VARIANCE = 1e-3  # of a direction, as a share of the largest: smaller ones are noise, and left out


class SelfEmbedder:
    """Raises ConfigError when the folder holds no model with a tokenizer. ``layers`` and the switches are for
    experiments. Memory: the pooled vectors of all documents.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer | None = None, layers: tuple[int, ...] = LAYERS):
        try:
            self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: cannot be loaded as the model to embed with: {error}") from None
        self._model.eval()
        self._tokenizer = tokenizer or Tokenizer.load(folder)
        self._layers = layers
        self._max_tokens: int = self._model.config.max_position_embeddings - 1

    def embed(self, batches: Iterable[list[str]]) -> Iterator[np.ndarray]:
        documents = [ids for batch in batches for ids in self._tokenizer.encode_batch(batch)]
        if not documents:
            return
        weights = rarity(documents, self._tokenizer.vocab_size)
        pooled = [self._pool(part, weights) for part in _parts(documents, BATCH_DOCUMENTS)]
        yield whiten(np.concatenate(pooled), np.array([bool(ids) for ids in documents]))

    @torch.inference_mode()
    def _pool(self, documents: list[list[int]], weights: np.ndarray) -> np.ndarray:
        """float32 [B, layers * hidden]: weighted means over the tokens, up to the model's limit."""
        begin = self._tokenizer.bos_id
        cut = [[begin, *ids[: self._max_tokens]] for ids in documents]
        longest = max(map(len, cut))
        tokens = torch.tensor([ids + [begin] * (longest - len(ids)) for ids in cut])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in cut])
        states = self._model.model(tokens, attention_mask=mask, output_hidden_states=True).hidden_states
        weight = torch.from_numpy(weights)[tokens] * mask
        weight[:, 0] = 0.0  # <bos>
        weight /= weight.sum(1, keepdim=True).clamp_min(1e-12)
        chosen = torch.cat([_scaled(states[layer]) for layer in self._layers], dim=-1)
        return torch.einsum("bt,btd->bd", weight, chosen).numpy()


def rarity(documents: list[list[int]], vocab_size: int) -> np.ndarray:
    """The weight of each token id, float32 [vocabulary]."""
    counts = np.bincount(np.concatenate([np.array(ids, dtype=np.int64) for ids in documents]), minlength=vocab_size)
    return (RARITY / (RARITY + counts / max(1, counts.sum()))).astype(np.float32)


def whiten(vectors: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Centred, rotated to principal directions, each scaled to variance 1, rows of unit norm; zero where not known.

    ``vectors``: [n, d]; ``known``: bool [n], which rows count. Fewer directions come back when some hold only noise.
    """
    if known.sum() < 2:
        return unit_rows(vectors * known[:, None])
    inside = vectors[known].astype(np.float64)
    mean = inside.mean(0)
    variance, directions = np.linalg.eigh(np.cov(inside.T).reshape(inside.shape[1], -1))
    kept = variance > SMALLEST_VARIANCE * variance.max()
    scaled = (vectors - mean) @ (directions[:, kept] / np.sqrt(variance[kept]))
    return unit_rows(scaled * known[:, None])


def _scaled(states: torch.Tensor) -> torch.Tensor:
    """To a root mean square of 1, so that layers of different size count alike."""
    return states / states.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-6)


def _parts(documents: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    return (documents[start : start + size] for start in range(0, len(documents), size))
