"""One run of a plain training loop over transformers, with PEFT's adapters for LoRA.

usage: peft_run.py SETTINGS.json
"""
import torch
from transformers import AutoModelForCausalLM

import common

run = common.settings()
record = common.Record(run)
torch.set_num_threads(run["threads"])
torch.manual_seed(0)
dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[run["dtype"]]
model = AutoModelForCausalLM.from_pretrained(run["model"], dtype=dtype, attn_implementation="sdpa")
if run["checkpointing"]:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
if run["recipe"] == "lora":
    from peft import LoraConfig, get_peft_model

    modules = run["lora"]["attn_modules"] + ["gate_proj", "up_proj", "down_proj"]
    adapters = LoraConfig(r=run["lora"]["rank"], lora_alpha=run["lora"]["alpha"], lora_dropout=0.0, target_modules=modules,
                          task_type="CAUSAL_LM")
    # In the model's own precision, as torchtune has them: adapters in fp32 cost a conversion at each layer.
    model = get_peft_model(model, adapters, autocast_adapter_dtype=False)
model.train()
if run["compile"]:
    model = torch.compile(model)
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=run["lr"], weight_decay=0.01, fused=True)

rows = common.rows(run["rows"])
for step in range(run["steps"]):
    batch = rows[step * run["batch"]:(step + 1) * run["batch"]]
    ids, labels, lengths = common.pad(batch, pad_id=0)
    # Positions that begin anew tell transformers where samples end: it masks attention between them.
    packed = common.is_packed(batch)
    positions = torch.tensor([[i for n in row for i in range(n)] for row in lengths]) if packed else None
    record.begins()
    loss = model(input_ids=ids, labels=labels, position_ids=positions, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    record.step(loss.detach())

packages = ["torch", "transformers"] + (["peft"] if run["recipe"] == "lora" else [])
record.write("sdpa, fused AdamW, adapters in the model's precision; batches padded to their longest row, "
             "positions that begin anew where a row is packed", packages)
