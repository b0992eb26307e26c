"""The whole configuration of a run: one frozen tree, read from one TOML file.

Every field says its unit in its name or comment, and why one would change it. Unknown keys are errors that suggest
the nearest name. A run keeps its resolved copy in ``RUN/config.toml``; every process of the run reads that copy.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from streaming_sbp.telemetry.catalogue import MAX_DEPTH

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and what was expected."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, field: ValidationInfo) -> Any:
        """pydantic would take it for 1."""
        if isinstance(value, bool) and cls.model_fields[field.field_name or ""].annotation in (int, float):
            raise ValueError("expected a number")
        return value


class Run(Section):
    dir: str = "runs/default"  # where everything the run writes lives; one directory is one run
    seed: Annotated[int, Field(ge=0)] = 0  # initial weights, the order of real documents, the order of seed documents


class Data(Section):
    dataset: str = "data/default"  # folder of the ingested data set; made by `sbp ingest`, shared by runs
    # "concepts" is made up by this project, its truth is known; the others read what is there
    source: Literal["pydocs", "jsonl", "parquet", "text", "webdataset", "datasets", "concepts"] = "pydocs"  # of text
    inputs: tuple[str, ...] = ()  # files, folders or a data set's name; `pydocs` needs none
    text_column: str = "text"  # the column, JSON key or WebDataset extension that holds the text
    min_characters: Annotated[int, Field(ge=1)] = 1  # shorter documents are left out, counted as `too_short`
    max_characters: Annotated[int, Field(ge=0)] = 0  # longer documents are left out, counted as `too_long`; 0: no limit
    max_documents: Annotated[int, Field(ge=0)] = 0  # 0: all. Otherwise an even sample, by digest of the text
    # Of training documents only, so that a part and the whole are judged by the same held-out documents:
    max_train_documents: Annotated[int, Field(ge=0)] = 0  # 0: all. Otherwise an even sample, too
    heldout_share: Share = 0.02  # cut by digest before anything else sees the text
    # Sources that know what a document is about (`concepts`) hold out whole groups, too, in a split of their own:
    heldout_groups_share: Share = 0.1  # of groups; no one trains on them, and their pairs judge the synthesizer
    # The others find neighbourhoods of related documents, and hold out whole ones of them there:
    heldout_neighbourhoods_share: Share = 0.02  # of documents; 0: none, held-out pairs are in the trainer's text
    difficulty: Literal["tiny", "small", "easy", "medium", "hard"] = "easy"  # of `concepts`: people, facts, phrasings
    concept_seed: int = 0  # of `concepts`: other people, other documents
    views_per_concept: Positive = 4  # of `concepts`: documents about each person; many more make the oracle
    tokenizer: str = "train"  # "train": a byte-level BPE on the training split; else a Hugging Face path or name
    vocab_size: Positive = 8192  # of the tokenizer to train, special tokens included
    shard_bytes: Positive = 64 * 2**20  # a shard is closed when it reaches this size
    on_error: Literal["stop", "skip"] = "stop"  # bad input: stop at once, or skip and count


class Pairing(Section):
    # "tfidf" needs no download; "self": the first checkpoint's hidden states; else a sentence-transformers path or name
    embedder: Literal["tfidf", "self"] | str = "tfidf"  # what says how related two documents are
    relation: Literal["related", "random"] = "related"  # "random": the control, as many pairs with targets by lot
    index: Literal["auto", "exact", "ivf", "hnsw"] = "auto"  # "auto" by corpus size; exact grows with its square
    dimensions: Positive = 384  # of the tfidf embedding, after truncated SVD; fewer blur, and similarities rise
    max_features: Positive = 2**17  # terms kept by tfidf before the SVD
    threshold: Share = 0.5  # keep pairs whose inner product is above; depends on the embedder (the paper: about 0.75)
    # above 0: the threshold that gives so many, on average, if there are so many
    pairs_per_document: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0  # before the held-out cut
    max_targets_per_seed: Positive = 8  # neighbours kept per seed document
    # documents that share as much of their shingles are copies: one of them pairs
    near_duplicate_jaccard: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # 1: only those that share all
    shingle_tokens: Positive = 13  # length of a shingle
    heldout_share: Fraction = 0.05  # of neighbourhoods whose pairs only judge; not used where groups are held out

    @field_validator("embedder")
    @classmethod
    def _embedder_has_a_name(cls, name: str) -> str:
        known = {"tfidf", "self"}
        meant = re.sub(r"[\W_]", "", name).lower()
        if meant in known and name not in known:
            raise ValueError(f"unknown embedder; did you mean {meant!r}?")
        if not name.strip():
            raise ValueError("expected tfidf, self, or a sentence-transformers path or name")
        return name


class Model(Section):
    family: Literal["llama", "qwen3"] = "llama"  # architecture of the trained model
    hidden_size: Positive = 256  # width of the residual stream
    num_layers: Positive = 4  # depth
    num_heads: Positive = 4  # must divide hidden_size
    num_kv_heads: Positive = 4  # fewer than num_heads: grouped-query attention, a smaller cache
    intermediate_size: Positive = 704  # width of the MLP
    max_position_embeddings: Positive = 1024  # longest sequence trained or generated
    rope_theta: PositiveFloat = 10000.0  # base of the rotary embedding; raise for long contexts
    tie_word_embeddings: bool = True  # input and output embeddings share weights: fewer parameters for small models
    attention_dropout: Fraction = 0.0  # of attention weights, while training; for the rest see training.dropout
    config: str = ""  # a Hugging Face config folder or name instead of the fields above


class Training(Section):
    total_tokens: Positive = 10_000_000  # the run ends here; counted as tokens that pass through the model
    sequence_tokens: Positive = 512  # length of a packed sequence
    batch_sequences: Positive = 8  # sequences in a global batch: one optimizer step
    micro_batch_sequences: Annotated[int, Field(ge=0)] = 0  # 0: the whole batch at once; lower to save memory
    learning_rate: PositiveFloat = 3e-3  # peak; sweep it first
    min_learning_rate_ratio: Share = 0.1  # learning rate at the end, as a share of the peak
    warmup_tokens: Annotated[int, Field(ge=0)] = 200_000  # linear warm-up, against early divergence
    decay_share: Share = 0.2  # last part of the run, in which the rate falls linearly (warmup-stable-decay)
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1  # on matrices, not on norms
    dropout: Fraction = 0.0  # of embeddings, and of what attention and MLP add; where real text repeats often
    beta1: Share = 0.9  # AdamW, first moment
    beta2: Share = 0.95  # AdamW, second moment; lower for noisy, small batches
    gradient_clip: PositiveFloat = 1.0  # global L2 norm
    # "auto": bf16 where the hardware multiplies it, else fp32
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # autocast of the forward pass; weights stay fp32
    device: Literal["auto", "cpu", "cuda"] = "auto"  # "auto": CUDA when there is one
    cpu_threads: Positive = 1  # torch threads of the trainer; more only where cores are free
    on_non_finite: Literal["stop", "skip"] = "stop"  # NaN or infinite loss: stop with the batch named, or skip the step


class ShareStep(Section):
    tokens: Annotated[int, Field(ge=0)]  # from this many trained tokens after the first snapshot
    share: Share


class Mix(Section):
    schedule: Literal["constant", "ramp", "steps", "epochs"] = "constant"  # from the first snapshot on
    synthetic_share: Share = 0.3  # share of trained tokens; for "ramp" and "epochs", the share at the end
    initial_share: Share = 0.0  # for "ramp" and "epochs", the share at the begin
    ramp_tokens: Annotated[int, Field(ge=0)] = 0  # for "ramp", its length from the first snapshot
    ramp_epochs: PositiveFloat = 16.0  # for "epochs": real text read so often has the share at the end
    steps: tuple[ShareStep, ...] = ()  # for schedule = "steps", ascending
    # the last tokens of the run without synthetic text, with any schedule; at most one or two readings of the real text
    final_real_tokens: Annotated[int, Field(ge=0)] = 0  # best while the learning rate is low: training.decay_share
    starvation_policy: Literal["real_only", "wait"] = "real_only"  # what to do when synthetic documents are late
    catch_up_share: Share = 0.5  # largest share while paying back what a fallback owes
    forgive_tokens: Annotated[int, Field(ge=0)] = 100_000  # debt above this is written off
    # starvation_policy = "wait": at so many trained tokens the trainer waits for the first snapshot, too, so that what
    # is trained does not depend on how fast tuner and generators are here, or until the gate has refused the newest
    # checkpoint's; 0, or without a synthesizer: it never waits
    start_by_tokens: Annotated[int, Field(ge=0)] = 0  # a little above the first checkpoint that is tuned
    wait_timeout_s: PositiveFloat = 60.0  # starvation_policy = "wait" gives up after this long, and says so
    confidence: Literal["off", "mask", "relative", "weights", "grounded"] = "off"  # guessed tokens count less
    # "mask": a synthetic token that the synthesizer gave less than this is no target; "weights": it counts p / this;
    # "relative": it is none with less than this share of what the synthesizer usually gives that token (try 0.5);
    # "grounded": it is none with less than this, if such tokens usually are in the seed document, and it is not there
    min_confidence: Share = 0.1  # a probability, or for "relative" a share of one; for "grounded" try 0.9
    pair_share: Share = 0.0  # share of trained tokens in related real documents, d1 <sep> d2; see synthesizer.mode
    pair_loss: Literal["target", "both"] = "target"  # of such a pair, the second document is learnt, or both are

    @property
    def largest_synthetic_share(self) -> float:
        """At any time of the schedule."""
        if self.schedule == "steps":
            return max((step.share for step in self.steps), default=0.0)
        return max(self.initial_share, self.synthetic_share)


class Packing(Section):
    # Documents wait for others that fill a sequence with them: in all, as many tokens as this many sequences hold.
    num_open_bins: Positive = 32  # more: less padding, but documents wait for about as many sequences
    long_documents: Literal["split", "truncate"] = "split"  # documents longer than a sequence; others are never cut
    group_by_seed: bool = False  # a seed document beside its synthetic relatives, seeing each other; targets_per_seed


class Checkpoint(Section):
    every_tokens: Positive = 500_000  # the tuner works on each; also the most that a crash can cost
    keep_last: Positive = 3  # older ones are deleted, but those that the next two keep
    keep_every: Annotated[int, Field(ge=0)] = 0  # also keep every n-th for good, to go back to; 0: none
    keep_best: bool = True  # also keep the one with the lowest held-out loss


class Evaluation(Section):
    every_tokens: Positive = 200_000  # held-out loss is measured this often
    heldout_sequences: Positive = 32  # packed sequences of held-out real documents, always the same
    # Of `concepts`, whose facts are known; each costs about as many tokens as a document has:
    questions: Annotated[int, Field(ge=0)] = 256  # on facts of the training documents, always the same; 0: none


class Synthesizer(Section):
    # "tuned": each checkpoint is tuned on pairs. "joint": the trainer learns pairs itself (mix.pair_share), no tuning.
    # "given": `snapshot` serves from the start. "unconditional": the checkpoint as it is, without seed documents, a
    # control. "off": real text only, and pairs where mix.pair_share says so; neither tuner nor generators run.
    mode: Literal["tuned", "joint", "given", "unconditional", "off"] = "tuned"  # where the synthesizer comes from
    snapshot: str = ""  # mode "given": a Hugging Face folder with this data set's tokenizer, as RUN/snapshots has them
    max_snapshots: Annotated[int, Field(ge=0)] = 0  # publish no more than so many; 0: no limit; 1 grows stale
    start: Literal["fresh", "continue"] = "fresh"  # tune the checkpoint, or also what the last tuning changed
    polish_tokens: Annotated[int, Field(ge=0)] = 0  # mode "joint": tune each checkpoint for so long all the same
    max_compute_share: Annotated[float, Field(ge=0.0)] = 0.0  # tuned tokens per trained token, at most; 0: no limit
    first_checkpoint_tokens: Annotated[int, Field(ge=0)] = 0  # tune no checkpoint that has trained fewer tokens
    max_seed_tokens: Positive = 192  # a longer seed document is cut to its beginning
    max_target_tokens: Positive = 192  # a longer target document is cut, and then has no <eos>
    tuning_tokens: Positive = 400_000  # budget of one tuning, tokens that pass through the model
    refresh_tokens: Annotated[int, Field(ge=0)] = 0  # the same after the first published one; 0: as tuning_tokens
    batch_tokens: Positive = 4096  # per optimizer step
    learning_rate: PositiveFloat = 1e-3  # peak of a tuning; it decays to zero over the budget
    warmup_steps: Annotated[int, Field(ge=0)] = 10  # optimizer steps
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1  # on matrices, not on norms
    dropout: Fraction = 0.0  # as training.dropout; few pairs are soon known by heart, and then it recites
    evaluate_every_steps: Positive = 20  # held-out pair loss is measured this often
    patience: Positive = 3  # evaluations without a better held-out pair loss before tuning stops
    heldout_pairs: Positive = 128  # pairs of held-out neighbourhoods, always the same
    idle_s: PositiveFloat = 1.0  # how often to look for a newer checkpoint

    @property
    def longest_pair_tokens(self) -> int:
        """Of ``<bos> seed <sep> target <eos>``."""
        return 2 + self.max_seed_tokens + self.max_target_tokens + 1


class Gate(Section):
    trial_documents: Positive = 64  # sampled from fixed seed documents for each candidate
    max_repetitive_share: Share = 0.25  # documents that repeat themselves
    max_copied_share: Share = 0.10  # documents copied from their seed
    max_duplicate_share: Share = 0.10  # documents that appear twice in the trial batch
    max_empty_share: Share = 0.25  # documents that end before `generator.min_new_tokens`
    max_unfinished_share: Share = 0.9  # documents without an end; a synthesizer that never ends sends nothing
    max_pair_loss_increase: Annotated[float, Field(ge=0.0)] = 0.02  # nats above the serving snapshot's
    # The larger of the two counts. This one has a scale: the nats that seed documents save the serving snapshot
    max_seed_gain_loss: Share = 0.0  # of them that a later snapshot may lose, on held-out pairs; 0: off
    min_seed_gain: Annotated[float, Field(ge=0.0)] = 0.05  # nats that the first joint snapshot's seed documents save
    max_corpus_13gram_excess: Share = 0.15  # share of 13-grams that the corpus has, above held-out real text's
    max_corpus_copied_excess: Share = 0.10  # documents copied from any corpus document, above held-out real text's
    min_relatedness_ratio: Share = 0.1  # lift of the relatedness to the seed, over that of real pairs; 0: off
    min_distinct_ratio: Share = 0.5  # distinct n-grams over real text's
    min_length_ratio: Share = 0.25  # mean length over real text's
    max_length_ratio: PositiveFloat = 4.0  # mean length over real text's
    min_true_fact_ratio: Share = 0.0  # stated facts that are true, over real text's; 0: off; only of `concepts`
    min_expressed_fact_ratio: Share = 0.0  # a person's facts expressed, over real text's; 0: off; only of `concepts`
    max_drift: PositiveFloat = 0.3  # of what arrives from what the gate measured, beyond chance: a share of it
    on_drift: Literal["report", "rollback"] = "report"  # on a drift, or a held-out loss that worsens after a swap
    index_bytes: Positive = 256 * 2**20  # of the corpus' 13-grams; a larger corpus is sampled, see `corpus_index.py`


class Snapshots(Section):
    url: str = ""  # fsspec address of the store; empty: RUN/snapshots
    keep_last: Positive = 5  # and any that a live generator still reads


class Generator(Section):
    count: Annotated[int, Field(ge=0)] = 1  # generators that `sbp run` starts
    engine: Literal["transformers", "vllm"] = "transformers"  # what samples; "vllm" needs the extra of that name
    batch_size: Positive = 32  # documents sampled at once
    targets_per_seed: Positive = 1  # documents from one seed document, one after the other; for packing.group_by_seed
    temperature: PositiveFloat = 1.0  # lower is safer and less varied
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9  # nucleus; 1: off
    top_k: Annotated[int, Field(ge=0)] = 0  # 0: no limit
    min_new_tokens: Positive = 16  # shorter documents are dropped as `too_short`
    max_new_tokens: Positive = 192  # documents without an end by then are dropped as `unfinished`
    max_repetition: Share = 0.3  # share of repeated 4-grams above which a document is dropped as `repetitive`
    max_copied_span: Share = 0.5  # longest span shared with the seed, as a share of the document: `copied`
    # Synthetic documents as seed documents, too, for text that no real document suggests; not shown to help
    second_round_share: Fraction = 0.0  # of the seed documents; 0: real ones only
    max_depth: Annotated[int, Field(ge=2, le=MAX_DEPTH)] = 2  # of a document: 1 + its seed's; a real one has 0
    device: Literal["auto", "cpu", "cuda"] = "auto"  # "auto": CUDA when there is one
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # of weights and cache while sampling


class Stream(Section):
    host: str = "127.0.0.1"  # where the trainer listens
    port: Annotated[int, Field(ge=0, le=65535)] = 0  # 0: a free port, announced in RUN/roles/trainer.json
    keys: str = ""  # folder of CURVE keys, made by `sbp keys`; needed when `host` is not loopback; "": no encryption
    capacity_documents: Positive = 512  # accepted or granted but not yet trained; bounds staleness and memory
    max_document_tokens: Positive = 4096  # larger documents are refused as `oversized`
    max_staleness_tokens: Annotated[int, Field(ge=0)] = 0  # trained since a document's snapshot; 0: no limit
    heartbeat_s: PositiveFloat = 1.0  # both ways
    dead_after_s: PositiveFloat = 10.0  # a silent peer is dead, and its credit goes to others
    resend_after_s: PositiveFloat = 5.0  # an unacknowledged document is sent again
    max_peers: Positive = 1024  # further generators are refused


class Journal(Section):
    group_documents: Positive = 64  # documents written, and acknowledged, together at most
    group_latency_s: PositiveFloat = 0.5  # a smaller group is written after this long
    max_bytes: Annotated[int, Field(ge=0)] = 0  # a larger journal takes no more: real text only; 0: no limit
    prune: bool = False  # delete shards that every kept checkpoint has trained; without them, no replay and no trace.
    # mix.confidence = "relative" or "grounded" keeps the 4,608 documents before them, too: max_bytes must have room


class Telemetry(Section):
    host: str = "127.0.0.1"  # where /metrics, /healthz and /readyz listen
    status_every_s: PositiveFloat = 1.0  # how often a role rewrites RUN/roles/ROLE.json
    tensorboard: bool = False  # write event files into RUN/tensorboard (extra `tensorboard`); also `sbp export`
    wandb: str = ""  # project of Weights & Biases to write to (extra `wandb`); "": none; also `sbp export`
    # RUN/records/ROLE.jsonl is thinned above this size: more keeps finer curves of long ago, and is slower to read
    record_bytes: Annotated[int, Field(ge=2**14)] = 8 * 2**20  # of each role; the trainer writes about 50 MB a day
    # of the trainer's hardware, one rank, FLOP/s: its data sheet's figure for the precision, for the utilisation
    peak_flops: Annotated[float, Field(ge=0.0)] = 0.0  # 0: not known, no utilisation is shown


class Supervisor(Section):
    backoff_s: PositiveFloat = 1.0  # wait before the first restart of a role that died; doubles each time
    max_backoff_s: PositiveFloat = 60.0  # longest wait before a restart
    max_restarts: Positive = 20  # of one role within `restart_window_s`; more end the run with the reason
    restart_window_s: PositiveFloat = 3600.0  # over which `max_restarts` counts
    stop_timeout_s: PositiveFloat = 60.0  # a role that has not stopped by then is killed
    background_nice: Annotated[int, Field(ge=0, le=19)] = 5  # niceness of pairer, tuner, generators on this machine


class Config(Section):
    run: Run = Run()
    data: Data = Data()
    pairing: Pairing = Pairing()
    model: Model = Model()
    training: Training = Training()
    mix: Mix = Mix()
    packing: Packing = Packing()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    synthesizer: Synthesizer = Synthesizer()
    gate: Gate = Gate()
    snapshots: Snapshots = Snapshots()
    generator: Generator = Generator()
    stream: Stream = Stream()
    journal: Journal = Journal()
    telemetry: Telemetry = Telemetry()
    supervisor: Supervisor = Supervisor()

    @property
    def needs_pairs(self) -> bool:
        return self.synthesizer.mode != "off" or self.mix.pair_share > 0

    @property
    def first_tuned_tokens(self) -> int:
        """Trained tokens behind the first checkpoint that is tuned."""
        every = self.checkpoint.every_tokens
        return -(-max(self.synthesizer.first_checkpoint_tokens, 1) // every) * every

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        longest_prompt = 2 + self.synthesizer.max_seed_tokens
        needed = longest_prompt + max(self.synthesizer.max_target_tokens + 1, self.generator.max_new_tokens)
        limit = self.model.max_position_embeddings
        if needed > limit:
            raise ValueError(
                f"model.max_position_embeddings = {limit}: expected at least {needed}, the length of "
                "<bos> seed <sep> target <eos>; raise it, or lower synthesizer.max_seed_tokens, "
                "synthesizer.max_target_tokens or generator.max_new_tokens"
            )
        if self.training.sequence_tokens > limit:
            raise ValueError(
                f"training.sequence_tokens = {self.training.sequence_tokens}: expected at most "
                f"model.max_position_embeddings = {limit}"
            )
        if self.generator.max_new_tokens > self.stream.max_document_tokens:
            raise ValueError(
                f"generator.max_new_tokens = {self.generator.max_new_tokens}: expected at most "
                f"stream.max_document_tokens = {self.stream.max_document_tokens}"
            )
        if self.generator.min_new_tokens > self.generator.max_new_tokens:
            raise ValueError(
                f"generator.min_new_tokens = {self.generator.min_new_tokens}: expected at most "
                f"generator.max_new_tokens = {self.generator.max_new_tokens}, or every document is too short"
            )
        if self.gate.min_length_ratio > self.gate.max_length_ratio:
            raise ValueError(
                f"gate.min_length_ratio = {self.gate.min_length_ratio:g}: expected at most gate.max_length_ratio = "
                f"{self.gate.max_length_ratio:g}, or nothing passes the gate"
            )
        if 0 < self.stream.max_staleness_tokens < self.checkpoint.every_tokens:
            raise ValueError(
                f"stream.max_staleness_tokens = {self.stream.max_staleness_tokens}: expected 0 (no limit) or at least "
                f"checkpoint.every_tokens = {self.checkpoint.every_tokens}, for snapshots are tuned from checkpoints"
            )
        mode, pair_share = self.synthesizer.mode, self.mix.pair_share
        if mode != "off" and (mode == "joint") != (pair_share > 0):
            raise ValueError(
                f'synthesizer.mode = "{mode}", mix.pair_share = {pair_share:g}: expected "joint" (or "off") exactly '
                "when the trainer learns pairs (mix.pair_share above 0)"
            )
        if pair_share + self.mix.largest_synthetic_share > 1.0 + 1e-9:
            raise ValueError(
                f"mix: shares of pairs and of synthetic text, got {pair_share:g} and up to "
                f"{self.mix.largest_synthetic_share:g}: expected a sum of at most 1; lower mix.synthetic_share or "
                "mix.pair_share"
            )
        if self.mix.start_by_tokens and self.mix.starvation_policy != "wait":
            raise ValueError(
                f"mix.start_by_tokens = {self.mix.start_by_tokens}: expected 0, for nothing waits with "
                f'mix.starvation_policy = "{self.mix.starvation_policy}"'
            )
        first = self.first_tuned_tokens
        if mode not in ("off", "given") and 0 < self.mix.start_by_tokens < first:
            raise ValueError(
                f"mix.start_by_tokens = {self.mix.start_by_tokens}: expected at least {first}, or the trainer waits "
                "for a snapshot before the first checkpoint that is tuned (checkpoint.every_tokens = "
                f"{self.checkpoint.every_tokens}, "
                f"synthesizer.first_checkpoint_tokens = {self.synthesizer.first_checkpoint_tokens})"
            )
        if (mode == "given") != bool(self.synthesizer.snapshot):
            raise ValueError(
                f'synthesizer.mode = "{mode}", synthesizer.snapshot = {self.synthesizer.snapshot!r}: expected a '
                'snapshot exactly when the mode is "given"'
            )
        model = self.model
        if not model.config and (model.hidden_size % model.num_heads or model.num_heads % model.num_kv_heads):
            raise ValueError(
                f"model: hidden_size = {model.hidden_size} must be a multiple of num_heads = {model.num_heads}, and "
                f"that of num_kv_heads = {model.num_kv_heads}"
            )
        longest_pair = self.synthesizer.longest_pair_tokens
        if self.mix.pair_share > 0 and longest_pair > self.training.sequence_tokens:
            raise ValueError(
                f"a pair has up to {longest_pair} tokens, training.sequence_tokens = {self.training.sequence_tokens}: "
                "with mix.pair_share expected a pair to fit into a sequence; lower synthesizer.max_seed_tokens and "
                "max_target_tokens, or raise training.sequence_tokens"
            )
        if self.mix.pair_share > 0 and self.pairing.embedder == "self":
            raise ValueError(
                'pairing.embedder = "self", mix.pair_share above 0: the embedder waits for a checkpoint, and the '
                "trainer for the pairs; choose another embedder"
            )
        if self.generator.second_round_share and mode == "unconditional":
            raise ValueError(
                f"generator.second_round_share = {self.generator.second_round_share:g}: expected 0 with "
                'synthesizer.mode = "unconditional", which has no seed documents'
            )
        if self.generator.engine == "vllm" and self.generator.temperature > 2.0:
            raise ValueError(f"generator.temperature = {self.generator.temperature}: vLLM takes at most 2")
        if self.mix.final_real_tokens and self.mix.final_real_tokens >= self.training.total_tokens:
            raise ValueError(
                f"mix.final_real_tokens = {self.mix.final_real_tokens:,}: expected less than training.total_tokens = "
                f"{self.training.total_tokens:,}, or there is no synthetic text at all"
            )
        starts = [step.tokens for step in self.mix.steps]
        if starts != sorted(set(starts)):
            raise ValueError(f"mix.steps: expected ascending, distinct `tokens`, got {starts}")
        if (self.mix.schedule == "steps") != bool(self.mix.steps):
            raise ValueError('mix.steps: expected exactly when mix.schedule = "steps"')
        return self


PRESETS = "presets"  # folder in the package


def preset_names(folder_name: str = PRESETS) -> list[str]:
    folder = resources.files("streaming_sbp") / folder_name
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_preset(name: str, folder_name: str = PRESETS) -> dict[str, Any]:
    """The raw tree of a preset shipped with the package. Raises ConfigError for an unknown name."""
    names = preset_names(folder_name)
    if name not in names:
        raise ConfigError(f"preset {name!r}: expected one of {', '.join(names)}{_did_you_mean(name, names)}")
    text = (resources.files("streaming_sbp") / folder_name / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def read_toml(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path}: not found; `sbp presets` lists the shipped ones") from None
    except IsADirectoryError:
        raise ConfigError(f"configuration file {path}: is a folder; expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path}: not valid TOML: {error}") from None


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of ``tree`` with each ``section.key=value`` applied; the value is TOML, or else a bare string."""
    result = {section: dict(values) if isinstance(values, Mapping) else values for section, values in tree.items()}
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise ConfigError(f"override {override!r}: expected section.key=value, as in mix.synthetic_share=0.25")
        values = result.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {section} is not a section")
        values[key] = _toml_value(text.strip())
    return result


def build(tree: Mapping[str, Any]) -> Config:
    """The checked configuration of a raw tree. Raises ConfigError that names every wrong key, with a suggestion."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None


def load(path: str | Path | None = None, preset: str | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file or a preset, apply overrides, check. With neither, the defaults."""
    if path is not None and preset is not None:
        raise ConfigError("--config and --preset: expected one of them, got both")
    tree = read_toml(path) if path is not None else read_preset(preset) if preset is not None else {}
    return build(apply_overrides(tree, overrides))


def to_toml(config: Config) -> str:
    """The resolved configuration as TOML; ``build(tomllib.loads(to_toml(c))) == c``."""
    lines: list[str] = []
    for section, values in config.model_dump().items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {toml_text(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def differences(old: Config, new: Config) -> list[str]:
    """One line ``section.key: old -> new`` for every value that differs."""
    return tree_differences(old.model_dump(), new.model_dump())


def tree_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The same of two raw trees; a key that one of them lacks has its default there."""
    keys = dict.fromkeys((section, key) for tree in (new, old) for section, values in tree.items() for key in values)
    values = [(f"{s}.{k}", old.get(s, {}).get(k, "default"), new.get(s, {}).get(k, "default")) for s, k in keys]
    return [f"{name}: {before!r} -> {after!r}" for name, before, after in values if before != after]


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def toml_text(value: Any) -> str:
    """A setting's value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        escaped = "".join(
            {"\\": "\\\\", '"': '\\"'}.get(c, c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}") for c in value
        )
        return f'"{escaped}"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml_text(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(toml_text(item) for item in value) + "]"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "tuple_type":
            message = 'expected a list, as in ["first", "second"] (quote it for the shell)'
        return f"{where} = {item['input']!r}: {message}" if where else message
    section, _, key = where.partition(".")
    fields = Config.model_fields
    if not key:
        return f"unknown section [{section}]{_did_you_mean(section, fields)} (sections: {', '.join(fields)})"
    annotation = fields[section].annotation
    known = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, Section) else {}
    elsewhere = [name for name, f in fields.items() if key in f.annotation.model_fields]  # type: ignore[union-attr]
    suggestion = f"; did you mean '{elsewhere[0]}.{key}'?" if elsewhere else _did_you_mean(key, known)
    suggestion = suggestion or f" (known: {', '.join(known)})"
    return f"unknown key {where}{suggestion}"
