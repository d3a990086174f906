"""Causal language models: labels, loss, rows and settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from test_chat import CHATML, TWO_TURNS, make_tokenizer
from tiny_decoders import ROWS, encoded, loss_of, make_model

from pefttools.bases.loading import Base
from pefttools.data.encoding import encode
from pefttools.data.splitting import LeftOut, Splits
from pefttools.errors import UserError
from pefttools.settings import check
from pefttools.tasks.base import IGNORED
from pefttools.tasks.causal_lm import CausalLM

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it


def splits_of(rows: list[dict[str, Any]]) -> Splits:
    return Splits(rows, rows[:1], [])


def test_labels_are_the_completion_tokens() -> None:
    tokenizer, task = make_tokenizer(), CausalLM(chat=True)
    columns = encoded(task, [{"prompt": "ab", "completion": "cd"}], tokenizer)
    ((ids, labels),) = zip(columns["input_ids"], columns["labels"], strict=True)
    assert tokenizer.decode(ids) == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\ncd<|im_end|>\n"
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == "cd<|im_end|>"
    assert [label for label in labels if label != IGNORED] == ids[-4:-1]
    assert (columns["num_targets"], columns["cut"], columns["row"]) == ([3], [False], [0])
    every = encoded(task.with_values(train_on="all"), [{"prompt": "ab", "completion": "cd"}], tokenizer)
    assert every["labels"] == [[IGNORED, *ids[1:]]]
    assert every["num_targets"] == [len(ids) - 1]


def test_shown_marks_the_target_tokens() -> None:
    tokenizer, task = make_tokenizer(), CausalLM(chat=True)
    columns = encoded(task, [{"messages": TWO_TURNS}], tokenizer)
    assert task.shown({name: column[0] for name, column in columns.items()}, tokenizer) == (
        "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n⟦In a box.<|im_end|>⟧\n"
        "<|im_start|>user\n你好吗 😀<|im_end|>\n<|im_start|>assistant\n⟦很好\n\n你呢 🙂<|im_end|>⟧\n"
    )


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        ("end", "<|im_start|>user\nabcdefgh<|im_end|>\n<|im_start|>assistant\n⟦12⟧"),
        ("start", "\nabcdefgh<|im_end|>\n<|im_start|>assistant\n⟦12345<|im_end|>⟧\n"),
        ("question", "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n⟦12345<|im_end|>⟧\n"),
    ],
)
def test_chat_beyond_max_length_is_truncated_at_the_chosen_place(cut: Any, left: str) -> None:
    tokenizer = make_tokenizer()
    row = {"prompt": "abcdefgh", "completion": "12345"}
    whole = len(encoded(CausalLM(), [row], tokenizer)["input_ids"][0])
    task = CausalLM(max_length=whole - (6 if cut == "question" else 5), cut=cut, chat=True)
    columns = encoded(task, [row], tokenizer)
    assert columns["cut"] == [True]
    assert len(columns["input_ids"][0]) == task.max_length
    assert task.shown({name: column[0] for name, column in columns.items()}, tokenizer) == left


def test_long_text_is_split_into_windows_without_losing_targets() -> None:
    tokenizer, task = make_tokenizer(), CausalLM(max_length=8, chat=False)
    rows = [{"text": "abcdefghijklmnopq"}, {"text": "xy"}]
    columns = encoded(task, rows, tokenizer)
    assert [tokenizer.decode(ids) for ids in columns["input_ids"]] == [
        "abcdefgh", "hijklmno", "opq<|im_end|>", "xy<|im_end|>",
    ]  # fmt: skip
    assert columns["row"] == [0, 0, 0, 1]
    assert columns["num_targets"] == [7, 7, 3, 2]
    assert not any(columns["cut"])
    targets = [tokenizer.decode([i for i in labels if i != IGNORED]) for labels in columns["labels"]]
    assert targets == ["bcdefgh", "ijklmno", "pq<|im_end|>", "y<|im_end|>"]
    exact = encoded(task, [{"text": "abcdefg"}, {"text": "abcdefgh"}], tokenizer)  # with its end: 8 and 9 tokens
    assert exact["num_targets"] == [7, 7, 1]


def test_loss_and_predictions_are_those_of_transformers() -> None:
    model, tokenizer, task = make_model("llama"), make_tokenizer(), CausalLM(chat=True)
    columns = encoded(task, ROWS, tokenizer)
    batch = task.collate(columns, tokenizer, 8)
    outputs = model(**task.inputs_of(batch))
    predictions = task.predict(outputs, batch)
    mean = model(**task.inputs_of(batch), labels=batch["labels"]).loss.item()
    total = sum(columns["num_targets"])
    assert task.loss(outputs, batch).item() == pytest.approx(mean * total, rel=1e-5)
    assert [p["num_targets"] for p in predictions] == columns["num_targets"] == [2, 3, 12, 2]
    assert sum(p["nll"] for p in predictions) == pytest.approx(mean * total, rel=1e-5)
    assert task.metrics(predictions, [row["completion"] for row in ROWS]) == {
        "perplexity": pytest.approx(math.exp(mean), rel=1e-5)
    }


def test_losses_of_the_windows_of_a_text_add_up() -> None:
    task = CausalLM(chat=False)
    predictions = task.aggregate({}, [{}, {}], [{"nll": 2.0, "num_targets": 3}, {"nll": 1.0, "num_targets": 1}])
    assert predictions == {"nll": 3.0, "num_targets": 4}


def test_virtual_tokens_are_not_targets() -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(make_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    tokenizer, task = make_tokenizer(), CausalLM(chat=True)
    batch = task.collate(encoded(task, ROWS, tokenizer), tokenizer, 8)
    alone = [task.collate(encoded(task, [row], tokenizer), tokenizer, 1) for row in ROWS]
    single = sum(model(**one).loss.item() * (one["labels"][:, 1:] != IGNORED).sum().item() for one in alone)
    assert loss_of(task, model, batch).item() == pytest.approx(single, rel=1e-5)


def test_rows_are_read_by_their_columns() -> None:
    task = CausalLM()
    row = task.read({"prompt": "a", "completion": "b", "id": 7})
    assert row == {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "prompt": "user: a", "completion": "b", "id": "7",
    }  # fmt: skip
    assert task.reference(row) == "b"
    assert task.read({"text": " a "}) == {"text": " a ", "prompt": " a "}
    with pytest.raises(ValueError, match="has no column 'messages', 'conversations' or 'text'"):
        task.read({"id": "1"})
    with pytest.raises(LeftOut, match="without an answer"):
        task.read({"messages": TWO_TURNS[:1]})


def test_rows_to_predict_need_no_completion() -> None:
    task = CausalLM(chat=True, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    for row in (
        task.read({"prompt": "a"}),
        task.read({"instruction": "a", "input": ""}),
        task.read({"text": "a"}),
        task.read_unlabeled({"messages": [{"role": "user", "content": "a"}]}),
    ):
        assert row["messages"] == messages
        assert task.reference(row) is None
    assert task.with_values(chat=False).read({"text": "a"}) == {"text": "a", "prompt": "a"}


def test_fit_detects_chat_or_text_and_refuses_rows_without_completion() -> None:
    task = CausalLM()
    chats, texts = [task.read(row) for row in ROWS], [task.read({"text": "plain"})]
    assert task.fit(splits_of(chats)).chat is True
    assert task.fit(splits_of(texts)).chat is False
    assert task.fit(splits_of(texts)).num_generated(10) == 0
    assert task.fit(splits_of(chats)).num_generated(100) == 64
    with pytest.raises(UserError, match=r"data.train: some rows are chats and some are plain text"):
        task.fit(splits_of([*chats, *texts]))
    unanswered = [task.read({"prompt": "a"})]
    with pytest.raises(UserError, match=r"data.train: 1 of 5 rows have no answer to learn from"):
        task.fit(splits_of([*chats, *unanswered]))
    with pytest.raises(UserError, match=r"data.test: 1 of 1 rows have no answer"):
        task.check_scorable("data.test", unanswered)


def test_remarks_warn_when_no_end_of_text_is_trained() -> None:
    task = CausalLM(chat=True)
    splits = splits_of([task.read(row) for row in ROWS])
    assert task.remarks(splits, make_tokenizer()) == []
    bare = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    (remark,) = task.with_values(chat_template=bare).remarks(splits, make_tokenizer())
    assert remark.startswith("the model does not learn to end answers: the chat template writes no special token")
    remarks = task.with_values(max_length=20).remarks(splits, make_tokenizer())
    assert remarks[0].startswith("the model does not learn to end answers: in every row")
    assert remarks[1].startswith("4 of 4 rows are truncated before their answer begins")


def test_rows_without_targets_are_refused() -> None:
    task = CausalLM(chat=True, max_length=20)
    base = Base(make_model("llama"), make_tokenizer(), (), None, "made", "0" * 64, Path())
    with pytest.raises(UserError, match=r"data.train: none of its 4 rows has a target within the first 20 tokens"):
        encode([task.read(row) for row in ROWS], task, base, "train")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"answer_pattern": "#### .+"},
            "task.answer_pattern: has no group to compare, such as (.+), got '#### .+'",
        ),
        ({"answer_pattern": "(.+"}, "task.answer_pattern: is not a regular expression"),
        ({"chat_template": "no-such.jinja"}, "task.chat_template: is neither a Jinja template nor an existing file"),
        ({"cut": "middle"}, "task.cut: 'middle' is not allowed. Allowed: end, start, question"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, Any], message: str) -> None:
    task, problems = check(CausalLM, values, "task")
    assert task is None
    assert problems[0].startswith(message)


def test_template_file_becomes_part_of_the_recipe(tmp_path: Any) -> None:
    file = tmp_path / "chatml.jinja"
    file.write_text(CHATML)
    assert CausalLM(chat_template=str(file)).chat_template == CHATML


def test_exact_match_compares_what_the_pattern_finds() -> None:
    task = CausalLM(answer_pattern="#### (.+)", scores=("chrf",), chat=True)
    texts = ["2+2=4\n#### 3\n#### 4 ", "5", "#### 7", "x"]
    predictions = [{"prediction": text, "finish": "stop"} for text in texts]
    scores = task.metrics([*predictions, {"nll": 1.0, "num_targets": 1}], ["#### 4", "#### 5", "#### 7", "y", "z"])
    assert scores["exact_match"] == 0.5
    assert {*scores} == {"perplexity", "chrf", "exact_match", "stopped"}
