"""Names of settings and methods in peft and transformers, and their equivalents here, for messages on unknown keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pefttools.errors import nearest, unknown

GLOB = "`strategy.targets` takes patterns on full paths, e.g. strategy.targets='*layer.1?.*'"
PEFT_LORA = "`strategy=peft` with `strategy.type`=LORA accepts it in `strategy.settings`"
WORDS: Mapping[str, str] = {
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "`strategy.rank`"),
    "lora_alpha": "`strategy.alpha`",
    **dict.fromkeys(("lora_dropout", "vera_dropout", "module_dropout"), "`strategy.dropout`"),
    **dict.fromkeys(
        ("target_modules", "target_parameters", "lora_target", "feedforward_modules"), "`strategy.targets`"
    ),
    **dict.fromkeys(
        ("modules_to_save", "additional_trainable_modules"),
        "`base.head` lists modules to train completely; a new head is always among them",
    ),
    **dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"), GLOB),
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "trainable_token_indices", "layer_replication"), PEFT_LORA),
    "bias": "`strategy=bitfit` trains biases",
    "use_rslora": "`strategy.rslora`",
    "use_dora": "`strategy.dora`",
    **dict.fromkeys(("init_lora_weights", "init_weights"), "`strategy.init`"),
    "loraplus_lr_ratio": "`strategy.lr_ratio`",
    "init_r": "`strategy.init_rank`",
    "target_r": "`strategy.target_rank`",
    "num_virtual_tokens": "`strategy.tokens`",
    "reduction_factor": "`strategy.reduction`",
    "peft_type": "`strategy=lora` and the like; `strategy.type` of `strategy=peft`",
    "task_type": "`task=text_classification` and the like",
    **dict.fromkeys(
        ("base_model_name_or_path", "model_name_or_path", "model_name", "model", "pretrained_model_name_or_path"),
        "`base=hf:NAME`",
    ),
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "quantization_config", "bnb_4bit_quant_type"),
        "`base.quantize`: nf4, fp4 or int8",
    ),
    **dict.fromkeys(("num_train_epochs", "num_epochs"), "`train.epochs`"),
    "max_steps": "`train.epochs`, which may be a fraction",
    "per_device_train_batch_size": "`train.batch_size`",
    "gradient_accumulation_steps": "`train.micro_batch_size` rows of `train.batch_size` are computed at once",
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "`train.warmup`, a share of the steps"),
    "lr": "`train.learning_rate`",
    "lr_scheduler_type": "`train.schedule`",
    **dict.fromkeys(("fp16", "bf16", "dtype", "torch_dtype"), "`train.precision`"),
    "optim": "`train.optimizer`",
    "early_stopping_patience": "`train.patience`",
    **dict.fromkeys(("eval_steps", "eval_strategy", "evaluation_strategy"), "`train.evaluate_every`"),
    "logging_steps": "`train.log_every`",
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "`train.optimizer.betas`"),
    "adam_epsilon": "`train.optimizer.eps`",
    "report_to": "`train.trackers`",
    **dict.fromkeys(("max_seq_length", "max_seq_len", "model_max_length"), "`task.max_length`"),
    **dict.fromkeys(("num_labels", "id2label", "label2id"), "`task.labels`"),
    "output_dir": "--out",
    "resume_from_checkpoint": "--resume",
}
"""Their setting -> the message about ours, with our keys in backticks."""
METHODS: Mapping[str, str] = {
    "qlora": "`strategy=lora` with `base.quantize`=nf4",
    "dora": "`strategy=lora` with `strategy.dora`=true",
    "rslora": "`strategy=lora` with `strategy.rslora`=true",
    **dict.fromkeys(("lora_plus", "loraplus", "lora+"), "`strategy=lora` with `strategy.lr_ratio`=16"),
    **{init: f"`strategy=lora` with `strategy.init`={init}" for init in ("pissa", "olora", "eva", "loftq")},
    "prompt_tuning": "`strategy=prompt`",
    **dict.fromkeys(("prefix_tuning", "p_tuning_v2"), "`strategy=prefix`"),
    **dict.fromkeys(("ln_tuning", "layernorm"), "`strategy=layer_norm`"),
    "p_tuning": "`strategy=peft` with `strategy.type`=P_TUNING",
    **dict.fromkeys(
        ("linear_probe", "linear_probing", "head"),
        "`strategy=top_layers` with `strategy.layers`=0, which trains the head alone",
    ),
    **dict.fromkeys(("full_finetuning", "fine_tuning", "finetune"), "`strategy=full`"),
    **dict.fromkeys(("houlsby", "pfeiffer", "bottleneck"), "`strategy=adapter`"),
    **{
        name: f"`strategy=peft` with `strategy.type`={name.upper()}"
        for name in ("loha", "lokr", "oft", "boft", "hra", "vblora", "fourierft", "c3a", "randlora", "trainable_tokens")
    },
}
"""A method's name elsewhere -> the message about ours."""


def unknown_key(name: str, known: Sequence[str], kind: str = "key") -> str:
    """The message for an unknown key; if another library has this key, it names the equivalent here."""
    return _sentence(kind, name, WORDS, known)


def unknown_strategy(name: str, known: Sequence[str]) -> str:
    """The message for an unknown strategy; if it is a known method, it names the equivalent here."""
    return _sentence("strategy", name, METHODS, known)


def _sentence(kind: str, name: str, words: Mapping[str, str], known: Sequence[str]) -> str:
    word = str(name).lower().replace("-", "_")
    if word not in words or (nearest(name, known) or "").lower() == word:
        return unknown(kind, name, known)
    return f"unknown {kind} {name!r}; in pefttools: {words[word].replace('`', '')}. Known: {', '.join(known)}"
