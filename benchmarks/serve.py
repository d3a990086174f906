"""Throughput and latency of `pefttools serve`, next to a pipeline of transformers behind FastAPI, and under overload.

    python benchmarks/serve.py RUN                       # -> results/serve.{md,json}; about 5 minutes, and
    python benchmarks/serve.py RUN --overload 600        # -> results/serve_overload.{md,json}: ten minutes more

Clients are coroutines of one process on the same machine; each sends one text at a time and waits for the answer. The
texts are the run's test rows. Every answer is compared with that of `pefttools predict`. The rate of `predict` is that
of the model on all test rows, without loading.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from pefttools import atomic
from pefttools.bases.loading import prepare_libraries
from pefttools.inference.predictor import load_predictor
from pefttools.training.own_rows import own_rows
from pefttools.training.run import Run

RESULTS = Path(__file__).parent / "results"
CLIENTS = (1, 8, 32, 128)
SECONDS = 20.0
PIPELINE = """
import sys
import transformers, uvicorn
from fastapi import FastAPI

classify = transformers.pipeline("text-classification", sys.argv[1], top_k=None)
app = FastAPI()

@app.post("/predict")
def predict(body: dict):
    return {"predictions": [{"prediction": found[0]["label"]} for found in classify(body["texts"])]}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""
"""What a user writes in a minute; FastAPI runs it in threads."""


class Server:
    """A server in another process."""

    def __init__(self, words: list[str], port: int) -> None:
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.port = port

    async def ready(self) -> None:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            except OSError:
                await asyncio.sleep(0.2)

    @property
    def memory(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


async def ask(reader: Any, writer: Any, texts: list[str]) -> tuple[int, Any]:
    """Status and content of one request on an open connection."""
    body = json.dumps({"texts": texts}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length"))
    return int(lines[0].split()[1]), json.loads(await reader.readexactly(length))


async def load(port: int, clients: int, seconds: float, expected: dict[str, str], rows: int = 1) -> dict[str, Any]:
    """Rates, latencies and statuses of so many clients."""
    texts, end = [*expected], time.perf_counter() + seconds
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    wrong = 0

    async def client(seed: int) -> None:
        nonlocal wrong
        draw = random.Random(seed)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            chosen = draw.choices(texts, k=rows)
            begun = time.perf_counter()
            status, found = await ask(reader, writer, chosen)
            statuses[status] += 1
            if status == 200:
                latencies.append(time.perf_counter() - begun)
                answers = [one["prediction"] for one in found["predictions"]]
                wrong += sum(one != expected[text] for text, one in zip(chosen, answers, strict=True))
            else:
                await asyncio.sleep(draw.uniform(0.05, 0.2))
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client(seed) for seed in range(clients)))
    took = time.perf_counter() - begun
    ordered = sorted(latencies)
    return {
        "clients": clients,
        "rows_per_second": rows * len(latencies) / took,
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
        "statuses": {str(status): number for status, number in statuses.items()},
        "wrong": wrong,
    }


def expected_answers(run: Path) -> tuple[dict[str, str], float]:
    """The predictions of `predict` on the run's test rows, and its rows per second."""
    prepare_libraries()
    predictor = load_predictor(run, "auto")
    opened = Run.open(run)
    rows = [{"text": row["text"]} for row in own_rows(opened, opened.recipe().task).rows]
    found = predictor.predict(rows)
    rates = []
    for _ in range(5):
        begun = time.perf_counter()
        found = predictor.predict(rows)
        rates.append(len(rows) / (time.perf_counter() - begun))
    return {row["text"]: one["prediction"] for row, one in zip(rows, found, strict=True)}, statistics.median(rates)


async def compare(run: Path, expected: dict[str, str], seconds: float) -> dict[str, list[dict[str, Any]]]:
    """The figures of each server, by turns over the numbers of clients."""
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch, "merged")
        export = [sys.executable, "-m", "pefttools", "export", str(run), "--to", "merged", "--out", str(merged)]
        subprocess.run(export, check=True, capture_output=True)
        script = Path(scratch, "pipeline.py")
        script.write_text(PIPELINE)
        servers = {
            "pefttools serve": Server([sys.executable, "-m", "pefttools", "serve", str(run), "--port", "8931"], 8931),
            "pipeline behind FastAPI": Server([sys.executable, str(script), str(merged), "8932"], 8932),
        }
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
        try:
            for server in servers.values():
                await server.ready()
                await load(server.port, 4, 2, expected)
            for clients in CLIENTS:
                for name, server in servers.items():
                    found[name].append(await load(server.port, clients, seconds, expected))
                    print(name, found[name][-1], flush=True)
        finally:
            for server in servers.values():
                server.stop()
    return found


async def overload(run: Path, expected: dict[str, str], seconds: float) -> dict[str, Any]:
    """Far more rows than can be computed: memory by time, statuses and wrong answers."""
    words = ["serve", str(run), "--port", "8933", "--waiting", "2048"]
    server = Server([sys.executable, "-m", "pefttools", *words], 8933)
    try:
        await server.ready()
        await load(8933, 4, 2, expected)
        memory = [server.memory]

        async def watch() -> None:
            while True:
                await asyncio.sleep(max(1.0, seconds / 60))
                memory.append(server.memory)

        watching = asyncio.create_task(watch())
        found = await load(8933, 256, seconds, expected, rows=64)
        watching.cancel()
    finally:
        server.stop()
    half = len(memory) // 2
    return {
        **found, "seconds": seconds, "memory_bytes": memory,
        "growth": statistics.median(memory[half:]) / statistics.median(memory[len(memory) // 10 : half] or memory[:1]),
    }  # fmt: skip


def table(values: dict[str, Any]) -> str:
    lines = [
        "# Serving",
        "",
        f"`python benchmarks/serve.py RUN` with {values['recipe']}, {values['threads']} threads,"
        f" {values['hardware']}. One text a request, {values['seconds']:g} s for each cell. `pefttools predict`"
        f" computes {values['predict']:,.0f} rows/s.",
        "",
        "| clients | server | rows/s | of predict | of the pipeline | p50 ms | p99 ms | wrong answers |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    other = {one["clients"]: one["rows_per_second"] for one in values["servers"]["pipeline behind FastAPI"]}
    for name, found in values["servers"].items():
        for one in found:
            rate = one["rows_per_second"]
            lines.append(
                f"| {one['clients']} | {name} | {rate:,.0f} | {rate / values['predict']:.0%} |"
                f" {rate / other[one['clients']]:.2f} | {one['p50_ms']:.1f} | {one['p99_ms']:.1f} | {one['wrong']} |"
            )
    return "\n".join([*lines, ""])


def overload_table(values: dict[str, Any]) -> str:
    memory = [value / 2**20 for value in values["memory_bytes"]]
    statuses = ", ".join(f"{number:,} × {status}" for status, number in sorted(values["statuses"].items()))
    return "\n".join([
        "# Serving under overload",
        "",
        f"`python benchmarks/serve.py RUN --overload {values['seconds']:g}`: {values['clients']} clients with 64 rows a"
        " request and `--waiting 2048`.",
        "",
        f"- responses: {statuses}; {values['wrong']} of the answers differ from `predict`",
        f"- {values['rows_per_second']:,.0f} rows/s; p50 {values['p50_ms']:.0f} ms, p99 {values['p99_ms']:.0f} ms",
        f"- memory of the server: {memory[0]:.0f} MB before, at most {max(memory):.0f} MB; the median of the second"
        f" half is {values['growth']:.3f} times that of the first",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each number of clients")
    parser.add_argument("--overload", type=float, help="seconds of overload, instead of the comparison")
    arguments = parser.parse_args()
    expected, rate = expected_answers(arguments.run)
    if arguments.overload:
        values = asyncio.run(overload(arguments.run, expected, arguments.overload))
        atomic.write_json(RESULTS / "serve_overload.json", values)
        atomic.write_text(RESULTS / "serve_overload.md", overload_table(values))
        print(overload_table(values))
        return
    run = Run.open(arguments.run)
    values = {
        "recipe": run.recipe().name, "seconds": arguments.seconds, "predict": rate,
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "hardware": run.result()["hardware"]["device"],
        "servers": asyncio.run(compare(arguments.run, expected, arguments.seconds)),
    }  # fmt: skip
    atomic.write_json(RESULTS / "serve.json", values)
    atomic.write_text(RESULTS / "serve.md", table(values))
    print(table(values))


if __name__ == "__main__":
    main()
