"""Speed and memory of pefttools, of Trainer with peft at its defaults and tuned, and of TRL, on the same rows.

Seconds are those of training, without loading the model; the first steps warm up and do not count. Memory is the peak
of the GPU, or of the process where there is no GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import inputs
import torch
from machine import synchronize
from parts import Skipped
from sizes import Case, Sizes

from pefttools.data.encoding import encode
from pefttools.data.splitting import load_splits
from pefttools.device import peak_bytes, precision_of
from pefttools.recipe.recipe import Recipe
from pefttools.reporter import Bar, Reporter
from pefttools.training.driver import train as train_ours

WARM_UP = 2
"""Number of first steps that are not timed."""


class Watch:
    """Times steps; counts those after the warm-up."""

    def __init__(self) -> None:
        self.steps, self.began, self.last = 0, 0.0, 0.0

    def step(self) -> None:
        self.steps += 1
        if self.steps == WARM_UP:
            synchronize()
            self.began = time.perf_counter()

    def end(self) -> None:
        synchronize()
        self.last = time.perf_counter()

    def values(self, tokens: int) -> dict[str, Any]:
        """Rates, of a run that trained on so many tokens."""
        timed = self.steps - WARM_UP
        assert timed > 0, f"only {self.steps} steps were made"
        seconds = self.last - self.began
        return {"steps": self.steps, "seconds_per_step": seconds / timed,
                "tokens_per_second": tokens * timed / self.steps / seconds, "peak_bytes": peak_bytes()}  # fmt: skip


def train(name: str, contender: str, sizes: Sizes, shared: Path, own: Path) -> dict[str, Any]:
    """One training by a contender."""
    case = sizes.cases[name]
    packed = ["task.packing=true"] if case.family == "llama" else []
    if contender == "pefttools_liger":
        _refuse_without_liger()
        packed.append("train.liger=true")
    if contender.startswith("pefttools"):
        return _ours(inputs.recipe_of(case, shared, *packed), own)
    if contender == "trl":
        return _trl(case, inputs.recipe_of(case, shared), shared, own)
    return _trainer(inputs.recipe_of(case, shared), contender == "trainer_tuned", own)


def _refuse_without_liger() -> None:
    if not torch.cuda.is_available():
        raise Skipped("Liger's kernels need a CUDA GPU")
    if find_spec("liger_kernel") is None:
        raise Skipped("liger-kernel is not installed")


def _ours(recipe: Recipe, own: Path) -> dict[str, Any]:
    watch = Watch()
    result = train_ours(recipe, own / "run", reporter=_Timed(watch), score_test=False)
    return {**watch.values(result["train"]["tokens"]), "precision": result["train"]["precision"],
            "trainable": result["params"]["trainable"]}  # fmt: skip


class _Timed(Reporter):
    """Times the steps of a run of pefttools by its progress bar; a callback would wait for the device in every step."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def bar(self, title: str, total: float | None, unit: str, done: float = 0) -> AbstractContextManager[Bar]:
        del unit, done
        if title != "training":
            return nullcontext(Bar())
        _reset_peak()
        return nullcontext(_Steps(self.watch, total))


class _Steps(Bar):
    def __init__(self, watch: Watch, total: float | None) -> None:
        self.watch, self.total = watch, total

    def advance(self, amount: float) -> None:
        del amount
        self.watch.step()
        if self.watch.steps == self.total:
            self.watch.end()


def _callback(watch: Watch) -> Any:
    """A callback of transformers' Trainer that tells `watch` of every step."""
    import transformers

    class Timed(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            watch.end()

    return Timed()


def _trainer(recipe: Recipe, tuned: bool, own: Path) -> dict[str, Any]:
    contender, trainer_models = import_module("trainer"), import_module("trainer_models")
    from pefttools.strategies.base import trained

    watch = Watch()
    splits = load_splits(recipe.data, recipe.task)
    task = recipe.task.fit(splits)
    base, model = trainer_models.build(recipe, task)
    half = precision_of("auto")
    if tuned and half == "bf16" and recipe.strategy.name != "full":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    if tuned and torch.cuda.is_available() and find_spec("liger_kernel") and not task.own_head:
        import_module("liger_kernel.transformers.monkey_patch")._apply_liger_kernel_to_instance(model=base.model)
    rows = encode(splits.train, task, base, "train", training=True)
    made = contender.trainer_of(
        recipe, base, model, contender.dataset(rows, lengths=tuned), tuned, str(own), _callback(watch)
    )
    _reset_peak()
    made.train()
    number = sum(p.numel() for p in trained(model).values())
    return {**watch.values(sum(rows["length"])), "precision": half if tuned else "fp32", "trainable": number}


def _trl(case: Case, recipe: Recipe, shared: Path, own: Path) -> dict[str, Any]:
    """TRL's SFTTrainer with packing, and Liger where it is installed."""
    if find_spec("trl") is None:
        raise Skipped("TRL is not installed")
    trl: Any = import_module("trl")
    import datasets
    import peft
    import transformers

    watch = Watch()
    on_gpu, half = torch.cuda.is_available(), precision_of("auto")
    settings = trl.SFTConfig(
        output_dir=str(own), per_device_train_batch_size=case.batch_size, num_train_epochs=1,
        max_length=case.tokens, packing=True, bf16=half == "bf16", fp16=half == "fp16", use_cpu=not on_gpu,
        use_liger_kernel=on_gpu and find_spec("liger_kernel") is not None, report_to="none", save_strategy="no",
        disable_tqdm=True, gradient_checkpointing=False,
        learning_rate=recipe.train.learning_rate, seed=recipe.seed,
    )  # fmt: skip
    lora = None if case.strategy["name"] == "full" else peft.LoraConfig(
        task_type="CAUSAL_LM", r=case.strategy["rank"], lora_alpha=case.strategy["rank"], target_modules="all-linear"
    )  # fmt: skip
    tokenizer = inputs.load_tokenizer(case.family, shared)
    rows: Any = datasets.Dataset.from_json(inputs.rows(case, shared)["train"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        inputs.base(case, shared), dtype=torch.bfloat16 if lora and half == "bf16" else torch.float32
    )
    made = trl.SFTTrainer(
        model=model, args=settings, train_dataset=rows, processing_class=tokenizer, peft_config=lora,
        callbacks=[_callback(watch)],
    )  # fmt: skip
    _reset_peak()
    made.train()
    tokens = sum(len(ids) for ids in tokenizer([f"{r['prompt']}{r['completion']}" for r in rows])["input_ids"])
    return {**watch.values(tokens), "precision": half, "trainable": made.model.num_parameters(only_trainable=True)}


def predict(contender: str, sizes: Sizes, shared: Path, own: Path) -> dict[str, Any]:
    """Rows a second: `predict_rows` on a run, and transformers' pipeline on its merged export."""
    from pefttools.exporters import driver as exporting
    from pefttools.inference.prediction import predict_rows

    case = sizes.cases["encoder"]
    recipe = inputs.recipe_of(case, shared, f"data.train_rows={min(case.rows, 512)}")
    train_ours(recipe, own / "run", score_test=False)
    texts = [row["text"] for row in load_splits(recipe.data, recipe.task).train] * 4
    if contender == "pefttools":
        began: list[float] = []

        def raws() -> Iterator[dict[str, str]]:
            began.append(time.perf_counter())  # the model has been loaded
            yield from ({"text": text} for text in texts)

        list(predict_rows(own / "run", ({"text": text} for text in texts[:64])))
        number = len(list(predict_rows(own / "run", raws())))
        return {"rows_per_second": number / (time.perf_counter() - began[0])}
    import transformers

    exporting.export(own / "run", "merged")
    pipe: Any = transformers.pipeline(
        "text-classification", model=str(own / "run" / "export" / "merged"),
        dtype=torch.bfloat16 if precision_of("auto") == "bf16" else torch.float32,
        device=0 if torch.cuda.is_available() else "cpu",
    )  # fmt: skip
    pipe(texts[:64], batch_size=64)
    start = time.perf_counter()
    number = len(pipe(sorted(texts, key=len), batch_size=64, truncation=True, max_length=case.tokens))
    return {"rows_per_second": number / (time.perf_counter() - start)}


def plan_error(sizes: Sizes, shared: Path, own: Path) -> dict[str, Any]:
    """The peak that `plan` computes against the measured one, of two cases."""
    from pefttools.planning.planner import plan

    found: dict[str, Any] = {}
    for name in ("encoder", "decoder-1.1b"):
        recipe = inputs.recipe_of(sizes.cases[name], shared)
        planned = plan(recipe).bytes["peak"]
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory(dir=own) as folder:
            measured = train_ours(recipe, Path(folder, "run"), score_test=False)["train"]["peak_bytes"]
        found[name] = {"planned_bytes": planned, "measured_bytes": measured, "error": planned / measured - 1}
    return found


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
