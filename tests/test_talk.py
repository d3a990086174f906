"""`chat`: a conversation in the terminal, with the base next to the trained model."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_runs import SampleRuns

from pefttools import cli
from pefttools.errors import UserError
from pefttools.inference.conversation import Reply, Sampling, _before_stop, _without, reply
from pefttools.inference.predictor import load_predictor


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Path:
    return SampleRuns(tmp_path_factory, bases)("causal_lm")


@pytest.fixture
def say(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Lines of a conversation and options -> exit code, what is shown, and messages."""

    def talk(text: str, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code = cli.run(["chat", str(run), *options])
        captured = capsys.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return talk


@pytest.mark.slow
def test_replies_follow_the_history(run: Path, say: Callable[..., tuple[int, str, str]]) -> None:
    predictor = load_predictor(run, "fp32")
    messages = [{"role": "user", "content": "red apple"}]
    first = "".join(reply(predictor, messages, Sampling(max_tokens=4)))
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "saw"}]
    second = "".join(reply(predictor, messages, Sampling(max_tokens=4)))
    alone = "".join(reply(predictor, messages[2:], Sampling(max_tokens=4)))
    code, out, err = say("red apple\nsaw\n/reset\nsaw\n", "--max-tokens", "4")
    assert code == 0, err
    shown = [line.removesuffix(" [cut: --max-tokens]") for line in out.splitlines()]
    assert shown == [first, second, alone]


@pytest.mark.slow
def test_the_base_replies_first(say: Callable[..., tuple[int, str, str]]) -> None:
    """Both models are sent the user's messages, and the trained one replies as it does alone."""
    code, out, err = say("red apple\nsaw\n", "--against", "base", "--max-tokens", "4")
    assert code == 0, err
    assert [line.partition("]")[0] for line in out.splitlines()] == ["[base", "[run"] * 2
    alone = say("red apple\nsaw\n", "--max-tokens", "4")[1].splitlines()
    assert [line.removeprefix("[run] ") for line in out.splitlines()[1::2]] == alone


@pytest.mark.slow
def test_commands_and_mistakes(say: Callable[..., tuple[int, str, str]], finished_run: Path) -> None:
    code, _, err = say("/temperature hot\n/top-p 3\n/max-tokens 2\n/what\n/system be brief\n/quit\napple\n")
    assert code == 0
    assert "'hot' is not a number" in err
    assert "/top-p: must be above 0 and at most 1" in err
    assert "is no command; there are /reset" in err
    assert say("", "--temperature", "-1")[0] == 2
    assert cli.run(["chat", str(finished_run)]) == 2


@pytest.mark.slow
def test_sampling_is_repeatable_and_greedy_is_likeliest(run: Path) -> None:
    predictor = load_predictor(run, "fp32")
    messages = [{"role": "user", "content": "red apple"}]
    sampled = [
        "".join(reply(predictor, messages, Sampling(temperature=2.0, seed=seed, max_tokens=12))) for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    cold = Sampling(temperature=2.0, top_p=1e-6, max_tokens=12)
    assert "".join(reply(predictor, messages, cold)) == "".join(
        reply(predictor, messages, Sampling(temperature=0.0, max_tokens=12))
    )
    found = reply(predictor, messages, Sampling(max_tokens=3))
    list(found)
    assert found.tokens <= 3
    assert (found.finish == "length") == (found.tokens == 3) or found.finish == "stop"


@pytest.mark.slow
def test_messages_that_cannot_be_answered(run: Path) -> None:
    predictor = load_predictor(run, "fp32")
    said = [{"role": "user", "content": "red apple"}, {"role": "assistant", "content": "apple"}]
    with pytest.raises(UserError, match="the last one must be the user's"):
        reply(predictor, said)
    with pytest.raises(UserError, match="leave no room for a reply"):
        reply(predictor, [{"role": "user", "content": "apple " * 100}])
    with pytest.raises(UserError, match="has no content"):
        reply(predictor, [{"role": "user", "content": ""}])


@pytest.mark.parametrize(
    ("pieces", "before", "after", "text"),
    [
        (["<th", "ink></think>", "\n\nyes", "<end>"], "<think></think>\n\n", "<end>", "yes"),
        (["<thi", "nking about it"], "<think></think>\n\n", "", "<thinking about it"),
        ([" ", "yes"], " ", "", "yes"),
        (["yes"], "", "", "yes"),
        (["<th"], "<think>", "", "<th"),
        ([], "<think>", "", ""),
    ],
)
def test_what_templates_write_around_answers_is_not_shown(
    pieces: list[str], before: str, after: str, text: str
) -> None:
    assert "".join(_without(iter(pieces), before, after)) == text


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "finish"),
    [
        (["ab", "c", "def"], ("cd",), "ab", "stop"),
        (["ab", "c"], ("cd",), "abc", "length"),
        (["abc"], (), "abc", "length"),
        (["a", "b", "c"], ("b", "c"), "a", "stop"),
        (["xEN", "Dy"], ("END",), "x", "stop"),
    ],
)
def test_stop_texts_are_not_shown(pieces: list[str], stop: tuple[str, ...], text: str, finish: str) -> None:
    found = Reply(iter(()), 0, finish="length")
    assert "".join(_before_stop(iter(pieces), stop, found)) == text
    assert found.finish == finish
