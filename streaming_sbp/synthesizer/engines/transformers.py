"""Sampling with a Hugging Face causal LM: packed prefill, then a decode loop over a block cache.

1. The first prompts, `num_rows` of them, pass through the model packed, without padding and without their last token;
   their keys and values are stored.
2. Each step passes one token of every row (at first the last token of its prompt), samples the next, and notes which
   rows ended.
3. When enough rows have ended, the next prompts take their places. When none are left, ended rows are dropped from
   batch and cache. A step costs about in proportion to its rows, plus a constant that few rows cannot carry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.synthesizer.engines.base import Sampled, Sampling, check_lengths
from streaming_sbp.synthesizer.engines.cache import ATTENTION, BlockCache
from streaming_sbp.synthesizer.engines.sampling import sample

PREFILL_TOKENS = 2048  # packed into one pass; more leaves the processor's cache, and keeps the caller waiting
REFILL_SHARE = 1 / 8  # of the rows have ended: new prompts join (a pass over few prompts is less efficient)
DROP_SHARE = 1 / 5  # of the rows have ended: they are dropped (it copies the cache, so not for every single row)
STEPS_BETWEEN_YIELDS = 8  # well below the stream's heartbeat


class TransformersEngine:
    """See `base.Engine`. At most ``num_rows`` documents are sampled at once.

    ``precision`` is that of the weights and the cache: bf16 halves what a decode step reads.
    """

    def __init__(self, device: torch.device, precision: str, num_rows: int, tokenizer: Tokenizer):
        self._device, self._num_rows = device, num_rows
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._eos_id, self._vocab_size = tokenizer.eos_id, tokenizer.vocab_size
        self._special_ids = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.sep_id]
        self._model: PreTrainedModel | None = None
        self._forbidden = torch.empty(0, dtype=torch.long)

    def load(self, folder: Path) -> None:
        """Read the folder into a module of its own, then copy into the one that serves: a failure changes nothing."""
        found = AutoConfig.from_pretrained(folder)
        if found.vocab_size < self._vocab_size:
            raise ValueError(
                f"{folder}: a model of {found.vocab_size} tokens, expected at least the tokenizer's {self._vocab_size}"
            )
        fresh = AutoModelForCausalLM.from_pretrained(
            folder, dtype=self._dtype, attn_implementation=ATTENTION, use_safetensors=True
        )
        if self._model is not None and _shape_of(self._model.config) == _shape_of(fresh.config):
            self._model.load_state_dict(fresh.state_dict())
        else:
            fresh.to(self._device)  # type: ignore[arg-type]
            self._model = fresh.eval().requires_grad_(False)
        beyond_tokenizer = range(self._vocab_size, found.vocab_size)
        self._forbidden = torch.tensor([*self._special_ids, *beyond_tokenizer], device=self._device)

    @torch.inference_mode()
    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> Iterator[list[tuple[int, Sampled]]]:
        if self._model is None:
            raise ValueError("stream: no model; call load(folder) first")
        check_lengths(prompts, sampling, self._model.config.max_position_embeddings)
        batch = _Batch(prompts, self._num_rows, sampling.max_new_tokens, self._eos_id, self._device)
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        cache = BlockCache(batch.num_rows, longest, self._dtype, self._device)
        generator = torch.Generator(self._device).manual_seed(seed)
        step = 0
        while batch.num_open or batch.num_waiting:
            if self._refill(batch, cache):
                yield batch.collect()
                continue
            cache.begin_step(batch.positions)
            logits = self._model(
                input_ids=batch.last[:, None],
                position_ids=batch.positions[:, None],
                use_cache=False,
                block_cache=cache,
            ).logits
            batch.add(*sample(logits[:, -1].float(), sampling, self._forbidden, generator))
            step += 1
            if step % STEPS_BETWEEN_YIELDS == 0:
                yield batch.collect()
        yield batch.collect()

    def _refill(self, batch: _Batch, cache: BlockCache) -> bool:
        """Let waiting prompts into the rows that ended, or else drop those rows. Returns whether prompts came in."""
        ended = batch.num_rows - batch.num_open
        if batch.num_waiting and ended >= REFILL_SHARE * batch.num_rows:
            self._prefill(batch.admit(PREFILL_TOKENS), cache)
            return True
        if not batch.num_waiting and ended >= DROP_SHARE * batch.num_rows:
            cache.keep(batch.drop_ended())
        return False

    def _prefill(self, admitted: list[tuple[int, Sequence[int]]], cache: BlockCache) -> None:
        """Store the keys and values of (row, prompt without its last token); a prompt of one token has none."""
        assert self._model is not None
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[tuple[int, int, int]] = []
        for row, prompt in admitted:
            if prompt:
                spans.append((row, len(tokens), len(tokens) + len(prompt)))
                tokens += prompt
                positions += range(len(prompt))
        if not spans:
            return
        cache.begin_prefill(spans)
        self._model.base_model(
            input_ids=torch.tensor([tokens], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            block_cache=cache,
        )


class _Batch:
    """Which prompt each row continues, where it is, and what has been sampled.

    ``last`` and ``positions`` ``[rows]`` are the next inputs of the model; rows that ended idle at position 0.
    Prompts are admitted by length, so that rows of similar length share the batch.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        num_rows: int,
        max_new_tokens: int,
        eos_id: int,
        device: torch.device,
    ):
        self._all, self._eos_id, self._max_new_tokens = prompts, eos_id, max_new_tokens
        self._waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
        self.num_rows = min(num_rows, len(prompts))
        self._prompts = torch.full((self.num_rows,), -1)  # of each row; -1 when it ended
        self.last = torch.zeros(self.num_rows, dtype=torch.long, device=device)
        self.positions = torch.zeros(self.num_rows, dtype=torch.long, device=device)
        shape = (len(prompts), max_new_tokens)
        self._tokens = torch.zeros(shape, dtype=torch.long)
        self._log_probs = torch.zeros(shape, dtype=torch.float32)
        self._lengths = torch.zeros(len(prompts), dtype=torch.long)
        self._finished = torch.zeros(len(prompts), dtype=torch.bool)
        self._ended: list[int] = []  # documents that nobody has collected yet

    @property
    def num_open(self) -> int:
        return int((self._prompts >= 0).sum())

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def admit(self, max_tokens: int) -> list[tuple[int, Sequence[int]]]:
        """Give rows that ended to waiting prompts, of ``max_tokens`` in all or a single longer one.

        Returns (row, prompt without its last token), to be prefilled.
        """
        admitted: list[tuple[int, Sequence[int]]] = []
        for row in (self._prompts < 0).nonzero()[:, 0].tolist():
            if not self._waiting or (admitted and len(self._all[self._waiting[0]]) > max_tokens):
                break
            i = self._waiting.popleft()
            *body, self.last[row] = self._all[i]
            self._prompts[row], self.positions[row] = i, len(body)
            admitted.append((row, body))
            max_tokens -= len(body)
        return admitted

    def add(self, tokens: torch.Tensor, log_probs: torch.Tensor) -> None:
        """Note one token of every row ``[rows]``, and move on."""
        self.last = tokens
        tokens, log_probs = tokens.cpu(), log_probs.cpu()
        rows = (self._prompts >= 0).nonzero()[:, 0]
        documents = self._prompts[rows]
        at = self._lengths[documents]
        self._tokens[documents, at] = tokens[rows]
        self._log_probs[documents, at] = log_probs[rows]
        finished = tokens[rows] == self._eos_id
        self._finished[documents] = finished
        self._lengths[documents] += (~finished).long()
        ended = finished | (self._lengths[documents] == self._max_new_tokens)
        self._ended += documents[ended].tolist()
        self._prompts[rows[ended]] = -1
        self.positions = self.positions + 1
        self.positions[(self._prompts < 0).to(self.positions.device)] = 0

    def drop_ended(self) -> torch.Tensor:
        """Forget the rows that ended; returns the indices of those kept."""
        kept = (self._prompts >= 0).nonzero()[:, 0]
        self._prompts, self.num_rows = self._prompts[kept], len(kept)
        kept = kept.to(self.last.device)
        self.last, self.positions = self.last[kept], self.positions[kept]
        return kept

    def collect(self) -> list[tuple[int, Sampled]]:
        """The documents that ended since the last call."""
        ended, self._ended = self._ended, []
        return [(i, self._sampled(i)) for i in ended]

    def _sampled(self, i: int) -> Sampled:
        length = int(self._lengths[i])
        return Sampled(
            self._tokens[i, :length].numpy().copy(),
            self._log_probs[i, :length].numpy().copy(),
            bool(self._finished[i]),
        )


def _shape_of(found: PretrainedConfig) -> dict[str, object]:
    """The configuration without what differs between two models of the same shape."""
    ignored = ("_name_or_path", "transformers_version", "dtype")
    return {key: value for key, value in found.to_dict().items() if key not in ignored}
