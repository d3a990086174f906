"""Kill, damage and starve runs, and compare what they become with runs left alone. Finished cases are not repeated.

    python benchmarks/faults.py kills --number 100   # SIGKILL at random moments of training and export
    python benchmarks/faults.py writes               # an error, a short write or a crash at every write of a checkpoint
    python benchmarks/faults.py damage               # five damages of every file of a run and of its checkpoints
    python benchmarks/faults.py table                # -> benchmarks/results/faults.{md,json}

`kills` starts `pefttools train` with `--resume` in a process group of its own, again and again. A case counts as lost
if it cannot be resumed, and as wrong if its losses, its weights or its scores differ from those of the run left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pefttools import atomic, cli, hashes
from pefttools.sources.pins import content_sha256

RESULTS = Path(__file__).parent / "results"
COMMON = ("question-type-lora", "data.train_rows=160", "data.validation_share=0.02", "data.test_share=0.02",
          "train.epochs=2", "train.batch_size=16", "train.log_every=1", "train.evaluate_every=0.5",
          "train.checkpoint_steps=2", "train.trackers=[]")  # fmt: skip
SETUPS = {
    "lora": (),
    "lora, freelb, l2": ("objectives=[freelb]", "regularizers=[l2]"),
    "full": ("strategy=full",),
    "full, sam, l2_sp": ("strategy=full", "objectives=[sam]", "regularizers=[l2_sp]"),
    "adapter": ("strategy=adapter",),
    "low_rank": ("strategy=low_rank",),
    "bitfit, r_drop": ("strategy=bitfit", "objectives=[r_drop]", "base.dropout=0.1"),
    "adalora": ("strategy=adalora",),
    "prefix": ("strategy=prefix",),
    "galore": ("strategy=galore",),
}
"""Name -> overrides."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "writes", "damage", "table"))
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "table":
        write_table(arguments.out)
    elif arguments.what == "kills":
        kills(arguments.out, arguments.number)
    else:
        {"writes": writes, "damage": damage}[arguments.what](arguments.out)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pefttools", *words]


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal: every loss and score of metrics.jsonl, the weights, and the test scores."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    result = json.loads((run / "result.json").read_text("utf-8"))
    return {
        "lines": [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines],
        "weights": content_sha256(run / "adapter"),
        "test": result["test"],
    }


def alone(out: Path, name: str) -> Path:
    """The run of this setup that nothing disturbs."""
    run = out / "alone" / name
    if not (run / "result.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        subprocess.run(command("train", *COMMON, *SETUPS[name], "--out", str(run)), check=True, capture_output=True)
    return run


def kills(out: Path, number: int) -> None:
    """Kill runs in turn until there are `number` kills of training; a tenth of them are kills of an export."""
    file = out / "kills.json"
    done: list[dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.exists() else []
    draw = random.Random(len(done))
    names = list(SETUPS)
    while (count := sum(case["kills"] for case in done)) < number:
        name = names[len(done) % len(names)]
        whole = alone(out, name)
        case = killed_export(out, whole, draw) if len(done) % 5 == 4 else killed_training(out, name, whole, draw)
        done.append({"setup": name, **case})
        atomic.write_json(file, done)
        print(f"{count + case['kills']} of {number} kills: {done[-1]}", flush=True)


def killed_training(out: Path, name: str, whole: Path, draw: random.Random) -> dict[str, Any]:
    """Train with up to four kills, then to the end."""
    run, moments = out / "killed", Counter[str]()
    shutil.rmtree(run, ignore_errors=True)
    words = command("train", *COMMON, *SETUPS[name], "--out", str(run), "--resume")
    for _ in range(4):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, 6))
        if process.poll() is not None:
            break
        moments[moment(run)] += 1
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = subprocess.run(words, check=False, capture_output=True, text=True)
    if found.returncode:
        return {"kills": moments.total(), "moments": moments, "lost": True, "why": found.stderr[-500:]}
    wrong = [key for key, value in outcome(whole).items() if outcome(run)[key] != value]
    return {"kills": moments.total(), "moments": moments, "lost": False, "wrong": wrong}


def moment(run: Path) -> str:
    """What a run is doing, as far as its folder shows."""
    if list(run.glob("checkpoints/.*.part")) or list(run.glob(".*.part")):
        return "while writing"
    return "in a step or an evaluation" if list(run.glob("checkpoints/step-*")) else "before the first checkpoint"


def killed_export(out: Path, whole: Path, draw: random.Random) -> dict[str, Any]:
    """Kill an export once; the folder must be absent or complete, and the next export must succeed."""
    folder = out / "exported"
    shutil.rmtree(folder, ignore_errors=True)
    words = command("export", str(whole), "--to", "merged", "--out", str(folder))
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(draw.uniform(4, 14))
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if folder.exists():
        wrong = ["half an artifact"] if hashes.damage(folder) else []
        return {"kills": int(killed), "moments": {"in an export": int(killed)}, "lost": False, "wrong": wrong}
    found = subprocess.run(words, check=False, capture_output=True, text=True)
    about = {
        "kills": int(killed),
        "moments": {"in an export": int(killed)},
        "lost": bool(found.returncode),
        "wrong": [],
    }
    return about | ({"why": found.stderr[-500:]} if found.returncode else {})


KINDS = ("error", "short write", "crash")
CHILD = "import faults, sys; faults.with_fault(sys.argv[1], int(sys.argv[2]), sys.argv[3:])"


def writes(out: Path) -> None:
    """Inject each kind of fault at every write of the second checkpoint, until a fault comes after the last one."""
    file = out / "writes.json"
    done: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    whole = alone(out, "lora")
    for kind in KINDS:
        for number in range(1000):
            key = f"{kind} {number}"
            if key not in done:
                done[key] = with_fault_and_resumed(out, whole, kind, number)
                atomic.write_json(file, done)
                print(key, done[key], flush=True)
            if done[key]["reached"] is False:
                break


def with_fault_and_resumed(out: Path, whole: Path, kind: str, number: int) -> dict[str, Any]:
    run = out / "faulty"
    shutil.rmtree(run, ignore_errors=True)
    words = ["train", *COMMON, "--out", str(run), "--resume"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    first = subprocess.run(
        [sys.executable, "-c", CHILD, kind, str(number), *words], check=False, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    place = next((line[7:] for line in first.stderr.splitlines() if line.startswith("FAULT: ")), None)
    kept = sorted(path.name for path in run.glob("checkpoints/step-*"))
    again = subprocess.run(command(*words), check=False, capture_output=True, text=True)
    wrong = [] if again.returncode else [key for key, value in outcome(whole).items() if outcome(run)[key] != value]
    told = [line for line in first.stderr.splitlines() if "cannot be written" in line or "Traceback" in line]
    return {
        "reached": place is not None, "at": place, "code": first.returncode, "told": told[:1], "kept": kept,
        "lost": bool(again.returncode), "wrong": wrong,
    }  # fmt: skip


def with_fault(kind: str, number: int, words: list[str]) -> None:
    """Run a command whose `number`th write of the second checkpoint fails; called in a process of its own."""
    from pefttools.training import checkpoint

    plain, state = checkpoint.save, {"saves": 0, "writes": -1}

    def save(*values: Any) -> None:
        state["saves"] += 1
        state["writes"] = 0 if state["saves"] == 2 else -1
        plain(*values)
        state["writes"] = -1

    def faulty(function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            if state["writes"] < 0:
                return function(*values, **named)
            state["writes"] += 1
            if state["writes"] - 1 != number:
                return function(*values, **named)
            print(f"FAULT: {label}", file=sys.stderr, flush=True)
            if kind == "error":
                raise OSError(errno.ENOSPC, "No space left on device")
            if kind == "short write" and label == "write":
                function(*values, **named)
                target = Path(values[1] if hasattr(values[0], "keys") else values[0])
                target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
            os._exit(9)

        return call

    import safetensors.torch

    safetensors.torch.save_file = faulty(safetensors.torch.save_file, "write")
    Path.write_text = faulty(Path.write_text, "write")  # type: ignore[method-assign]
    os.fsync = faulty(os.fsync, "fsync")
    Path.rename = faulty(Path.rename, "rename")  # type: ignore[method-assign]
    Path.replace = faulty(Path.replace, "replace")  # type: ignore[method-assign]
    checkpoint.save = save
    sys.exit(cli.run(words))


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit flipped": _flip,
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "removed": Path.unlink,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


def damage(out: Path) -> None:
    """Damage every file of a finished run before `predict`, and of the last checkpoint before `--resume`."""
    whole, found = alone(out, "lora"), {}
    died = out / "died"
    if not list(died.glob("checkpoints/step-*")):
        with_fault_and_kept(died)
    for kind, source in (("run", whole), ("checkpoint", died)):
        folder = source if kind == "run" else max(source.glob("checkpoints/step-*"))
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and "export" not in path.parts):
            name = file.relative_to(source).as_posix()
            for label, harm in DAMAGES.items():
                found[f"{kind}: {file.relative_to(folder)}: {label}"] = damaged(out, source, name, harm, kind, whole)
                print(name, label, found[f"{kind}: {file.relative_to(folder)}: {label}"], flush=True)
    atomic.write_json(out / "damage.json", found)


def with_fault_and_kept(died: Path) -> None:
    """A run that crashed while it wrote a checkpoint, so that it has earlier ones."""
    words = ["train", *COMMON, "--out", str(died)]
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(died.glob("checkpoints/step-*"))) < 2:
        time.sleep(0.01)
    process.kill()
    process.wait()


def damaged(
    out: Path, source: Path, name: str, harm: Callable[[Path], Any], kind: str, whole: Path
) -> dict[str, Any]:  # fmt: skip
    run = out / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(source, run)
    harm(run / name)
    words = ["predict", "--run", str(run), "--text", "Who wrote it ?"]
    if kind == "checkpoint":
        words = ["train", *COMMON, "--out", str(run), "--resume"]
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()) as printed:
        code = cli.run(words)
    lines = [line.strip() for line in told.getvalue().splitlines() if "has changed" in line or "missing" in line]
    if kind == "run":
        expected = io.StringIO()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(expected):
            cli.run([word if word != str(run) else str(whole) for word in words])
        wrong = code == 0 and printed.getvalue() != expected.getvalue()
    else:
        wrong = code == 0 and outcome(run) != outcome(whole)
    return {"code": code, "told": bool(lines), "wrong": wrong}


def write_table(out: Path) -> None:
    """Write benchmarks/results/faults.{md,json} from what has finished."""
    loaded = {
        name: json.loads((out / f"{name}.json").read_text("utf-8"))
        for name in ("kills", "writes", "damage")
        if (out / f"{name}.json").exists()
    }
    atomic.write_json(RESULTS / "faults.json", loaded)
    atomic.write_text(RESULTS / "faults.md", "\n".join(table(loaded)) + "\n")


def table(found: dict[str, Any]) -> Iterator[str]:
    yield "# Faults: what was done to runs, and what became of them\n"
    yield "Commands: `python benchmarks/faults.py kills`, `writes`, `damage`, then `table`.\n"
    if cases := found.get("kills"):
        yield "| setup | kills | lost | different from the run left alone |\n|---|---|---|---|"
        for name in dict.fromkeys(case["setup"] for case in cases):
            mine = [case for case in cases if case["setup"] == name]
            lost, wrong = sum(case["lost"] for case in mine), sum(bool(case.get("wrong")) for case in mine)
            yield f"| {name} | {sum(case['kills'] for case in mine)} | {lost} | {wrong} |"
        moments = sum((Counter(case["moments"]) for case in cases), Counter[str]())
        yield f"\n{sum(moments.values())} kills: {', '.join(f'{n} {name}' for name, n in moments.items())}.\n"
    if cases := found.get("writes"):
        yield "| fault at a write of a checkpoint | places | exit codes | lost | different |\n|---|---|---|---|---|"
        for kind in KINDS:
            mine = [case for key, case in cases.items() if key.startswith(kind) and case["reached"]]
            codes = ", ".join(str(code) for code in sorted({case["code"] for case in mine}))
            lost, wrong = sum(case["lost"] for case in mine), sum(bool(case["wrong"]) for case in mine)
            yield f"| {kind} | {len(mine)} | {codes} | {lost} | {wrong} |"
    if cases := found.get("damage"):
        yield "\n| damaged | cases | refused or set aside, with the file named | unharmed | wrong without a word |"
        yield "|---|---|---|---|---|"
        for kind in ("run", "checkpoint"):
            mine = [case for key, case in cases.items() if key.startswith(f"{kind}:")]
            told = sum(case["told"] for case in mine)
            silent = sum(case["wrong"] and not case["told"] for case in mine)
            yield f"| {kind} | {len(mine)} | {told} | {len(mine) - told - silent} | {silent} |"


if __name__ == "__main__":
    main()
