"""The loop on a real model and a real data set: packed masking, learning, exact resume, damaged checkpoints."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from streaming_sbp import config
from streaming_sbp.config import Config, ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.stream.journal import Journal
from streaming_sbp.telemetry.catalogue import PHASES
from streaming_sbp.telemetry.metrics import Metrics
from streaming_sbp.training.build import build_trainer
from streaming_sbp.training.checkpoint import CheckpointStore, newest_checkpoint
from streaming_sbp.training.dropout import add_dropout
from streaming_sbp.training.evaluation import HeldoutSet
from streaming_sbp.training.loop import NonFiniteLoss, PhaseClock, Trainer
from streaming_sbp.training.mixer import REAL
from streaming_sbp.training.model import build_model, choose_device, choose_precision, flops_per_token, token_losses
from streaming_sbp.training.optim import learning_rate
from streaming_sbp.training.report import TrainingReport
from streaming_sbp.training.world import World

CPU = torch.device("cpu")


def make_trainer(settings: Config, folder: Path, device: torch.device = CPU, **training: object) -> Trainer:
    changed = settings.model_copy(update={"training": settings.training.model_copy(update=training)})
    dataset = Dataset.open(settings.data.dataset)
    return build_trainer(changed, dataset, Journal(folder), folder, device, PhaseClock(PHASES), World())


def make_store(settings: Config, folder: Path, **kept: object) -> CheckpointStore:
    return CheckpointStore(folder, config.Checkpoint(**kept), Dataset.open(settings.data.dataset).tokenizer())


def heldout(settings: Config) -> HeldoutSet:
    dataset = Dataset.open(settings.data.dataset)
    tokenizer = dataset.tokenizer()
    return HeldoutSet(dataset.split("heldout"), tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, settings)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_packed_documents_do_not_see_each_other(tiny_config, tmp_path, family, device):
    settings = tiny_config.model_copy(update={"model": tiny_config.model.model_copy(update={"family": family})})
    trainer = make_trainer(settings, tmp_path / "journal", device)
    batch = trainer.batches.next()
    packed = token_losses(trainer.model, batch, device, "fp32").cpu()
    trainer.model.cpu()
    assert max(len(row) for row in batch.rows) > 1
    for row, pieces in enumerate(batch.rows):
        at = 0
        for piece in pieces:
            ids = batch.input_ids[row : row + 1, at : at + piece.length]
            logits = trainer.model(input_ids=ids).logits[0, :-1].float()
            alone = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            assert torch.allclose(packed[row, at : at + piece.length - 1], alone, atol=1e-4)
            at += piece.length


def test_training_lowers_the_heldout_loss(tiny_config, tmp_path, device):
    trainer = make_trainer(tiny_config, tmp_path / "journal", device, learning_rate=1e-2)
    judge = heldout(tiny_config)
    before = judge.evaluate(trainer.model, device, "fp32")
    vocabulary = Dataset.open(tiny_config.data.dataset).tokenizer().vocab_size
    assert before.loss == pytest.approx(math.log(vocabulary), rel=0.1)  # untrained: uniform
    for _ in range(40):
        trainer.step()
    after = judge.evaluate(trainer.model, device, "fp32")
    assert after.loss < 0.6 * before.loss
    assert after.bits_per_byte / after.loss == pytest.approx(before.bits_per_byte / before.loss)


def test_bits_per_byte_counts_every_byte_of_the_same_documents(tiny_config, tmp_path):
    dataset = Dataset.open(tiny_config.data.dataset)
    split, tokenizer = dataset.split("heldout"), dataset.tokenizer()
    everything = tiny_config.model_copy(update={"evaluation": config.Evaluation(heldout_sequences=1000)})
    judge = heldout(everything)
    assert judge.num_bytes == sum(len(tokenizer.decode(split.tokens(i)).encode()) for i in range(len(split)))


def test_micro_batches_give_the_gradient_of_the_whole_batch(tiny_config, tmp_path, device):
    norms = []
    for size in (0, 1, 3):
        trainer = make_trainer(tiny_config, tmp_path / "journal", device, micro_batch_sequences=size, precision="fp32")
        norms.append(trainer.step().gradient_norm)
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_resume_is_bit_identical(dropout, tiny_config, tmp_path, device):
    """Three saves and resumes, across an epoch boundary, against one uninterrupted run: batches and losses."""

    def steps(trainer: Trainer, count: int) -> list[tuple[str, float]]:
        done = [trainer.step() for _ in range(count)]
        return [(step.batch.digest(), step.losses[REAL]) for step in done]

    whole = make_trainer(tiny_config, tmp_path / "journal", device, dropout=dropout)
    expected = steps(whole, 80)
    assert whole.batches.sources[REAL].epochs > 1
    store = CheckpointStore(
        tmp_path, config.Checkpoint(keep_last=2), Dataset.open(tiny_config.data.dataset).tokenizer()
    )
    found: list[tuple[str, float]] = []
    for _ in range(4):
        trainer = make_trainer(tiny_config, tmp_path / "journal", device, dropout=dropout)
        loaded = store.load_newest(trainer.model, trainer.optimizer)
        assert (loaded is None) == (not found)
        if loaded:
            trainer.load_state_dict(loaded[1])
        found += steps(trainer, 20)
        state = trainer.state_dict()
        store.save(trainer.trained.steps, trainer.trained.total_tokens, trainer.model, trainer.optimizer, state)
        store.wait()
        assert store.poll().error == ""
    assert found == expected
    assert len(list(tmp_path.glob("step-*"))) == 2  # keep_last


@pytest.mark.parametrize("to", [pytest.param("cpu", id="to-cpu"), pytest.param("cuda", id="to-cuda")])
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_checkpoint_goes_on_on_another_device(tiny_config, tmp_path, to):
    """Same batches; losses equal to rounding."""
    devices = [torch.device("cuda" if to == "cpu" else "cpu"), torch.device(to)]
    first, second = (make_trainer(tiny_config, tmp_path / "journal", device, precision="fp32") for device in devices)
    store = make_store(tiny_config, tmp_path)
    for _ in range(10):
        first.step()
    store.save(first.trained.steps, first.trained.total_tokens, first.model, first.optimizer, first.state_dict())
    store.wait()
    second.load_state_dict(store.load_newest(second.model, second.optimizer)[1])
    for _ in range(10):
        here, there = first.step(), second.step()
        assert here.batch.digest() == there.batch.digest()
        assert here.losses[REAL] == pytest.approx(there.losses[REAL], rel=1e-3)


def test_loading_walks_back_over_damaged_checkpoints(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config, tmp_path / "journal")
    store = CheckpointStore(
        tmp_path, config.Checkpoint(keep_last=5), Dataset.open(tiny_config.data.dataset).tokenizer()
    )
    for _ in range(3):
        trainer.step()
        state = trainer.state_dict()
        store.save(trainer.trained.steps, trainer.trained.total_tokens, trainer.model, trainer.optimizer, state)
        store.wait()
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    weights = tmp_path / "step-00000002" / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (tmp_path / ".step-00000004.tmp").mkdir()
    store = CheckpointStore(
        tmp_path, config.Checkpoint(keep_last=5), Dataset.open(tiny_config.data.dataset).tokenizer()
    )
    assert not (tmp_path / ".step-00000004.tmp").exists()
    assert newest_checkpoint(tmp_path).step == 2
    info, _ = store.load_newest(trainer.model, trainer.optimizer)
    assert info.step == 1
    (tmp_path / "step-00000001" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="no checkpoint is whole"):
        store.load_newest(trainer.model, trainer.optimizer)


def test_a_loss_that_is_not_finite_stops_with_the_documents_or_skips(tiny_config, tmp_path):
    trainer = make_trainer(tiny_config, tmp_path / "journal")
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"real:\d+"):
        trainer.step()
    skipping = make_trainer(tiny_config, tmp_path / "journal", on_non_finite="skip")
    with torch.no_grad():
        skipping.model.get_input_embeddings().weight[0, 0] = float("inf")
    before = [p.clone() for p in skipping.model.parameters()]
    assert skipping.step().skipped
    assert all(torch.equal(a, b) for a, b in zip(before, skipping.model.parameters(), strict=True))


def test_counters_of_a_resumed_trainer_begin_at_zero_and_the_run_goes_on(tiny_config, tmp_path):
    """Else Prometheus takes all that was trained before for the work of the first seconds."""
    first = make_trainer(tiny_config, tmp_path / "journal")
    for _ in range(20):
        first.step()
    resumed = make_trainer(tiny_config, tmp_path / "journal")
    resumed.load_state_dict(first.state_dict())
    metrics = Metrics("trainer")
    report = TrainingReport(resumed, Journal(tmp_path / "journal"), tiny_config, metrics)
    before = resumed.trained.total_tokens
    report.close_window([], 0)
    assert metrics.value("sbp_trained_tokens_total", source="real") == 0
    assert metrics.value("sbp_run_trained_tokens") == before > 0
    report.step(resumed.step())
    report.close_window([], 0)
    assert metrics.value("sbp_trained_tokens_total", source="real") == resumed.trained.total_tokens - before > 0
    assert metrics.value("sbp_model_flops_total") > 0
    assert metrics.value("sbp_run_trained_tokens") == resumed.trained.total_tokens


def test_the_heldout_loss_is_known_again_after_a_resume(tiny_config, tmp_path):
    journal, metrics = Journal(tmp_path / "journal"), Metrics("trainer")
    report = TrainingReport(make_trainer(tiny_config, tmp_path / "journal"), journal, tiny_config, metrics)
    report.recall([{"event": "train", "tokens": 100}], 250)
    assert metrics.value("sbp_heldout_loss") == 0
    losses = ((100, 3.0), (200, 2.0), (300, 1.0))
    records = [{"event": "eval", "tokens": t, "heldout_loss": x, "heldout_bits_per_byte": x / 2} for t, x in losses]
    report.recall(records, 250)  # the last one belongs to tokens that the crash took
    assert metrics.value("sbp_heldout_loss") == report.facts()["loss"]["heldout_real"] == 2.0
    assert metrics.value("sbp_heldout_compression_ratio") == 1.0 / 8


@pytest.mark.parametrize("tied", [True, False])
def test_flops_per_token_are_those_that_torch_counts(tiny_config, tied):
    shape = {"tie_word_embeddings": tied, "hidden_size": 64, "num_kv_heads": 1, "intermediate_size": 160}
    settings = tiny_config.model.model_copy(update=shape)
    model = build_model(settings, Dataset.open(tiny_config.data.dataset).tokenizer(), seed=0)
    model.set_attn_implementation("eager")  # torch does not count the operations of the fused one on a CPU
    ids = torch.randint(0, 300, (1, 128))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert flops_per_token(model, 128) == pytest.approx(counter.get_total_flops() / 128, rel=0.03)


def test_learning_rate_warms_up_stays_and_decays():
    training = config.Training(
        total_tokens=1000, warmup_tokens=100, decay_share=0.2, learning_rate=1.0, min_learning_rate_ratio=0.1
    )
    assert [learning_rate(training, tokens) for tokens in (49, 100, 799)] == [0.5, 1.0, 1.0]
    assert learning_rate(training, 900) == pytest.approx(0.55)
    assert learning_rate(training, 1000) == pytest.approx(0.1)
    assert learning_rate(training, 5000) == pytest.approx(0.1)


def test_the_checkpoint_is_a_hugging_face_folder(tiny_config, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = make_trainer(tiny_config, tmp_path / "journal")
    store = CheckpointStore(
        tmp_path, config.Checkpoint(keep_last=1), Dataset.open(tiny_config.data.dataset).tokenizer()
    )
    store.save(0, 0, trainer.model, trainer.optimizer, {})
    store.wait()
    folder = newest_checkpoint(tmp_path).model_path
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The river", return_tensors="pt").input_ids
    assert torch.allclose(model(ids).logits, trainer.model(ids).logits, atol=1e-5)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_a_model_that_cannot_be_is_a_clear_error(tiny_config):
    tokenizer = Dataset.open(tiny_config.data.dataset).tokenizer()
    with pytest.raises(ConfigError, match="multiple of num_heads"):
        config.build({"model": {"num_heads": 3}})
    with pytest.raises(ConfigError, match="no Hugging Face configuration"):
        build_model(config.Model(config="/nowhere"), tokenizer, 0)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            choose_device("cuda")


@pytest.mark.parametrize(
    ("instructions", "expected"), [({"amx_bf16": True}, "bf16"), ({"bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")]
)
def test_bf16_only_where_the_processor_multiplies_it(monkeypatch, instructions, expected):
    """Emulated, it is several times slower than fp32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("fp32", CPU) == "fp32"


@pytest.mark.parametrize(("section", "name"), [("model", "attention_dropout"), ("training", "dropout")])
def test_dropout_changes_training_and_not_evaluation(section, name, tiny_config, tmp_path):
    changed = getattr(tiny_config, section).model_copy(update={name: 0.5})
    trainer = make_trainer(tiny_config.model_copy(update={section: changed}), tmp_path / "journal")
    batch = trainer.batches.next()
    first, second = (token_losses(trainer.model, batch, CPU, "fp32") for _ in range(2))
    assert not torch.equal(first, second)
    trainer.model.eval()
    first, second = (token_losses(trainer.model, batch, CPU, "fp32") for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_dropout_falls_on_embeddings_and_on_what_each_sublayer_adds(family, tiny_config):
    tokenizer = Dataset.open(tiny_config.data.dataset).tokenizer()
    model = build_model(tiny_config.model.model_copy(update={"family": family}), tokenizer, seed=0)
    zeros: list[float] = []
    layers = [layer for block in model.model.layers for layer in (block.self_attn, block.mlp)]
    add_dropout(model, 0.25, "training.dropout")
    for module in [model.get_input_embeddings(), *layers]:
        module.register_forward_hook(
            lambda _, __, out: zeros.append(float(((out[0] if isinstance(out, tuple) else out) == 0.0).float().mean()))
        )
    ids = torch.arange(200)[None] % tokenizer.vocab_size
    model.train()(input_ids=ids)
    assert zeros == pytest.approx([0.25] * (1 + len(layers)), abs=0.03)
    zeros.clear()
    model.eval()(input_ids=ids)
    assert max(zeros) < 0.01


def test_a_model_with_dropout_of_its_own_gets_the_share_there():
    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    own = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert {module.p for module in own} == {0.1}
    add_dropout(model, 0.0, "training.dropout")
    assert {module.p for module in own} == {0.1}
    add_dropout(model, 0.3, "training.dropout")
    assert {module.p for module in own} == {0.3}


def test_dropout_for_a_model_without_a_place_for_it_says_so():
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    message = r"training\.dropout = 0\.1: MambaForCausalLM has no dropout layers.*set it to 0"
    with pytest.raises(ConfigError, match=message):
        add_dropout(MambaForCausalLM(MambaConfig(**sizes)), 0.1, "training.dropout")
