"""lm-evaluation-harness on a real checkpoint, with a task and data that are local."""

from __future__ import annotations

import json
import math

import pytest

from streaming_sbp.config import ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.experiment import lm_eval
from streaming_sbp.rundir import RunDir
from streaming_sbp.training.checkpoint import CheckpointStore
from tests.unit.test_training import make_trainer

TASK = """
task: two_endings
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: right
metric_list:
  - metric: acc
"""


@pytest.fixture
def run(tiny_config, tmp_path):
    run = RunDir.open_or_create(
        tiny_config.model_copy(update={"run": tiny_config.run.model_copy(update={"dir": str(tmp_path / "run")})})
    )
    trainer = make_trainer(tiny_config, tmp_path / "journal", learning_rate=1e-2)
    for _ in range(40):
        trainer.step()
    tokenizer = Dataset.open(tiny_config.data.dataset).tokenizer()
    store = CheckpointStore(run.checkpoints, tiny_config.checkpoint, tokenizer)
    store.save(40, 1000, trainer.model, trainer.optimizer, {})
    store.wait()
    return run


def write_task(folder, tiny_folder):
    """Documents of the corpus that go on as they do, or in a language that it does not have."""
    folder.mkdir()
    examples = []
    for number, line in enumerate((tiny_folder / "corpus.jsonl").read_text().splitlines()[:20]):
        words = json.loads(line)["text"].split()
        endings = [" " + " ".join(words[4:8]), " zqx wvk jjq xxz"]
        right = number % 2
        examples.append(
            {"text": " ".join(words[:4]), "endings": endings if right == 0 else endings[::-1], "right": right}
        )
    (folder / "data.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    (folder / "two_endings.yaml").write_text(TASK.format(file=folder / "data.jsonl"))
    return folder


def test_a_task_with_local_data(run, tiny_folder, tmp_path):
    pytest.importorskip("lm_eval", reason="extra `eval`")
    tasks = write_task(tmp_path / "tasks", tiny_folder)
    checkpoint = lm_eval.choose_checkpoint(run)
    found = lm_eval.evaluate(run, checkpoint, lm_eval.Request(("two_endings",), tasks))
    measured = found["results"]["two_endings"]
    assert measured["acc,none"] > 0.9  # by chance 0.5: the checkpoint's weights and tokenizer were used
    assert math.isfinite(measured["acc_stderr,none"])
    assert found["checkpoint"] == "step-00000040"
    kept = list((run.path / "evaluations").glob("*.json"))
    assert [json.loads(file.read_text()) for file in kept] == [found]
    assert lm_eval.table(found).row_count == 1
    lm_eval.evaluate(run, checkpoint, lm_eval.Request(("two_endings",), tasks, limit=2))
    assert len(list((run.path / "evaluations").glob("*.json"))) == 2  # beside the one of all examples
    with pytest.raises(ConfigError, match="--tasks: got none"):
        lm_eval.evaluate(run, checkpoint, lm_eval.Request((), tasks))
    with pytest.raises(ConfigError, match=r"tasks no_such_task: not among the .* --include-path"):
        lm_eval.evaluate(run, checkpoint, lm_eval.Request(("no_such_task",)))
    (tasks / "data.jsonl").unlink()
    with pytest.raises(ConfigError, match="local files"):
        lm_eval.evaluate(run, checkpoint, lm_eval.Request(("two_endings",), tasks))


def test_which_checkpoint(run):
    assert lm_eval.choose_checkpoint(run, "step-00000040").step == 40
    with pytest.raises(ConfigError, match="no complete checkpoint 'step-00000001'; there are: step-00000040"):
        lm_eval.choose_checkpoint(run, "step-00000001")
    damaged = lm_eval.choose_checkpoint(run).model_path / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match=r"damaged: model/model\.safetensors"):
        lm_eval.choose_checkpoint(run)
