"""Chat files in the formats that users have, from the command line: targets, reported and refused parts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_recipe, write_rows
from test_chat import CHATML, make_tokenizer
from tiny_decoders import make_model

from pefttools import cli

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it

ASK, SAY = {"role": "user", "content": "Say 1"}, {"role": "assistant", "content": "1."}
CALL = {"id": "c1", "type": "function", "function": {"name": "sky", "arguments": '{"town": "Łódź"}'}}
TOOL = {"name": "sky", "description": "weather", "parameters": {"type": "object", "properties": {}}}
CALLED = [
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": '{"sky": "grey"}'},
    SAY,
]
TURN = "user: Say 1<e>assistant: "
CALL_TEXT = '<tool_call>\n{"name": "sky", "arguments": {"town": "Łódź"}}\n</tool_call>'
TOOLS_TEXT = (
    "You can call these tools:\n<tools>\n" + json.dumps({"type": "function", "function": TOOL}) + "\n</tools>\n"
    'A call is written as\n<tool_call>\n{"name": name, "arguments": {name: value}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama over bytes, with a ChatML template that has no form for tools."""
    folder = tmp_path_factory.mktemp("chat-base")
    tokenizer = make_tokenizer(CHATML)
    tokenizer.model_max_length = 1024
    make_model("llama", max_position_embeddings=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def shown(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], str]]:
    """Rows -> exit code, training rows in a shorter form of ChatML with targets in ⟦⟧, and messages."""

    def show(rows: Any, *overrides: str, suffix: str = "jsonl", like: Any = None) -> tuple[int, list[str], str]:
        file = tmp_path / f"rows.{suffix}"
        if suffix == "jsonl":
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        elif suffix == "csv":
            with file.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        else:
            import pandas

            pandas.DataFrame(rows).to_parquet(file)
        others = {name: str(tmp_path / f"{name}.jsonl") for name in ("validation", "test")}
        for name, other in others.items():
            row = like or {"prompt": "Say 1", "completion": "b"}
            Path(other).write_text(json.dumps(row).replace("Say 1", name) + "\n")
        task = {"name": "causal_lm", "max_length": 1000}
        recipe = write_recipe(tmp_path / "recipe.yaml", base, file, data=others, task=task)
        code = cli.run(["show", str(recipe), "--sample", "9", *overrides])
        out, err = capsys.readouterr()
        samples = [text.split("\n", 1)[1].rstrip("\n") for text in ("\n" + out).split("\n--- ")[1:]]
        short = [text.replace("<|im_start|>", "").replace("<|im_end|>", "<e>") for text in samples]
        for role in ("system", "user", "assistant", "tool"):
            short = [text.replace(f"{role}\n", f"{role}: ") for text in short]
        return code, [text.replace("<e>\n", "<e>").replace("<e>⟧\n", "<e>⟧") for text in short], err

    return show


def turns(*texts: tuple[str, str], role: str = "role", content: str = "content") -> list[dict[str, str]]:
    return [{role: who, content: text} for who, text in texts]


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "role and content as conversations": ({"conversations": [ASK, SAY]}, TURN + "⟦1.<e>⟧"),
    "from and value as messages": (
        {"messages": turns(("human", "Say 1"), ("gpt", "1."), role="from", content="value")},
        TURN + "⟦1.<e>⟧",
    ),
    "pairs as conversation": ({"conversation": [{"human": "Say 1", "assistant": "1."}]}, TURN + "⟦1.<e>⟧"),
    "roles in capitals": ({"dialogue": turns(("USER", "Say 1"), ("Assistant", "1."))}, TURN + "⟦1.<e>⟧"),
    "other names of roles": (
        {"messages": turns(("human", "Say 1"), ("bot", "1."), ("User", "2?"), ("model", "2."))},
        TURN + "⟦1.<e>⟧user: 2?<e>assistant: ⟦2.<e>⟧",
    ),
    "developer": (
        {"messages": [{"role": "developer", "content": "Be short."}, ASK, SAY]},
        "system: Be short.<e>" + TURN + "⟦1.<e>⟧",
    ),
    "an empty system message": ({"messages": [{"role": "system", "content": ""}, ASK, SAY]}, TURN + "⟦1.<e>⟧"),
    "content parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Say"}, {"type": "text", "text": " 1"}]},
                {"role": "assistant", "content": [{"type": "text", "value": "1."}]},
            ]
        },
        TURN + "⟦1.<e>⟧",
    ),
    "two user turns": (
        {"messages": [{"role": "user", "content": "Hi"}, ASK, SAY]}, "user: Hi<e>" + TURN + "⟦1.<e>⟧"
    ),
    "two answers": ({"messages": [ASK, SAY, SAY]}, TURN + "⟦1.<e>⟧assistant: ⟦1.<e>⟧"),
    "a system message in between": (
        {"messages": [ASK, SAY, {"role": "system", "content": "Now 2."}, ASK, SAY]},
        TURN + "⟦1.<e>⟧system: Now 2.<e>" + TURN + "⟦1.<e>⟧",
    ),
    "Alpaca's history": (
        {"instruction": "Say 1", "input": "", "output": "1.", "system": "S", "history": [["Say 0", "0."]]},
        "system: S<e>user: Say 0<e>assistant: ⟦0.<e>⟧" + TURN + "⟦1.<e>⟧",
    ),
    "weight": (
        {"messages": [ASK, {**SAY, "content": "WRONG", "weight": 0}, ASK, {**SAY, "weight": 1}]},
        TURN + "WRONG<e>" + TURN + "⟦1.<e>⟧",
    ),
    "loss_weight": (
        {"messages": [{**ASK, "loss_weight": 0.0}, {**SAY, "loss_weight": 0.0}, ASK, {**SAY, "loss_weight": 1.0}]},
        TURN + "1.<e>" + TURN + "⟦1.<e>⟧",
    ),
    "train": (
        {"messages": [ASK, {**SAY, "train": True}, ASK, {**SAY, "train": False}]}, TURN + "⟦1.<e>⟧"
    ),
    "training": (
        {"messages": [ASK, {**SAY, "training": True}, ASK, {**SAY, "training": False}]}, TURN + "⟦1.<e>⟧"
    ),
    "code": (
        {"prompt": "def f(x):\n", "completion": "    y = x\n    return y\n"},
        "user: def f(x):\n<e>assistant: ⟦    y = x\n    return y\n<e>⟧",
    ),
    "tools and calls": (
        {"messages": CALLED, "tools": [{"type": "function", "function": TOOL}]},
        f'system: {TOOLS_TEXT}<e>{TURN}⟦{CALL_TEXT}<e>⟧tool: {{"sky": "grey"}}<e>assistant: ⟦1.<e>⟧',
    ),
    "tools and a system message": (
        {"messages": [{"role": "system", "content": "S"}, ASK, SAY], "tools": [TOOL]},
        f"system: S\n\n{TOOLS_TEXT}<e>{TURN}⟦1.<e>⟧",
    ),
    "function_call and observation, tools as JSON text": (
        {
            "conversations": turns(
                ("human", "Say 1"), ("function_call", '{"name": "sky", "arguments": {"town": "Łódź"}}'),
                ("observation", '{"sky": "grey"}'), ("gpt", "1."), role="from", content="value",
            ),
            "tools": json.dumps([TOOL]),
        },
        f'system: {TOOLS_TEXT}<e>{TURN}⟦{CALL_TEXT}<e>⟧tool: {{"sky": "grey"}}<e>assistant: ⟦1.<e>⟧',
    ),
    "ipython and function_response": (
        {"messages": [*turns(("user", "Say 1"), ("ipython", "1"), ("function_response", "2")), SAY], "tools": "[]"},
        "user: Say 1<e>tool: 1<e>tool: 2<e>assistant: ⟦1.<e>⟧",
    ),
    "reasoning": (
        {"messages": [ASK, {**SAY, "reasoning_content": "Hm."}]}, TURN + "⟦<think>\nHm.\n</think>\n\n1.<e>⟧"
    ),
    "an open chat and its completion": ({"prompt": [ASK], "completion": SAY}, TURN + "⟦1.<e>⟧"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_targets_of_every_chat_format(name: str, shown: Callable[..., Any]) -> None:
    row, expected = FORMS[name]
    for more in ((), ("task.packing=true",)):
        code, samples, err = shown([row], *more)
        assert (code, samples) == (0, [expected]), err
    lost = row.get("tools", "[]") != "[]" or name in ("developer", "reasoning")
    assert ("does not support these" in err) == lost


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_chats_are_read_from_columns_of_csv_and_parquet(suffix: str, shown: Callable[..., Any]) -> None:
    as_text = json.dumps if suffix == "csv" else list
    rows = [
        {"messages": as_text(CALLED), "tools": json.dumps([TOOL])},
        {"messages": as_text([ASK, {**SAY, "content": "2."}]), "tools": ""},
    ]
    code, samples, err = shown(rows, suffix=suffix)
    assert code == 0, err
    assert samples[1] == TURN + "⟦2.<e>⟧"
    assert samples[0] == FORMS["tools and calls"][1]


def test_turns_after_the_last_answer_and_unknown_keys_are_reported(shown: Callable[..., Any]) -> None:
    rows = [
        {"messages": [ASK, {**SAY, "mood": "glad"}]},
        {"messages": [{**ASK, "content": "Say 2"}, {**SAY, "content": "2.", "mood": "sad", "id": None}, ASK]},
        {
            "messages": [
                {"role": "user", "content": "Say 3", "weight": 1, "name": "ann"},
                {**SAY, "content": "3.", "refusal": None},
            ],
            "prompt": "Say 3",
        },
    ]
    code, samples, err = shown(rows)
    assert (code, samples) == (0, [f"user: Say {i}<e>assistant: ⟦{i}.<e>⟧" for i in (1, 2, 3)])
    assert (
        "not read: `messages.mood` (2 rows), `prompt` (1 rows), `weight` of turns that are not answers (1 rows),"
        " turns after the last answer to train on (1 rows)" in err
    )
    assert "the chat template drops the `name` of turns (1 of the first 3 rows)" in err


def test_answers_labeled_bad_are_not_trained_on(shown: Callable[..., Any]) -> None:
    for key in ("label", "kto_tag"):
        rows = [{"prompt": "Say 1", "completion": "1.", key: True}, {"prompt": "Say 1", "completion": "no", key: False}]
        code, samples, err = shown(rows)
        assert (code, samples) == (0, [TURN + "⟦1.<e>⟧"]), err
    rows = [{"prompt": "Say 1", "completion": str(i), "label": value} for i, value in enumerate(("False", "True"))]
    code, samples, err = shown(rows, suffix="csv")
    assert (code, samples) == (0, [TURN + "⟦1<e>⟧"]), err


PREFERENCES: dict[str, dict[str, Any]] = {
    "conversations": {"conversations": [{"from": "human", "value": "Say 1"}]}
    | {name: {"from": "gpt", "value": text} for name, text in (("chosen", "1."), ("rejected", "no"))},
    "prompt": {"prompt": "Say 1", "chosen": "1.", "rejected": "no"},
    "whole chats": {"chosen": [ASK, SAY], "rejected": [ASK, {**SAY, "content": "no"}]},
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preference_data_is_refused_with_the_setting_to_use(name: str, shown: Callable[..., Any]) -> None:
    code, _, err = shown([PREFERENCES[name]] * 3)
    assert code == 2
    assert err.count("is a file of preferences: every row has a `chosen` and a `rejected` answer") == 1
    field = "messages" if name == "whole chats" else "completion"
    row = PREFERENCES[name]
    assert f"set data.columns.{field}=chosen" in err
    code, samples, err = shown([row], f"data.columns.{field}=chosen", like=row)
    assert (code, samples) == (0, [TURN + "⟦1.<e>⟧"]), err
    assert "not read: `rejected` (1 rows)" in err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [ASK, {**SAY, "weight": 0.5}]},
            "turn 2 of its messages with the weight 0.5; only the weights",
        ),
        ({"messages": [ASK, {**SAY, "train": "maybe"}]}, "turn 2 of its messages with the train 'maybe'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, SAY]},
            "turn 1 of its messages with a part of the type 'image_url'; only text is supported",
        ),
        ({"messages": [ASK, {**SAY, "tool_calls": [{"x": 1}]}]}, "that are not a list of {name, arguments}"),
        ({"messages": [ASK, SAY], "tools": ["x"]}, "has tools that are not a list of {name, description, parameters}"),
        ({"messages": [ASK, {**SAY, "weight": 0}]}, "1 rows: a chat whose answers all have weight 0"),
        ({"messages": [ASK]}, "1 rows: a chat without an answer"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(
    row: dict[str, Any], message: str, shown: Callable[..., Any]
) -> None:
    code, _, err = shown([row])
    assert code == 2
    assert message in err


@pytest.mark.slow
def test_a_tool_chat_among_other_chats_trains_and_predicts(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": [{**ASK, "content": f"Say {i}"}, {**SAY, "content": f"  {i}"}]} for i in range(60)]
    rows.insert(31, {"messages": CALLED, "tools": [TOOL]})
    file = tmp_path / "rows.jsonl"
    write_rows(file, rows)
    write_rows(tmp_path / "other.jsonl", [{"prompt": f"Say no {i}", "completion": "  no"} for i in range(4)])
    recipe = write_recipe(
        tmp_path / "recipe.yaml", base, file, data={"validation": str(tmp_path / "other.jsonl"), "test_share": 0.1},
        task={"name": "causal_lm", "max_length": 800, "max_new_tokens": 4, "generate_rows": 4},
        train={"epochs": 1, "batch_size": 16},
    )  # fmt: skip
    assert cli.run(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    unanswered = tmp_path / "unanswered.jsonl"
    write_rows(unanswered, [{"messages": CALLED[:3], "tools": [TOOL]}, rows[0]])
    assert cli.run(["predict", str(tmp_path / "run"), str(unanswered)]) == 0
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [prediction["finish"] in ("stop", "length") for prediction in predictions] == [True, True]
    assert "unread" not in predictions[0]
