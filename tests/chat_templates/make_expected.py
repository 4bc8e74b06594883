"""Write expected.json: what Python's transformers renders for every template of this folder.

usage: make_expected.py
needs: pip install transformers==5.24.0 jinja2==3.1.6
"""
import datetime
import json
import pathlib

from transformers.utils import chat_template_utils


class Clock(datetime.datetime):
    """A fixed day, so that the file does not change with the calendar."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, 12, 0, 0)


chat_template_utils.datetime = Clock
HERE = pathlib.Path(__file__).parent
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2.0, "é"], "c": None}}}
CONVERSATIONS = {
    "one_turn": [user("What is 2 + 2?"), assistant("4")],
    "question": [system("Be brief."), user("Hi")],
    "two_turns": [user("Hi"), assistant("Hello!"), user("  Bye \n"), assistant("    See you.\n")],
    "system": [system("  Be brief. "), user("Hi <b> & 'co'"), assistant("Héllo 🦀")],
    "thinking": [user("Hi"), assistant("<think>\nhm\n</think>\n\nHello!"), user("Why?"), assistant("So.", reasoning_content="It is so.")],
    "tools": [user("1 + 2?"), assistant("", tool_calls=[call]), {"role": "tool", "content": "3"}, assistant("It is 3.")],
    "wrong_order": [assistant("I begin."), user("Do you?")],
}

expected = {"tokens": TOKENS, "now": 1721995200, "conversations": CONVERSATIONS, "cases": []}
for path in sorted(HERE.glob("*.jinja")):
    template = path.read_text()
    for name, messages in CONVERSATIONS.items():
        for prompt in (False, True):
            case = {"template": path.stem, "conversation": name, "add_generation_prompt": prompt}
            try:
                texts, spans = chat_template_utils.render_jinja_template(
                    [messages], chat_template=template, add_generation_prompt=prompt,
                    return_assistant_tokens_mask="generation %}" in template, **TOKENS)
                case["text"] = texts[0]
                if spans:
                    case["generated"] = [texts[0][start:end] for start, end in spans[0]]
            except Exception as error:
                case["error"] = str(error)
            expected["cases"].append(case)
text = json.dumps(expected, indent=1, ensure_ascii=False)
(HERE / "expected.json").write_text(text + "\n")
print(len(expected["cases"]), "cases")
