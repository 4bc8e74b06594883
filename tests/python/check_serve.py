"""Checks `tune serve` with OpenAI's own client, and its answers with transformers.

    python tests/python/check_serve.py [--tune target/debug/tune]

An adapter that calls a tool is trained on the tiny model, and both are served: model lists, completions, log-probabilities of
prompts and answers, conversations, streams, stop sequences, calls of tools, errors, the key.

Needs numpy, torch, transformers and openai.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import openai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes/tiny/model"
KEY = "a-key-of-this-test"
TEMPLATE = """{% if tools %}<|im_start|>system
Call {{ tools | map(attribute='function') | map(attribute='name') | join(', ') }} so: \
<tool_call>{"name": name, "arguments": object}</tool_call><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOL = {"type": "function", "function": {"name": "weather", "description": "Says what the weather is.",
                                         "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
QUESTION = {"role": "user", "content": "Is it raining in Rome?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


def check(right, what):
    if not right:
        sys.exit(f"check_serve.py: {what}")


def make_model(into):
    """The tiny model with a template for tools, and an adapter that calls one."""
    base = into / "base"
    shutil.copytree(TINY, base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["chat_template"] = TEMPLATE
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    record = {"tools": [TOOL], "messages": [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}]}
    data = into / "calls.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for _ in range(64)))
    return base, data


def train(lora, base, data, out):
    command = [lora, "--config", "configs/lora/tiny.yaml", f"checkpointer.checkpoint_dir={base}", f"output_dir={out}",
               f"dataset.data_files=[{data}]", "tokenizer.max_seq_len=256", "~exact_match", "batch_size=2", "epochs=20",
               "lr_scheduler.num_warmup_steps=2", "log_every_n_steps=50"]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    check(done.returncode == 0, f"training failed: {done.stdout}{done.stderr}")


class Server:
    def __init__(self, tune, *arguments):
        command = [str(part) for part in (tune, "serve", *arguments, "--port", "0")]
        # Of its own package, so that nothing is built here.
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"TUNE_API_KEY": KEY})
        line = self.process.stdout.readline()
        check("http://127.0.0.1:" in line, f"the server did not start: {line!r}")
        self.url = "http://" + line.split("http://")[1].split("/v1")[0] + "/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        check(self.process.wait(timeout=60) == 0, "the server did not end well")


def texts(stream):
    return "".join(event.choices[0].text for event in stream if event.choices)


def check_completions(client, model, tokenizer):
    names = [entry.id for entry in client.models.list()]
    check(names == ["tiny", "caller"], f"the models are {names}")
    prompt = "<|im_start|>user\nWrite m-a-p-l-e backwards.<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        right = model.generate(ids, max_new_tokens=24, do_sample=False)[0]
        log_probs = torch.log_softmax(model(right[None]).logits[0].double(), -1)
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=24, temperature=0, logprobs=2, echo=True)
    choice = answer.choices[0]
    new = [token for token in right[ids.shape[1]:].tolist() if token != tokenizer.eos_token_id]
    check(choice.text == prompt + tokenizer.decode(new), f"greedy: {choice.text!r}, and transformers has {tokenizer.decode(right)!r}")
    found = choice.logprobs.token_logprobs
    # The stop token is scored, too, and no part of the text.
    check(found[0] is None and len(found) == len(right), f"{len(found)} tokens are scored")
    worst = max(abs(found[i + 1] - log_probs[i, right[i + 1]].item()) for i in range(len(found) - 1))
    check(worst < 1e-4, f"log-probabilities differ from transformers' by {worst}")
    for i in range(1, len(found)):
        best = log_probs[i - 1].max().item()
        check(abs(max(choice.logprobs.top_logprobs[i].values()) - best) < 1e-4, "the likeliest token is another")
    check(len(new) > 5, f"the answer is short: {new}")
    check(answer.usage.prompt_tokens == ids.shape[1] and answer.usage.completion_tokens == len(new), f"usage: {answer.usage}")
    streamed = texts(client.completions.create(model="tiny", prompt=prompt, max_tokens=24, temperature=0, stream=True))
    check(prompt + streamed == choice.text, f"streamed: {streamed!r}")
    stop = streamed[3:5]
    cut = client.completions.create(model="tiny", prompt=prompt, max_tokens=24, temperature=0, stop=[stop]).choices[0]
    check(cut.text == streamed[: streamed.index(stop)] and cut.finish_reason == "stop", f"stop at {stop!r}: {cut}")
    several = client.completions.create(model="tiny", prompt=[prompt, ids[0].tolist()], n=2, max_tokens=4, seed=7, temperature=1.0)
    check([choice.index for choice in several.choices] == [0, 1, 2, 3], "two answers to each of two prompts")
    again = client.completions.create(model="tiny", prompt=[prompt, ids[0].tolist()], n=2, max_tokens=4, seed=7, temperature=1.0)
    check([c.text for c in several.choices] == [c.text for c in again.choices], "a seed gives the same answers again")
    print(f"completions: greedy text and {len(found) - 1} log-probabilities are transformers' (to {worst:.1e})", flush=True)


def check_chat(client, model, tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Write d-o-g backwards."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True).input_ids
    with torch.no_grad():
        right = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1]:]
    right = tokenizer.decode(right, skip_special_tokens=True)
    answer = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=16, temperature=0, logprobs=True, top_logprobs=3)
    check(answer.choices[0].message.content == right, f"chat: {answer.choices[0].message.content!r}, and transformers has {right!r}")
    check(all(len(token.top_logprobs) == 3 for token in answer.choices[0].logprobs.content), "three likeliest tokens each")
    events = list(client.chat.completions.create(model="tiny", messages=messages, max_tokens=16, temperature=0, stream=True,
                                                 stream_options={"include_usage": True}))
    streamed = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    check(streamed == right and events[-1].usage == answer.usage, f"streamed: {streamed!r}, {events[-1].usage}")
    print("chat: greedy text is transformers', whole and streamed", flush=True)


def check_tools(client):
    ask = dict(model="caller", messages=[QUESTION], tools=[TOOL], temperature=0, max_tokens=100)
    answer = client.chat.completions.create(**ask)
    calls = answer.choices[0].message.tool_calls
    check(calls and calls[0].function.name == "weather", f"no call: {answer.choices[0].message}")
    check(json.loads(calls[0].function.arguments) == {"city": "Rome"} and answer.choices[0].finish_reason == "tool_calls", f"{answer}")
    events = [event.choices[0] for event in client.chat.completions.create(**ask, stream=True)]
    streamed = [call for event in events for call in event.delta.tool_calls or []]
    check([call.function for call in streamed] and streamed[0].function.arguments == calls[0].function.arguments, f"streamed: {streamed}")
    check(events[-1].finish_reason == "tool_calls" and not "".join(event.delta.content or "" for event in events), "text beside the call")
    # The conversation goes on with what the tool says, in the client's own form.
    said = [QUESTION, answer.choices[0].message, {"role": "tool", "tool_call_id": calls[0].id, "content": "No."}]
    more = client.chat.completions.create(**(ask | {"messages": said}))
    check(more.usage.prompt_tokens > answer.usage.prompt_tokens, "what was said before is part of the prompt")
    text = client.chat.completions.create(**ask, tool_choice="none").choices[0].message
    check(text.tool_calls is None, "without a tool there is no call")
    print("tools: a call is a call, whole and streamed, and the conversation goes on", flush=True)


def check_errors(client, url):
    def refused(kind, code, param, act):
        try:
            act()
        except kind as error:
            check(error.code == code and error.param == param, f"{error.code}, {error.param}: {error}")
        else:
            sys.exit(f"check_serve.py: {code} was expected")

    ask = dict(model="tiny", prompt="a")
    refused(openai.NotFoundError, "model_not_found", "model", lambda: client.completions.create(model="none", prompt="a"))
    refused(openai.BadRequestError, "invalid_value", "temperature", lambda: client.completions.create(**ask, temperature=9))
    refused(openai.BadRequestError, "context_length_exceeded", "prompt", lambda: client.completions.create(model="tiny", prompt=[9] * 400))
    refused(openai.BadRequestError, "unsupported_endpoint", None, lambda: client.embeddings.create(model="tiny", input="a"))
    refused(openai.BadRequestError, "unsupported_parameter", "tool_choice",
            lambda: client.chat.completions.create(model="tiny", messages=[QUESTION], tools=[TOOL], tool_choice="required"))
    stranger = openai.OpenAI(base_url=url, api_key="another", max_retries=0)
    refused(openai.AuthenticationError, "invalid_api_key", None, lambda: stranger.models.list())
    print("errors: the client raises what they mean", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", type=Path, default=ROOT / "target/debug/tune", help="the program; `lora` is beside it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        into = Path(temporary)
        base, data = make_model(into)
        train(args.tune.with_name("lora"), base, data, into / "run")
        model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
        with Server(args.tune, base, "--name", "tiny", "--also", f"caller={into / 'run'}") as server:
            client = openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0, timeout=60)
            check_completions(client, model, tokenizer)
            check_chat(client, model, tokenizer)
            check_tools(client)
            check_errors(client, server.url)


main()
