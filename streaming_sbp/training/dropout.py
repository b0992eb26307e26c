"""Dropout for models whose configuration has none, such as Llama and Qwen: against overfitting text that repeats.

Where GPT-2 has it (`embd_pdrop`, `resid_pdrop`; Radford et al., 2019): on the embeddings, and on what each attention
and each MLP adds to the residual stream. Attention weights have a setting of their own, `model.attention_dropout`.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from streaming_sbp.config import ConfigError

SUBLAYERS = ("self_attn", "mlp")  # what adds to the residual stream, in the models of Hugging Face without dropout


def add_dropout(model: PreTrainedModel, share: float, setting: str) -> None:
    """Drop ``share`` of the activations from now on, while ``model`` is in training mode; 0 leaves it as it is.

    A model with dropout layers of its own (GPT-2, OPT) gets ``share`` there instead. Call it once for a model.
    ``setting``: the name of ``share`` in the configuration, for the error.
    Raises ConfigError when the model has neither those nor the usual sublayers.
    """
    if not share:
        return
    own = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for module in own:
        module.p = share
    if own:
        return
    places = [module for name, module in model.named_modules() if name.rpartition(".")[2] in SUBLAYERS]
    if not places:
        raise ConfigError(
            f"{setting} = {share:g}: {type(model).__name__} has no dropout layers and none of {', '.join(SUBLAYERS)}; "
            "expected either; set it to 0"
        )

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # attention: what it adds, and its weights
            return (F.dropout(output[0], share, module.training), *output[1:])
        return F.dropout(output, share, module.training)

    for module in [model.get_input_embeddings(), *places]:
        module.register_forward_hook(drop)
