"""One run of torchtune's own single-device recipe, on rows that are already tokenized.

usage: torchtune_run.py SETTINGS.json

The recipe's code is torchtune's. Ours are the dataset (the rows that all programs train on), its collation, which pads a
batch only to its longest row and leaves out the mask where no row is packed (both faster than torchtune's
own packing), and a metric logger that notes the time. Nothing is saved at the end.
"""
import importlib.util, os

import torch, torchtune, torchtune.training
from omegaconf import OmegaConf
from torch.utils.data import Dataset
from torchtune.modules.attention_utils import packed_block_causal_mask

import common

RUN = common.settings()
RECORD = common.Record(RUN)


class Rows(Dataset):
    def __init__(self, tokenizer, path):
        self.rows = common.rows(path)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Padding:
    """All that the recipe asks of a tokenizer when the rows are tokenized."""

    pad_id = 0


class Logger:
    def log_config(self, config):
        pass

    def log_dict(self, payload, step):
        RECORD.step(payload["loss"])

    def close(self):
        pass


def collate(batch, padding_idx, ignore_idx):
    ids, labels, lengths = common.pad(batch, padding_idx)
    out = {"tokens": ids, "labels": labels}
    if common.is_packed(batch):
        out["input_pos"] = torch.tensor([[i for n in row for i in range(n)] for row in lengths])
        out["mask"] = packed_block_causal_mask([torch.tensor(row) for row in lengths])
    return out


def constant(optimizer, num_training_steps, last_epoch):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0, last_epoch=last_epoch)


def recipe_config():
    model, lora = common.model_config(RUN), RUN["recipe"] == "lora"
    builder = dict(
        _component_="torchtune.models.llama3_2._component_builders." + ("lora_llama3_2" if lora else "llama3_2"),
        vocab_size=model["vocab_size"], num_layers=model["num_hidden_layers"], num_heads=model["num_attention_heads"],
        num_kv_heads=model["num_key_value_heads"], embed_dim=model["hidden_size"], max_seq_len=max(2048, RUN["seq"]),
        intermediate_dim=model["intermediate_size"], rope_base=int(model["rope_theta"]), scale_factor=1, norm_eps=model["rms_norm_eps"])
    if lora:
        builder |= dict(lora_attn_modules=["output_proj" if m == "o_proj" else m for m in RUN["lora"]["attn_modules"]],
                        apply_lora_to_mlp=True, tie_word_embeddings=True, lora_rank=RUN["lora"]["rank"],
                        lora_alpha=RUN["lora"]["alpha"], lora_dropout=0.0)
    out = os.path.dirname(RUN["out"])
    config = dict(
        output_dir=out, model=builder, seed=0, shuffle=False, batch_size=RUN["batch"], epochs=1, gradient_accumulation_steps=1,
        max_steps_per_epoch=RUN["steps"], device="cpu", dtype=RUN["dtype"], compile=RUN["compile"], optimizer_in_bwd=False,
        enable_activation_checkpointing=RUN["checkpointing"], enable_activation_offloading=False, log_every_n_steps=1,
        log_peak_memory_stats=False, resume_from_checkpoint=False, save_adapter_weights_only=True, clip_grad_norm=1.0,
        tokenizer=dict(_component_="__main__.Padding"), collate_fn="__main__.collate",
        dataset=dict(_component_="__main__.Rows", path=RUN["rows"]),
        checkpointer=dict(_component_="torchtune.training.FullModelHFCheckpointer", checkpoint_dir=RUN["model"],
                          checkpoint_files=["model.safetensors"], recipe_checkpoint=None, output_dir=out, model_type="LLAMA3_2"),
        optimizer=dict(_component_="torch.optim.AdamW", fused=True, weight_decay=0.01, lr=RUN["lr"]),
        loss=dict(_component_="torchtune.modules.loss.CEWithChunkedOutputLoss"),
        metric_logger=dict(_component_="__main__.Logger"),
        profiler=dict(_component_="torchtune.training.setup_torch_profiler", enabled=False))
    if lora:
        config["lr_scheduler"] = dict(_component_="__main__.constant")
    return OmegaConf.create(config)


def recipe_class():
    """torchtune ships its recipes beside its package, as files that are not meant to be imported."""
    folder = os.path.join(os.path.dirname(os.path.dirname(torchtune.__file__)), "recipes")
    spec = importlib.util.spec_from_file_location("recipe", f"{folder}/{RUN['recipe']}_finetune_single_device.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(getattr(module, name) for name in dir(module) if name.endswith("RecipeSingleDevice"))


# Compiled are the layers alone: for the backward pass of the chunked loss, torch 2.7's inductor writes C++ that declares
# an array twice (https://github.com/pytorch/pytorch/issues/152172).
torchtune.training.compile_loss = lambda loss, **_: loss

torch.set_num_threads(RUN["threads"])
config = recipe_config()
recipe = recipe_class()(config)
recipe.setup(config)
recipe.save_checkpoint = lambda epoch: None
recipe._model.register_forward_pre_hook(lambda *_: RECORD.begins())
recipe.train()
recipe.cleanup()
RECORD.write(f"{config.loss._component_.split('.')[-1]}, fused AdamW, sdpa; batches padded to their longest row, block mask only "
             "where a row is packed; where compiled, the layers without the loss", ["torch", "torchtune"])
