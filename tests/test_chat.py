"""Chats: every format is read, invalid chats are refused, and exactly the answers are targets."""

from __future__ import annotations

from typing import Any

import pytest

from pefttools.data import chat, chat_template, chat_tokens, packing
from pefttools.data.splitting import LeftOut
from pefttools.errors import UserError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ m['role'] + ': ' }}"
    "{{ m['content'].split('</think>')[-1] if not loop.last and m['role'] == 'assistant' else m['content'] }}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TWO_TURNS = [
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "In a box."},
    {"role": "user", "content": "你好吗 😀"},
    {"role": "assistant", "content": "很好\n\n你呢 🙂"},
]


def make_tokenizer(template: str | None = CHATML, begins: bool = False) -> Any:
    """One token a byte, and three special ones; `begins` puts one before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if begins:
        inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    names = {"pad_token": "<pad>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, **names)
    tokenizer.chat_template = template
    return tokenizer


def target_texts(messages: list[chat.Message], tokenizer: Any, template: str | None = None) -> list[str]:
    """The text of every run of target tokens."""
    marked = chat_template.marked(messages, tokenizer, template)
    ((ids, offsets),) = chat_tokens.tokens([marked.text], tokenizer)
    chosen, _ = chat_tokens.supervised(marked, ids, offsets, frozenset(tokenizer.all_special_ids))
    stretches: list[list[int]] = [[]]
    for token, is_target in zip(ids, chosen, strict=True):
        if is_target:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


def test_every_chat_format_gives_the_same_messages() -> None:
    question, answer = "Add 1 and 2.", "3"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for values in (
        {"messages": turns},
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
        {"instruction": question, "input": "", "output": answer},
        {"instruction": question, "input": None, "output": answer, "text": "Below is an instruction …"},
        {"prompt": question, "completion": answer},
        {"prompt": turns[:1], "completion": turns[1:]},
    ):
        assert chat.read_chat(values) == turns
    assert chat.read_chat({"text": "plain"}) is None


def test_alpacas_input_follows_its_instruction() -> None:
    messages = chat.read_chat({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert messages is not None
    assert messages[0]["content"] == "Add.\n\n1 2"


def test_system_of_the_row_comes_before_that_of_the_setting() -> None:
    values: dict[str, Any] = {"prompt": "a", "completion": "b"}
    roles = [chat.read_chat({**values, **more}, system="default") for more in ({}, {"system": "own"})]
    assert [messages[0]["content"] for messages in roles if messages] == ["default", "own"]
    own = [{"role": "system", "content": "first"}, *TWO_TURNS]
    assert chat.read_chat({"messages": own}, system="default") == own


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"messages": [{"role": "narrator", "content": "x"}]},
            "turn 1 has the role 'narrator'; known roles are",
        ),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": " "}]}, "no value in turn 2"),
        ({"messages": "hello"}, "has messages that are not a list of {role, content} or {from, value}: 'hello'"),
        ({"messages": []}, "has messages that are not a list"),
        ({"instruction": "x", "output": None}, "has no output"),
        ({"prompt": True, "completion": "x"}, "has a prompt that is not text: True"),
    ],
)
def test_invalid_chat_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^has ") as caught:
        chat.read_chat(values)
    assert message in str(caught.value)
    assert not isinstance(caught.value, LeftOut)


def test_chats_without_an_answer_are_left_out_except_for_prediction() -> None:
    with pytest.raises(LeftOut, match="a chat without an answer"):
        chat.read_chat({"messages": [*TWO_TURNS[:1], *TWO_TURNS[:1]]})
    with pytest.raises(LeftOut, match="a chat that does not begin with a user turn"):
        chat.read_chat({"messages": TWO_TURNS[1:]})
    assert chat.read_chat({"messages": TWO_TURNS[:3]}, unanswered=True) == TWO_TURNS[:3]
    assert chat.question(TWO_TURNS) == chat.question(TWO_TURNS[:3]) == TWO_TURNS[:3]


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (None, "<|im_end|>"), (BRACKETS, "<|im_end|>")])
def test_targets_are_the_answers_and_their_end_tokens(template: str | None, end: str) -> None:
    space = " " if template == BRACKETS else ""
    expected = [f"{space}In a box.{end}", f"{space}很好\n\n你呢 🙂{end}"]
    assert target_texts(TWO_TURNS, make_tokenizer(template)) == expected
    assert target_texts(TWO_TURNS, make_tokenizer(None), template) == expected
    assert not chat_template.marked(TWO_TURNS, make_tokenizer(template), None).rewritten


def test_plain_template_of_a_tokenizer_without_one() -> None:
    text = chat_template.rendered(TWO_TURNS[:3], make_tokenizer(None), None, ask=True)
    assert text == (
        "### User:\nWhere is it?\n\n### Assistant:\nIn a box.<|im_end|>\n\n### User:\n你好吗 😀\n\n### Assistant:\n"
    )


def test_template_that_rewrites_earlier_turns_has_targets_in_the_last_only() -> None:
    turns = [dict(turn) for turn in TWO_TURNS]
    turns[1]["content"] = "<think>hm</think>In a box."
    marked = chat_template.marked(turns, make_tokenizer(FORGETFUL), None)
    assert marked.rewritten
    assert target_texts(turns, make_tokenizer(FORGETFUL)) == ["很好\n\n你呢 🙂<|im_end|>"]


def test_targets_of_a_template_without_end_token_are_the_rendered_answers() -> None:
    bare = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    bare += "{{ 'assistant: ' if add_generation_prompt else '' }}"
    assert target_texts(TWO_TURNS, make_tokenizer(), bare) == ["In a box.\n", "很好\n\n你呢 🙂\n"]


def test_error_of_the_template_is_reported() -> None:
    picky = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    with pytest.raises(UserError, match=r"task.chat_template: rejects a chat with the turns system, user: no system"):
        chat_template.rendered([{"role": "system", "content": "x"}, TWO_TURNS[0]], make_tokenizer(), picky)
    with pytest.raises(UserError, match=r"task.chat_template: does not render this answer: 'In a box.'"):
        chat_template.marked(TWO_TURNS[:2], make_tokenizer(), "{{ messages[0]['content'] }}")


def test_bos_token_is_added_once() -> None:
    tokenizer = make_tokenizer(begins=True)
    rows = [ids for ids, _ in chat_tokens.tokens(["a", "<|im_start|>a"], tokenizer)]
    assert rows[0] == rows[1] == tokenizer("a")["input_ids"]
    assert [ids for ids, _ in chat_tokens.tokens(["a"], make_tokenizer())] == [rows[0][1:]]
    assert target_texts(TWO_TURNS, tokenizer, None) == ["In a box.<|im_end|>", "很好\n\n你呢 🙂<|im_end|>"]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize(("own", "template"), [(CHATML, None), (None, None), (CHATML, BRACKETS)])
def test_exported_chat_template_gives_the_prompt_tokens_of_training(
    own: str | None, template: str | None, begins: bool
) -> None:
    from pefttools.tasks.causal_lm import CausalLM

    tokenizer = make_tokenizer(own, begins)
    task = CausalLM(chat=True, chat_template=template, system='Say "{{hi}}",\n你好 😀.')
    settings = task.generation_settings(tokenizer)
    assert settings.stop_token_ids == (2,)
    other = make_tokenizer(settings.chat_template, begins)
    row = {"messages": TWO_TURNS[:1]}
    ids = other.apply_chat_template(row["messages"], add_generation_prompt=True)["input_ids"]
    assert [ids] == task.prompts([task.read_unlabeled(row)], tokenizer)
    assert task.with_values(chat_template=None).generation_settings(other).chat_template == settings.chat_template
    assert CausalLM(chat=False).generation_settings(tokenizer) == (None, (2,))


def test_first_fit_packing() -> None:
    assert packing.first_fit([3, 9, 4, 2, 6, 12], 10) == [[5], [1], [4, 2], [0, 3]]
    assert packing.first_fit([], 10) == []


def test_packed_rows_keep_their_positions_and_lose_their_first_target() -> None:
    columns = {"input_ids": [[5, 6, 7], [8, 9], [4, 4, 4, 4]], "labels": [[5, 6, 7], [-100, 9], [-100, -100, 4, 4]]}
    batch = packing.packed(columns, room=6, multiple=4, padding=0, ignored=-100)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[4, 4, 4, 4, 8, 9, 0, 0], [5, 6, 7, 0, 0, 0, 0, 0]],
        "labels": [[-100, -100, 4, 4, -100, 9, -100, -100], [-100, 6, 7, *[-100] * 5]],
        "position_ids": [[0, 1, 2, 3, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2, 3, 4]],
    }
