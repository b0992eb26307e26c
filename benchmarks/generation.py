"""Our sampling engine beside `generate()`, continuous batching in transformers, and vLLM on the CPU: one JSON line.

    python benchmarks/generation.py --dataset data/pydocs [--vllm-python /path/to/a/venv/bin/python]
    python benchmarks/generation.py --dataset data/pydocs --device cuda --batch 256 --prompts 1024

All continue the same prompts, `<bos> seed document <sep>` of an ingested data set, with the same model: a Llama of 6
million parameters, trained for a minute on that data set, so that documents end as they do in use: at very different
lengths. Top-p, temperature, limit and forbidden tokens are the same. `generate()` gets batches of `--batch`, padded on
the left, in the given order. vLLM lives in an environment of its own (docs/dependencies.md says how to make it).
Each engine is a process that stays; they take turns, one thread each, and a ratio is the median over the rounds.
`tokens_per_cpu_s` is the one to trust on a machine that does other things, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TOP_P, TEMPERATURE, MAX_NEW_TOKENS, MAX_SEED_TOKENS = 0.9, 1.0, 192, 192
TRAINING_STEPS, TRAINING_SEQUENCES, TRAINING_TOKENS = 50, 8, 256
WARM_UP_PROMPTS = 16
Prompts = Sequence[Sequence[int]]


class Settings(NamedTuple):
    precision: str  # of weights and cache: bf16 or fp32
    device: str
    batch: int  # documents at once


Run = Callable[[Prompts, int], list[int]]  # prompts and seed -> number of new tokens of each, without <eos>


# --- the model and the prompts ---


def prepare(dataset_path: str, num_prompts: int, folder: Path) -> None:
    """Write the trained model, and ``task.json``: prompts, and the ids of the special tokens."""
    from streaming_sbp import config
    from streaming_sbp.data.dataset import Dataset
    from streaming_sbp.synthesizer.prompt import Prompter
    from streaming_sbp.training.model import build_model

    dataset = Dataset.open(dataset_path)
    documents, tokenizer = dataset.split("train"), dataset.tokenizer()
    model = build_model(config.Model(num_layers=5), tokenizer, seed=0)
    order = np.random.default_rng(0).permutation(len(documents))
    train(model, [documents.tokens(int(i)) for i in order[num_prompts:]], tokenizer)
    model.to(dtype=_torch().bfloat16).save_pretrained(folder / "model")
    prompter = Prompter(tokenizer, config.Synthesizer(max_seed_tokens=MAX_SEED_TOKENS))
    task = {
        "prompts": [prompter.prompt(documents.tokens(int(i))) for i in order[:num_prompts]],
        "pad_id": tokenizer.pad_id,
        "bos_id": tokenizer.bos_id,
        "sep_id": tokenizer.sep_id,
        "eos_id": tokenizer.eos_id,
        "vocab_size": tokenizer.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    (folder / "task.json").write_text(json.dumps(task))


def train(model: Any, documents: list[np.ndarray], tokenizer: Any) -> None:
    """Long enough to learn how often a document ends."""
    torch = _torch()
    joined = np.concatenate([[tokenizer.bos_id, *tokens.tolist(), tokenizer.eos_id] for tokens in documents])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    starts = np.random.default_rng(1).integers(0, len(joined) - TRAINING_TOKENS, (TRAINING_STEPS, TRAINING_SEQUENCES))
    for step in starts:
        ids = torch.tensor(np.stack([joined[i : i + TRAINING_TOKENS] for i in step]))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _torch() -> Any:
    import torch

    torch.set_num_threads(1)
    return torch


# --- the engines ---


def ours(folder: Path, task: dict[str, Any], settings: Settings) -> Run:
    from types import SimpleNamespace

    from streaming_sbp.synthesizer.engines.base import Sampling, generate
    from streaming_sbp.synthesizer.engines.transformers import TransformersEngine

    engine = TransformersEngine(
        _torch().device(settings.device), settings.precision, settings.batch, SimpleNamespace(**task)
    )
    engine.load(folder / "model")
    sampling = Sampling(TEMPERATURE, TOP_P, 0, MAX_NEW_TOKENS)
    return lambda prompts, seed: [len(document.tokens) for document in generate(engine, prompts, sampling, seed)]


def hugging_face(folder: Path, task: dict[str, Any], settings: Settings) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    dtype = _torch().bfloat16 if settings.precision == "bf16" else _torch().float32
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype).to(settings.device).eval()
    sampling = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        max_new_tokens=MAX_NEW_TOKENS,
        suppress_tokens=[task["pad_id"], task["bos_id"], task["sep_id"]],
        pad_token_id=task["pad_id"],
        bos_token_id=task["bos_id"],
        eos_token_id=task["eos_id"],
    )
    return model, sampling


def generate_left_padded(folder: Path, task: dict[str, Any], settings: Settings) -> Run:
    torch = _torch()
    model, sampling = hugging_face(folder, task, settings)

    def run(prompts: Prompts, seed: int) -> list[int]:
        torch.manual_seed(seed)
        lengths: list[int] = []
        for first in range(0, len(prompts), settings.batch):
            batch = prompts[first : first + settings.batch]
            longest = max(map(len, batch))
            ids = torch.tensor([[task["pad_id"]] * (longest - len(p)) + list(p) for p in batch], device=settings.device)
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch], device=settings.device)
            found = model.generate(ids, attention_mask=mask, generation_config=sampling)
            lengths += [_length(row, task["eos_id"]) for row in found[:, longest:].tolist()]
        return lengths

    return run


def continuous_batching(folder: Path, task: dict[str, Any], settings: Settings) -> Run:
    from transformers import ContinuousBatchingConfig

    model, sampling = hugging_face(folder, task, settings)

    def run(prompts: Prompts, seed: int) -> list[int]:
        limits = ContinuousBatchingConfig(
            page_size=64,
            num_blocks=2 * settings.batch * (MAX_SEED_TOKENS + MAX_NEW_TOKENS) // 64,
            max_batch_tokens=2048,
            max_requests_per_batch=settings.batch,
            seed=seed,
        )
        found = model.generate_batch(
            [list(p) for p in prompts], generation_config=sampling, continuous_batching_config=limits, warmup=False
        )
        if len(found) < len(prompts):
            raise RuntimeError(f"continuous batching returned {len(found)} of {len(prompts)} documents")
        return [_length(output.generated_tokens, task["eos_id"]) for output in found.values()]

    return run


def vllm_cpu(folder: Path, task: dict[str, Any], settings: Settings) -> Run:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder / "model"),
        skip_tokenizer_init=True,
        dtype="bfloat16" if settings.precision == "bf16" else "float32",
        max_num_seqs=settings.batch,
        max_model_len=512,
        enable_prefix_caching=False,
    )
    _torch()

    def run(prompts: Prompts, seed: int) -> list[int]:
        sampling = SamplingParams(
            temperature=TEMPERATURE,
            top_p=TOP_P,
            max_tokens=MAX_NEW_TOKENS,
            stop_token_ids=[task["eos_id"]],
            logit_bias={task[name]: -100.0 for name in ("pad_id", "bos_id", "sep_id")},
            detokenize=False,
        )
        found = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], sampling, use_tqdm=False)
        return [_length(output.outputs[0].token_ids, task["eos_id"]) for output in found]

    return run


def _length(tokens: Sequence[int], eos_id: int) -> int:
    tokens = list(tokens)
    return tokens.index(eos_id) if eos_id in tokens else len(tokens)


ENGINES = {
    "ours": ours,
    "generate": generate_left_padded,
    "continuous_batching": continuous_batching,
    "vllm_cpu": vllm_cpu,
}


# --- turns ---


def serve(name: str, folder: Path, settings: Settings, answers: Any) -> None:
    """In an engine's process: for each seed on stdin, one line of JSON."""
    task = json.loads((folder / "task.json").read_text())
    run = ENGINES[name](folder, task, settings)
    run(task["prompts"][:WARM_UP_PROMPTS], 0)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        lengths = run(task["prompts"], int(line))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        quartiles = np.percentile(lengths, (25, 50, 75)).tolist()
        answer = {
            "tokens_per_s": sum(lengths) / wall,
            "tokens_per_cpu_s": sum(lengths) / cpu,
            "mean_length": float(np.mean(lengths)),
            "quartiles": quartiles,
            "unfinished": sum(length == MAX_NEW_TOKENS for length in lengths) / len(lengths),
        }
        print(json.dumps(answer), file=answers, flush=True)


class Engine:
    def __init__(self, python: str, name: str, folder: Path, settings: Settings):
        self.name, self.rounds = name, list[dict[str, Any]]()
        path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        options = [f"--{key}={value}" for key, value in settings._asdict().items()]
        self._process = subprocess.Popen(
            [python, __file__, "--serve", name, "--folder", str(folder), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
        )
        self._answer()

    def round(self, seed: int) -> None:
        assert self._process.stdin
        print(seed, file=self._process.stdin, flush=True)
        self.rounds.append(json.loads(self._answer()))

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: the process ended with {self._process.wait()}")
        return line


def measure(
    folder: Path, engines: dict[str, str], num_rounds: int, settings: Settings
) -> dict[str, list[dict[str, Any]]]:
    """The rounds of each engine that runs here; ``engines`` maps names to their Python."""
    running: list[Engine] = []
    for name, python in engines.items():
        try:
            running.append(Engine(python, name, folder, settings))
        except RuntimeError as error:
            print(error, file=sys.stderr)
    for seed in range(num_rounds):
        for engine in running:
            engine.round(seed)
            print(seed, engine.name, json.dumps(engine.rounds[-1]), file=sys.stderr, flush=True)
    for engine in running:
        engine.end()
    return {engine.name: engine.rounds for engine in running}


def ratios(rounds: dict[str, list[dict[str, Any]]], measure: str) -> dict[str, float]:
    """Ours to each other engine, median over the rounds."""
    own = rounds["ours"]
    return {
        name: round(float(np.median([a[measure] / b[measure] for a, b in zip(own, others, strict=True)])), 2)
        for name, others in rounds.items()
        if name != "ours"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="data/pydocs")
    parser.add_argument("--vllm-python")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="vllm_cpu has none but the CPU")
    parser.add_argument("--batch", type=int, default=64, help="documents at once")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--folder", type=Path, help="keep the trained model here, and use the one that is there")
    parser.add_argument("--serve", choices=list(ENGINES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = Settings(options.precision, options.device, options.batch)
    if options.serve:
        answers, sys.stdout = sys.stdout, sys.stderr  # some engines talk
        serve(options.serve, options.folder, settings, answers)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "task.json").exists():
            prepare(options.dataset, options.prompts, folder)
        python = dict.fromkeys(options.engines.split(","), sys.executable)
        if "vllm_cpu" in python:
            python["vllm_cpu"] = options.vllm_python or sys.executable
        rounds = measure(folder, python, options.rounds, settings)
        task = json.loads((folder / "task.json").read_text())
    wall, cpu = ratios(rounds, "tokens_per_s"), ratios(rounds, "tokens_per_cpu_s")
    result = {
        "benchmark": "generation",
        **settings._asdict(),
        "parameters": task["parameters"],
        "prompts": len(task["prompts"]),
        "prompt_tokens_quartiles": np.percentile([len(p) for p in task["prompts"]], (25, 50, 75)).tolist(),
        **{f"ratio_{name}": wall.get(name) for name in ENGINES if name != "ours"},
        **{f"cpu_ratio_{name}": cpu.get(name) for name in ENGINES if name != "ours"},
        "engines": {
            name: {key: np.round(np.median([r[key] for r in found], axis=0), 3).tolist() for key in found[0]}
            for name, found in rounds.items()
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
