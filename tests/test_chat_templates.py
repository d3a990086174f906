"""Chat templates and tools, calls, weights and spaces: in the template's own form, or as plain text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_chat import CHATML, make_tokenizer, target_texts
from test_chat_files import ASK, CALL_TEXT, CALLED, SAY, TOOL, TOOLS_TEXT

from pefttools.data import chat, chat_parts, chat_template
from pefttools.errors import UserError
from pefttools.tasks.base import IGNORED
from pefttools.tasks.causal_lm import CausalLM
from pefttools.tasks.masked_lm import MaskedLM
from pefttools.tasks.multiple_choice import MultipleChoice
from pefttools.tasks.question_answering import QuestionAnswering
from pefttools.tasks.seq2seq import Seq2Seq
from pefttools.tasks.text_classification import TextClassification

TOOL_USE = (
    "{% if tools %}{{ 'TOOLS ' + (tools | tojson) + '<|im_end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ':' + m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ 'CALL ' + c['function']['name'] + (c['function']['arguments'] | tojson) }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}{{ '<|im_start|>assistant:' if add_generation_prompt else '' }}"
)
TEXT_ARGUMENTS = TOOL_USE.replace("(c['function']['arguments'] | tojson)", "c['function']['arguments']")
NINE = TOOL_USE.replace(
    "{{ 'CALL '", "{% if c['id'] | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}{{ 'CALL '"
)
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ '<|im_start|>' + m['role'] + ':' + m['content'] | trim"
    " + '<|im_end|>' }}{% endfor %}{{ '<|im_start|>assistant:' if add_generation_prompt else '' }}"
)
TOOLS = [{"type": "function", "function": TOOL}]
ROW: dict[str, Any] = {"messages": CALLED, "tools": [TOOL]}


def rendered(row: dict[str, Any], tokenizer: Any, **settings: Any) -> str:
    """A row as it is trained on, with targets in ⟦⟧."""
    task = CausalLM(chat=True, max_length=2000, **settings)
    columns = task.encode([task.read(row)], tokenizer)
    return task.shown({name: column[0] for name, column in columns.items()}, tokenizer).replace("<|im_end|>", "<e>")


def long_tokenizer(template: str | None) -> Any:
    tokenizer = make_tokenizer(template)
    tokenizer.model_max_length = 4000
    return tokenizer


@pytest.mark.parametrize(
    ("template", "arguments"),
    [
        (TOOL_USE, '{"town": "Łódź"}'),
        (TEXT_ARGUMENTS, '{"town": "Łódź"}'),
        (NINE, '{"town": "Łódź"}'),
    ],
)
def test_template_with_tools_renders_tools_and_calls(template: str, arguments: str) -> None:
    text = rendered(ROW, long_tokenizer(template)).replace("<|im_start|>", "")
    assert text == (
        f"TOOLS {json.dumps(TOOLS)}<e>user:Say 1<e>assistant:⟦CALL sky{arguments}<e>⟧"
        'tool:{"sky": "grey"}<e>assistant:⟦1.<e>⟧'
    )


def test_tool_use_template_is_chosen_for_chats_with_tools() -> None:
    tokenizer = long_tokenizer(None)
    tokenizer.chat_template = {"default": CHATML, "tool_use": TOOL_USE}
    assert rendered(ROW, tokenizer).startswith("TOOLS [")
    assert rendered({"messages": [ASK, SAY]}, tokenizer).startswith("<|im_start|>user\nSay 1<e>")


def test_turns_are_merged_for_a_template_that_requires_alternation() -> None:
    tokenizer = long_tokenizer(STRICT)
    row = {"messages": [ASK, {**ASK, "content": "Now."}, SAY, SAY]}
    assert rendered(row, tokenizer).replace("<|im_start|>", "") == "user:Say 1\n\nNow.<e>assistant:⟦1.\n\n1.<e>⟧"
    assert rendered({"messages": [ASK, CALLED[1], *CALLED[2:]]}, tokenizer).replace("<|im_start|>", "") == (
        f"user:Say 1<e>assistant:⟦{CALL_TEXT}<e>⟧"
        'user:<tool_response>\n{"sky": "grey"}\n</tool_response><e>assistant:⟦1.<e>⟧'
    )
    with pytest.raises(UserError, match="rejects a chat with the turns user, assistant, assistant: roles must"):
        rendered({"messages": [ASK, {**SAY, "weight": 0}, SAY]}, tokenizer)
    with pytest.raises(
        UserError, match="rejects a chat with the turns user, assistant, tool, assistant: roles must alternate"
    ):
        rendered(ROW, tokenizer)


def test_template_that_drops_a_turn_is_refused() -> None:
    silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    with pytest.raises(UserError, match=r"task.chat_template: does not render this system turn: 'Be brief.'"):
        rendered({"messages": [ASK, SAY]}, long_tokenizer(silent), system="Be brief.")


def test_a_template_that_trims_answers_is_reported() -> None:
    tokenizer, task = long_tokenizer(STRICT), CausalLM(chat=True)
    rows = [task.read({"prompt": "f", "completion": "    return\n"})]
    assert target_texts(rows[0]["messages"], tokenizer) == ["return<|im_end|>"]
    (remark,) = chat_template.remarks(rows, tokenizer, None, [])
    assert remark.startswith("the chat template strips white space around answers")
    assert chat_template.remarks(rows, long_tokenizer(CHATML), None, []) == []


@pytest.mark.parametrize("own", [CHATML, None, TOOL_USE, STRICT])
def test_exported_template_gives_the_prompt_tokens_of_training_with_tools(own: str | None) -> None:
    """The template is the one that artifacts contain."""
    row = {"messages": CALLED[:3], **({} if own == STRICT else {"tools": [TOOL]})}
    tokenizer = long_tokenizer(own)
    parts: Any = tuple(sorted(chat_parts.parts_of(CALLED, row.get("tools"))))
    task = CausalLM(chat=True, parts=parts)
    other = long_tokenizer(task.generation_settings(tokenizer).chat_template)
    messages = task.read_unlabeled(row)["messages"]
    tools = TOOLS if "tools" in row else None
    ids = other.apply_chat_template(messages, tools=tools, add_generation_prompt=True)["input_ids"]
    assert [ids] == task.prompts([task.read_unlabeled(row)], tokenizer)
    null = [{**m, "content": m["content"] or None} for m in messages]  # as servers send it
    if own in (CHATML, None):
        assert ids == other.apply_chat_template(null, tools=tools, add_generation_prompt=True)["input_ids"]
        assert TOOLS_TEXT in other.decode(ids)
    assert task.generation_settings(other) == task.generation_settings(tokenizer)


def test_turns_of_weight_zero_are_never_targets() -> None:
    tokenizer = long_tokenizer(CHATML)
    row = {"messages": [ASK, {**SAY, "content": "WRONG", "weight": 0}, ASK, SAY]}
    user, turn = "<|im_start|>user\nSay 1<e>\n", "<|im_start|>assistant\n"
    assert rendered(row, tokenizer) == f"{user}{turn}WRONG<e>\n{user}{turn}⟦1.<e>⟧\n"
    assert rendered(row, tokenizer, train_on="all").count("WRONG<e>") == 1
    assert "⟧WRONG<e>" in rendered(row, tokenizer, train_on="all")


def test_packed_labels_are_those_of_single_rows() -> None:
    tokenizer, task = long_tokenizer(CHATML), CausalLM(chat=True, packing=True, max_length=3000)
    rows = [ROW, {"messages": [ASK, {**SAY, "weight": 0}, ASK, SAY]}, {"prompt": "f", "completion": "  x\n"}]
    columns = task.encode([task.read(row) for row in rows], tokenizer)
    single, packed = task.collate(columns, tokenizer, 1), task.collate_training(columns, tokenizer, 1)
    assert len(packed["input_ids"]) == 1

    def pairs(batch: Any) -> list[list[tuple[int, int]]]:
        """Pairs of token and label of every packed row; a row starts where `position_ids` is 0."""
        ids, labels = batch["input_ids"].flatten().tolist(), batch["labels"].flatten().tolist()
        positions = batch["position_ids"].flatten().tolist()
        starts = [i for i, position in enumerate(positions) if position == 0]
        edges = zip(starts, [*starts[1:], len(ids)], strict=True)
        return sorted(list(zip(ids[a:b], labels[a:b], strict=True)) for a, b in edges)

    lengths = [len(ids) for ids in columns["input_ids"]]
    lines = zip(single["input_ids"].tolist(), single["labels"].tolist(), lengths, strict=True)
    assert pairs(packed) == sorted(list(zip(ids[:n], labels[:n], strict=True)) for ids, labels, n in lines)
    answers = [tokenizer.decode([label for label in labels if label != IGNORED]) for labels in columns["labels"]]
    assert answers == [f"{CALL_TEXT}<|im_end|>1.<|im_end|>", "1.<|im_end|>", "  x\n<|im_end|>"]


def test_prompt_and_answer_are_tokenized_separately() -> None:
    """The prompt equals that of generation even if the tokenizer would merge its end with the answer."""
    from tokenizers import Tokenizer

    tokenizer = long_tokenizer(CHATML)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [["Ċ", "Ġ"]]
    spec["model"]["merges"] = merges
    spec["model"]["vocab"] |= {"".join(pair): len(spec["model"]["vocab"]) + i for i, pair in enumerate(merges)}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(spec))
    assert tokenizer.tokenize("a\n  b") == ["a", "ĊĠ", "Ġ", "b"]
    task = CausalLM(chat=True)
    turns = [{**SAY, "content": "  x\n  y"}, ASK, {**SAY, "content": "  z"}]
    row = task.read({"messages": [ASK, *turns]})
    columns, (prompt,) = task.encode([row], tokenizer), task.prompts([row], tokenizer)
    assert columns["input_ids"][0][: len(prompt)] == prompt
    shown = task.shown({name: column[0] for name, column in columns.items()}, tokenizer)
    assert "assistant\n⟦  x\n  y<|im_end|>⟧" in shown
    assert "assistant\n⟦  z<|im_end|>⟧" in shown


def test_generated_spaces_are_kept_and_ignored_by_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from pefttools.tasks import _generation

    spaced = CHATML.replace("+ m['content'] +", "+ (' ' if m['role'] == 'assistant' else '') + m['content'] +")
    task, tokenizer = CausalLM(chat=True), long_tokenizer(spaced)
    made = [(0, _generation.Generated("     return\n", "stop", 4))]
    monkeypatch.setattr(_generation, "generate", lambda *_: iter(made))
    rows: Any = [task.read({"prompt": "f", "completion": "    return\n"})]
    ((_, prediction),) = task.generate(None, rows, tokenizer)  # type: ignore[arg-type]
    assert prediction["prediction"] == "    return\n" == task.reference(rows[0])
    assert task.metrics([prediction], ["return"])["exact_match"] == 1.0
    pair: Any = {"predictions": [{"prediction": " a b c d\n", "finish": "stop"}], "references": ["a b c d"]}
    assert Seq2Seq(bleu_tokenizer="13a").metrics(*pair.values())["bleu"] == pytest.approx(1.0)


SPACED = "\n  two  words \n"


@pytest.mark.parametrize(
    ("task", "values", "fields"),
    [
        (TextClassification(), {"text": SPACED, "text_pair": SPACED, "label": " a "}, ("text", "text_pair")),
        (MaskedLM(), {"text": SPACED}, ("text",)),
        (Seq2Seq(), {"source": SPACED, "target": SPACED}, ("source", "target")),
        (CausalLM(), {"text": SPACED}, ("text",)),
        (CausalLM(), {"prompt": "a", "completion": SPACED}, ("completion",)),
        (QuestionAnswering(), {"context": SPACED, "question": SPACED}, ("context", "question")),
        (MultipleChoice(), {"text": SPACED, "choices": ["x ", " y"], "label": "y"}, ("text",)),
    ],
)
def test_reading_keeps_spaces_and_refuses_blank_text(
    task: Any, values: dict[str, Any], fields: tuple[str, ...]
) -> None:
    row = task.read(values)
    assert {row[field] for field in fields} == {SPACED}
    if "choices" in row:
        assert (row["choices"], row["label"]) == (["x ", " y"], 1)
    first = next(iter(values))
    with pytest.raises(ValueError, match=f"has no {first}|empty text"):
        task.read({**values, first: " \n"})


def test_answers_are_found_in_a_context_that_begins_with_spaces() -> None:
    row = QuestionAnswering().read(
        {"context": SPACED, "question": "?", "answers": {"text": ["words"], "answer_start": [SPACED.index("words")]}}
    )
    assert row["answers"] == [{"text": "words", "answer_start": SPACED.index("words")}]


def test_reading_a_chat_is_idempotent() -> None:
    messages = chat.read_chat(ROW)
    assert messages is not None
    assert chat.read_chat({"messages": messages}) == messages
