"""The server: answers equal those of `predict`, whoever else asks, and bad requests hurt nobody else."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import KEYS, WORDS
from http_server import Server, serving
from predict_command import Predict
from sample_runs import SampleRuns

from pefttools import cli
from pefttools.errors import UserError
from pefttools.serving.batching import Batcher
from pefttools.serving.limits import Limits, Overloaded
from pefttools.serving.models import Models
from pefttools.tasks import tasks

TEXTS = [f"{a} {b} {word}" for a, b in zip(WORDS, WORDS[7:], strict=False) for word in ("apple", "saw", "red")]


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> SampleRuns:
    return SampleRuns(tmp_path_factory, bases)


@pytest.fixture(scope="module")
def models(finished_run: Path) -> Models:
    return Models.load([finished_run], "fp32", embeds=True)


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[Server]:
    with serving(models, Limits(rows=200, body_bytes=100_000, row_characters=50_000, timeout=20)) as found:
        yield found


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str]) -> Predict:
    return Predict(capsys)


def is_close(found: Any, expected: Any) -> bool:
    """Whether two predictions are equal, their numbers up to rounding."""
    if isinstance(expected, dict):
        return {*found} == {*expected} and all(is_close(found[name], value) for name, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(is_close, found, expected))
    return found == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.names())
def test_every_task_answers_like_predict(name: str, sample_run: SampleRuns, predict: Predict, tmp_path: Path) -> None:
    run, cls = sample_run(name), tasks.get(name)
    rows = [{field: value for field, value in row.items() if field not in cls.targets} for row in cls.samples]
    if name == "masked_lm":
        rows = [{"text": "word1 [MASK] word2"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, lines, err = predict(run, file, "--precision", "fp32")
    assert lines, err
    with serving(Models.load([run], "fp32")) as own:
        status, found = own.post("/predict", {"rows": rows})
    assert status == 200, found
    for line, one in zip(lines, found["predictions"], strict=True):
        assert is_close(one, {field: line[field] for field in one})


def test_many_clients_get_their_own_answers(server: Server, finished_run: Path, predict: Predict) -> None:
    words = [word for text in TEXTS for word in ("--text", text)]
    expected = {line["text"]: line for line in predict(finished_run, "--precision", "fp32", *words)[1]}

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(5):
            texts = draw.choices(TEXTS, k=draw.choice([1, 1, 1, 3, 40]))
            status, found = server.post("/predict", {"texts": texts})
            assert status == 200, found
            for text, one in zip(texts, found["predictions"], strict=True):
                assert is_close(one, {name: expected[text][name] for name in one}), text

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(32)))
    text = server("GET", "/metrics")[1]
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    passes, rows = float(values["pefttools_pass_rows_count"]), float(values["pefttools_rows_total"])
    assert rows / passes > 1.5  # rows of several requests were computed together
    assert float(values["pefttools_waiting_rows"]) == 0


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"txts": ["a"]}, 400, "did you mean 'texts'"),
        ({"texts": []}, 400, "there are none"),
        ({}, 400, "either rows or texts"),
        ({"texts": ["a"], "rows": [{"text": "a"}]}, 400, "either rows or texts"),
        ({"texts": "a"}, 400, "texts"),
        ({"texts": [1]}, 400, "texts"),
        ({"texts": ["a"], "model": "other"}, 400, "unknown model 'other'"),
        ({"texts": ["a"], "threshold": 2}, 400, "threshold: 2 is not above 0 and below 1"),
        ({"texts": ["a"], "top_k": 0}, 400, "at least 1"),
        ({"texts": ["a"], "error_rate": 0.1}, 400, "is not calibrated"),
        ({"rows": [{"sentence": "a"}]}, 400, "no column 'text'"),
        ({"texts": ["a"] * 201}, 413, "201 rows; at most 200"),
        ("{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        ("[1, 2]", 400, "the body must be a JSON object"),
        ("x" * 100_001, 413, "100,001 bytes; at most 100,000"),
        ({"texts": ["apple", "word " * 11_000]}, 413, "row 2 has 55,000 characters; at most 50,000"),
        ({"texts": ["a"], "top_k": True}, 400, "true is not allowed here, got"),
        ({"texts": ["a"], "top_k": 0}, 400, "top_k: 0 is not a number of classes"),
    ],
)
def test_bad_requests_are_refused(body: Any, status: int, message: str, server: Server) -> None:
    found = server.post("/predict", body)
    assert found[0] == status, found
    assert message in found[1]["error"]["message"]
    assert server.post("/predict", {"texts": ["apple"]})[0] == 200


def test_a_client_that_sends_too_much_can_read_why(server: Server) -> None:
    """A client of Python's own sends the whole body before it reads the answer."""
    for number in (2_000_000, 30_000_000):
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}/predict", b"x" * number)
        with pytest.raises(urllib.error.HTTPError) as found:
            urllib.request.urlopen(request)
        assert found.value.code == 413
        assert f"{number:,} bytes" in found.value.read().decode()


def test_texts_to_embed_are_never_cut(server: Server, models: Models) -> None:
    (limit,) = {
        min(p.task.max_length, p.tokenizer.model_max_length) for p in (o.predictor for o in models.served.values())
    }
    assert server.post("/v1/embeddings", {"input": "word1 " * (limit - 2)})[0] == 200
    status, found = server.post("/v1/embeddings", {"input": ["apple", "word1 " * limit]})
    assert status == 400
    assert f"text 2 has {limit + 2} tokens; the model reads at most {limit}" in found["error"]["message"]
    assert "text 1 is empty" in server.post("/v1/embeddings", {"input": "\u200b "})[1]["error"]["message"]


def test_invisible_texts_have_no_prediction(server: Server) -> None:
    found = server.post("/predict", {"texts": ["\u200b", "\x00", "apple"]})[1]["predictions"]
    assert [one.get("error") for one in found] == ["row 1 has no text", "row 2 has no text", None]


def test_the_pages_describe_errors(server: Server) -> None:
    pages = server("GET", "/openapi.json")[1]["paths"]["/predict"]["post"]["responses"]
    assert {"200", "400", "413", "503"} <= {*pages}


def test_bad_rows_do_not_hurt_others(server: Server) -> None:
    rows = [{"text": "apple"}, {"text": ""}, {"text": 3.5}, {"text": "saw", "id": 7}]
    status, found = server.post("/predict", {"rows": rows})
    assert status == 200
    assert [one.get("prediction") for one in found["predictions"]][::3] == ["fruit", "tool"]
    assert "row 2" in found["predictions"][1]["error"]
    assert server.post("/predict", {"texts": ["\ud800"]})[1]["predictions"][0]["error"]


def test_other_paths_and_content_types(server: Server) -> None:
    assert server("GET", "/nowhere")[0] == 404
    assert server("GET", "/predict")[0] == 405
    status, found = server.post("/predict", '{"texts": ["a"]}', content_type="text/plain")
    assert status == 415, found
    assert "application/json" in found["error"]["message"]
    assert server("GET", "/health")[1] == {"status": "ok", "models": ["run"]}
    assert server("GET", "/v1/models")[1]["data"][0]["task"] == "text_classification"
    text = server("GET", "/docs")[1]
    assert "https://" not in text  # the page needs no network
    assert {"/predict", "/v1/chat/completions", "/v1/embeddings"} <= {*server("GET", "/openapi.json")[1]["paths"]}


def test_a_key_is_needed(models: Models) -> None:
    with serving(models, key="secret") as own:
        assert own.post("/predict", {"texts": ["apple"]})[0] == 401
        assert own.post("/predict", {"texts": ["apple"]}, authorization="Bearer wrong")[0] == 401
        assert own.post("/predict", {"texts": ["apple"]}, authorization="Bearer secret")[0] == 200
        assert own("GET", "/metrics")[0] == 401
        assert own("GET", "/health")[0] == 200


def test_slow_and_cut_connections(models: Models) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    with serving(models, Limits(timeout=1.0, body_bytes=1000)) as own:
        with own.open() as slow, own.open() as cut:
            slow.sendall(head + b'{"tex')
            cut.sendall(head + b'{"tex')
            cut.close()
            assert own.post("/predict", {"texts": ["apple"]})[0] == 200
            answer = slow.recv(1000)
        assert b" 408 " in answer
        assert b"did not arrive within 1 seconds" in answer
        with own.open() as chunked:  # without an announced length
            chunked.sendall(head.replace(b"Content-Length: 50", b"Transfer-Encoding: chunked"))
            for _ in range(11):
                chunked.sendall(b"64\r\n" + b" " * 100 + b"\r\n")
            assert b" 413 " in chunked.recv(1000)
        assert own.post("/predict", {"texts": ["apple"]})[0] == 200
        values = own("GET", "/metrics")[1]
        assert 'status="413"' in values
        assert 'status="408"' in values


def test_too_many_rows_are_refused_until_there_is_room(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Models.compute

    def slowly(self: Models, name: str, rows: Sequence[Any]) -> list[Any]:
        time.sleep(0.3)
        return plain(self, name, rows)

    monkeypatch.setattr(Models, "compute", slowly)
    with serving(models, Limits(waiting=8, pass_rows=4)) as own, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: own("POST", "/predict", {"texts": ["apple"] * 4}), range(12)))
        assert {status for status, _, _ in found} == {200, 503}
        for status, content, headers in found:
            if status == 503:
                assert int(headers["retry-after"]) >= 1
                assert "overloaded" in content["error"]["message"]
            else:
                assert [one["prediction"] for one in content["predictions"]] == ["fruit"] * 4
        time.sleep(0.5)
        assert own.post("/predict", {"texts": ["apple"]})[0] == 200
    with serving(models, Limits(timeout=0.1)) as own:
        status, content = own.post("/predict", {"texts": ["apple"]})
        assert (status, "took too long" in content["error"]["message"]) == (504, True)


def test_embeddings_are_the_mean_of_plain_transformers(
    server: Server, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    import transformers

    assert cli.run(["export", str(finished_run), "--to", "merged", "--out", str(tmp_path / "merged")]) == 0
    model = transformers.AutoModel.from_pretrained(tmp_path / "merged").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    texts = ["apple", "word1 word2 saw word3", "red"]
    status, found = server.post("/v1/embeddings", {"input": texts})
    assert status == 200
    for text, one in zip(texts, found["data"], strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert one["embedding"] == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
    alone = server.post("/v1/embeddings", {"input": "apple"})[1]["data"][0]
    assert is_close(alone, found["data"][0])
    packed = server.post("/v1/embeddings", {"input": "apple", "encoding_format": "base64"})[1]["data"][0]["embedding"]
    numbers = base64.b64decode(packed)
    assert struct.unpack(f"<{len(numbers) // 4}f", numbers) == pytest.approx(alone["embedding"], abs=1e-6)
    with serving(Models.load([finished_run], "fp32")) as own:
        assert own.post("/v1/embeddings", {"input": "a"})[0] == 404
    capsys.readouterr()


@pytest.mark.slow
def test_replies_whole_and_in_pieces(sample_run: SampleRuns, predict: Predict, tmp_path: Path) -> None:
    run = sample_run("causal_lm")
    messages = [{"role": "user", "content": "red apple"}]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": messages}) + "\n")
    _, (line,), _ = predict(run, file, "--precision", "fp32")
    with serving(Models.load([run], "fp32")) as own:
        status, whole = own.post("/v1/chat/completions", {"messages": messages})
        assert status == 200, whole
        choice = whole["choices"][0]
        assert choice["message"]["content"] == line["prediction"]
        assert choice["finish_reason"] == line["finish"]
        assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]
        status, text = own.post("/v1/chat/completions", {"messages": messages, "stream": True})
        events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
        assert events[-1] == "[DONE]"
        parts = [json.loads(event)["choices"][0] for event in events[:-1]]
        assert "".join(part["delta"].get("content", "") for part in parts) == line["prediction"]
        assert parts[-1]["finish_reason"] == line["finish"]
        for body, message in (
            ({"messages": []}, "messages: is empty"),
            ({"messages": messages, "frequency_penalty": 0.5}, "frequency_penalty"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
            ({"messages": messages, "temperature": -1}, "temperature: must be at least 0"),
            ({"messages": messages, "n": 2}, "n: "),
            ({"messages": [{"role": "robot", "content": "a"}]}, "robot"),
        ):
            status, found = own.post("/v1/chat/completions", body)
            assert status == 400, found
            assert message in found["error"]["message"]
        parts = [{"type": "text", "text": "red "}, {"type": "text", "text": "apple"}]
        usual = {"frequency_penalty": 0, "presence_penalty": 0, "stream_options": {"include_usage": False}}
        again = own.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}], **usual})[1]
        assert again["choices"] == whole["choices"]
        sampled = [
            own.post("/v1/chat/completions", {"messages": messages, "temperature": 1.5, "seed": 3, "max_tokens": 5})[1]
            for _ in range(2)
        ]
        assert sampled[0]["choices"] == sampled[1]["choices"]


def test_a_classifier_does_not_chat(server: Server) -> None:
    status, found = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
    assert status == 400
    assert "cannot hold a conversation" in found["error"]["message"]


def test_runs_on_one_base_are_served_by_name(finished_run: Path, tmp_path: Path, predict: Predict) -> None:
    other = Path(shutil.copytree(finished_run, tmp_path / "other"))
    with serving(Models.load([finished_run, other], "fp32")) as own:
        status, found = own.post("/predict", {"texts": ["apple"]})
        assert (status, "is required" in found["error"]["message"]) == (400, True)
        answers = [own.post("/predict", {"texts": ["apple"], "model": name})[1] for name in ("run", "other")]
    assert [one["model"] for one in answers] == ["run", "other"]
    assert answers[0]["predictions"] == answers[1]["predictions"]
    same = Path(shutil.copytree(finished_run, tmp_path / "deeper" / "run"))
    with pytest.raises(UserError, match="run names several folders"):
        Models.load([finished_run, same], "fp32")


def test_a_taken_port_and_other_mistakes(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, message in (
            ([str(finished_run), "--port", port], "cannot be used"),
            ([], "name at least one run"),
            ([str(finished_run), "--timeout", "0"], "--timeout: must be above 0"),
            (["nowhere", "--port", "0"], "there is no run here"),
            ([str(finished_run), "--port", "99999"], "99999 is not a number from 0 to 65535"),
            ([str(finished_run), "--host", "no.such.host.invalid"], "--host: no.such.host.invalid is no address"),
            ([str(finished_run), f"{finished_run}/", "--port", "0"], "is named twice"),
            ([str(finished_run / "adapter" / "adapter_config.json"), "--port", "0"], "name that folder"),
        ):
            assert cli.run(["serve", *words]) == 2
            assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
def test_sigterm_answers_what_was_accepted(finished_run: Path) -> None:
    words = [sys.executable, "-m", "pefttools", "serve", str(finished_run), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        address = next(line for line in process.stderr if "serving" in line)
        own = Server(int(address.partition("127.0.0.1:")[2].partition(";")[0]))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                own("GET", "/health")
                break
            except OSError:
                time.sleep(0.05)

        def ask(_: int) -> int | None:
            try:
                return own.post("/predict", {"texts": TEXTS[:50]})[0]
            except OSError:  # not accepted any more
                return None

        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(ask, number) for number in range(64)]
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            found = [future.result() for future in futures]
        assert process.wait(60) == 0
        assert "all accepted requests were answered" in process.stderr.read()
    assert 200 in found
    assert {*found} <= {200, None, 503}


def run_batcher(limits: Limits, use: Callable[[Batcher], Any]) -> tuple[Any, list[tuple[str, list[Any]]]]:
    """The result of `use`, and the model and the rows of every pass."""
    passes: list[tuple[str, list[Any]]] = []

    def compute(model: str, rows: Sequence[Any]) -> list[Any]:
        passes.append((model, [*rows]))
        time.sleep(0.02)
        if "bad" in rows:
            raise ValueError("bad row")
        return [f"{model} {row}" for row in rows]

    async def main() -> Any:
        batcher = Batcher(compute, limits, lambda rows, seconds: None)
        batcher.start()
        try:
            return await use(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(main()), passes


def test_rows_of_one_model_are_computed_together() -> None:
    async def use(batcher: Batcher) -> Any:
        asked = [batcher.submit("ab"[i % 2], [i, i + 100]) for i in range(6)]
        return await asyncio.gather(*asked)

    found, passes = run_batcher(Limits(pass_rows=100), use)
    assert found == [[f"{'ab'[i % 2]} {i}", f"{'ab'[i % 2]} {i + 100}"] for i in range(6)]
    assert all(len({model for model, _ in passes[i : i + 1]}) == 1 for i in range(len(passes)))
    assert sum(len(rows) for _, rows in passes) == 12


def test_a_long_request_does_not_block_a_short_one() -> None:
    async def use(batcher: Batcher) -> Any:
        long = asyncio.ensure_future(batcher.submit("a", [*range(40)]))
        await asyncio.sleep(0.01)
        short = asyncio.ensure_future(batcher.submit("a", ["short"]))
        done, _ = await asyncio.wait([long, short], return_when=asyncio.FIRST_COMPLETED)
        return len(done), await long, await short

    (number, long, short), passes = run_batcher(Limits(pass_rows=10, delay=0.001), use)
    assert number == 1
    assert long == [f"a {i}" for i in range(40)]
    assert short == ["a short"]
    assert max(len(rows) for _, rows in passes) <= 10


def test_a_failing_pass_fails_its_requests_only() -> None:
    async def use(batcher: Batcher) -> Any:
        bad = await asyncio.gather(batcher.submit("a", ["bad"]), return_exceptions=True)
        return bad, await batcher.submit("a", ["good"]), batcher.waiting

    (bad, good, waiting), _ = run_batcher(Limits(), use)
    assert isinstance(bad[0], ValueError)
    assert good == ["a good"]
    assert waiting == 0


def test_requests_computed_together_fail_apart() -> None:
    async def use(batcher: Batcher) -> Any:
        asked = [batcher.submit("a", [row]) for row in ("good", "bad", "better")]
        return await asyncio.gather(*asked, return_exceptions=True)

    (good, bad, better), passes = run_batcher(Limits(), use)
    assert (good, better) == (["a good"], ["a better"])
    assert isinstance(bad, ValueError)
    assert [*map(len, (rows for _, rows in passes))] == [3, 1, 1, 1]


def test_replies_beyond_the_limit_are_refused() -> None:
    async def use(batcher: Batcher) -> Any:
        first = asyncio.ensure_future(batcher.exclusively(lambda: time.sleep(0.1)))
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await batcher.exclusively(lambda: None)
        await first
        return await batcher.exclusively(lambda: "later"), batcher.others

    (later, others), _ = run_batcher(Limits(replies=1), use)
    assert (later, others) == ("later", 0)


def test_what_nobody_waits_for_is_dropped() -> None:
    async def use(batcher: Batcher) -> Any:
        first = asyncio.ensure_future(batcher.submit("a", [*range(10)]))
        await asyncio.sleep(0.01)
        gone = asyncio.ensure_future(batcher.submit("a", ["gone"] * 5))
        await asyncio.sleep(0.001)
        gone.cancel()
        await first
        with pytest.raises(Overloaded):
            await batcher.submit("a", [*range(21)])
        return await batcher.submit("a", ["last"]), batcher.waiting

    (last, waiting), passes = run_batcher(Limits(waiting=20, pass_rows=10, delay=0.0), use)
    assert last == ["a last"]
    assert waiting == 0
    assert not [row for _, rows in passes for row in rows if row == "gone"]


def test_all_words_are_known() -> None:
    """The texts of this file have one word that decides."""
    assert {text.split()[-1] for text in TEXTS} <= {word for words in KEYS.values() for word in words}
