//! Components that stand for one of ours, and those that do not.

use super::rules::{KeyRule, Refused, Taken, TheirDefault, ignored, ignored_if, only};

/// What torch's optimizers take where no learning rate is written.
const TORCH_LR: &[TheirDefault] = &[TheirDefault::new("lr", "1.0e-3")];

const STATE_IN_F32: &str = "its state is kept in memory, in 32 bits: 8 bytes for each trained parameter";
const STATE_IN_8_BITS: &str = "its state is kept in memory, in blocks of 256 numbers of eight bits, and in 32 bits for parameters of fewer than 4096";
const MEAN_IN_F32: &str = "its state is kept in memory, in 32 bits: 4 bytes for each trained parameter";

/// Settings of bitsandbytes and torchao that are about how state is kept.
const fn of_state(why: &'static str) -> [KeyRule; 8] {
    [
        ignored("optim_bits", why),
        ignored("args", why),
        ignored("is_paged", why),
        ignored("min_8bit_size", why),
        ignored("block_wise", why),
        ignored("block_size", why),
        ignored("bf16_stochastic_round", "weights of bf16 are always rounded at random"),
        only(
            "percentile_clipping",
            &["100"],
            "gradients are not clipped by percentile here",
            "set clip_grad_norm and remove the key",
        ),
    ]
}

const IN_F32: &[KeyRule] = &of_state(STATE_IN_F32);
const IN_8_BITS: &[KeyRule] = &of_state(STATE_IN_8_BITS);
const LION: &[KeyRule] = &of_state(MEAN_IN_F32);

/// What bitsandbytes's Lion takes where no learning rate is written.
const LION_LR: &[TheirDefault] = &[TheirDefault::new("lr", "1.0e-4")];

/// What transformers' Adafactor has and ours lacks.
const ADAFACTOR: &[KeyRule] = &[
    only("beta1", &[], "Adafactor has no momentum here", "set optimizer.beta1=null"),
    only(
        "warmup_init",
        &["false"],
        "Adafactor does not warm up its learning rate",
        "set optimizer.warmup_init=false and lr_scheduler.num_warmup_steps",
    ),
];

/// The second is ours. The first is a mean square there, and here its root: each is as good as none.
const ADAFACTOR_EPS: &[TheirDefault] = &[TheirDefault::new("eps", "[1.0e-30, 1.0e-3]")];

const MUON: &[KeyRule] = &[
    ignored_if("eps", |_| true, "it is the least norm that a matrix is divided by there; here it is AdamW's"),
    only("ns_coefficients", &[], "the coefficients of the iteration are its author's", "remove the key"),
];

/// What PyTorch's Muon takes where nothing is written.
const MUON_DEFAULTS: &[TheirDefault] =
    &[TheirDefault::new("lr", "1.0e-3"), TheirDefault::new("adjust_lr_fn", "original")];

const SCHEDULE_FREE: &[KeyRule] = &[only(
    "warmup_steps",
    &["0"],
    "the warm-up is lr_scheduler's",
    "set lr_scheduler=constant lr_scheduler.num_warmup_steps and remove the key",
)];

const fn adafactor_of_transformers(path: &'static str) -> Taken {
    Taken::new(path, "adafactor").keys(ADAFACTOR).defaults(ADAFACTOR_EPS)
}

const fn adamw(path: &'static str) -> Taken {
    Taken::new(path, "adamw").loses(STATE_IN_F32).keys(IN_F32).defaults(TORCH_LR)
}

const fn adamw_8bit(path: &'static str) -> Taken {
    Taken::new(path, "adamw_8bit").keys(IN_8_BITS).defaults(TORCH_LR)
}

/// Of fewer bits than eight, or in another form.
const fn low_bit(path: &'static str) -> Taken {
    adamw_8bit(path).loses(STATE_IN_8_BITS)
}

const fn lion(path: &'static str) -> Taken {
    Taken::new(path, "lion").keys(LION).defaults(LION_LR)
}

const NO_CLIENT: &str = "there is no client for the service here";
const OFFLINE: &str = "the run is recorded without a network, by no client of wandb's";

const MLFLOW: &[KeyRule] = &[only(
    "run_id",
    &[],
    "a run of MLflow's that was begun elsewhere is not gone on with",
    "remove the key: a run that is resumed goes on in its own",
)];

const IN_BLOCKS: &str = "a GGUF file has a scale for each 32 numbers, and says how they are laid out";
const AS_Q4_0: &str = "a GGUF file of 4 bits with a scale for each 32 numbers; what layers are given is not rounded, and the embedding table \
                       and the output layer are quantized, too";
const AS_Q4_0_NOW: &str = "a GGUF file of 4 bits with a scale for each 32 numbers; training rounded to other levels, and with `quantizer: gguf` it \
                           would have been to these";
const AS_Q4_K_M: &str = "a GGUF file of 4 bits with a scale and an offset for each 32 numbers, some tensors in 6 bits; the embedding table and \
                         the output layer are quantized, too";
const AS_Q4_K_M_NOW: &str = "a GGUF file of 4 bits with a scale and an offset for each 32 numbers; training rounded to other levels, and with \
                             `quantizer: gguf` it would have been to these";
const Q4_0: &[TheirDefault] = &[TheirDefault::new("format", "q4_0")];
const Q4_K_M: &[TheirDefault] = &[TheirDefault::new("format", "q4_k_m")];

/// torchao's levels, which the levels of a file that llama.cpp reads stand for.
const fn quantizer(path: &'static str, loses: &'static str, format: &'static [TheirDefault]) -> Taken {
    Taken::new(path, "gguf").loses(loses).rest(IN_BLOCKS).defaults(format)
}

/// torchtune's name of the project.
const WANDB: &[TheirDefault] = &[TheirDefault::new("project", "torchtune")];

/// torchtune's texts go on in the next row.
const SPLIT: TheirDefault = TheirDefault::new("split_across_pack", "true");

pub(super) const TAKEN: &[Taken] = &[
    Taken::new("torch.optim.AdamW", "adamw").defaults(TORCH_LR),
    Taken::new("torch.optim.SGD", "sgd"),
    Taken::new("torch.optim.Adafactor", "adafactor"),
    adafactor_of_transformers("transformers.Adafactor"),
    adafactor_of_transformers("transformers.optimization.Adafactor"),
    Taken::new("torch.optim.Muon", "muon").keys(MUON).defaults(MUON_DEFAULTS),
    Taken::new("schedulefree.AdamWScheduleFree", "schedule_free_adamw").keys(SCHEDULE_FREE),
    adamw("bitsandbytes.optim.AdamW"),
    adamw_8bit("bitsandbytes.optim.AdamW8bit"),
    adamw("bitsandbytes.optim.AdamW32bit"),
    adamw("bitsandbytes.optim.PagedAdamW"),
    adamw_8bit("bitsandbytes.optim.PagedAdamW8bit"),
    adamw("bitsandbytes.optim.PagedAdamW32bit"),
    adamw_8bit("torchao.optim.AdamW8bit"),
    low_bit("torchao.optim.AdamW4bit"),
    low_bit("torchao.optim.AdamWFp8"),
    adamw_8bit("torchao.prototype.low_bit_optim.AdamW8bit"),
    low_bit("torchao.prototype.low_bit_optim.AdamW4bit"),
    low_bit("torchao.prototype.low_bit_optim.AdamWFp8"),
    lion("bitsandbytes.optim.Lion"),
    lion("bitsandbytes.optim.PagedLion"),
    lion("bitsandbytes.optim.Lion8bit").loses(MEAN_IN_F32),
    lion("bitsandbytes.optim.PagedLion8bit").loses(MEAN_IN_F32),
    lion("bitsandbytes.optim.Lion32bit"),
    lion("bitsandbytes.optim.PagedLion32bit"),
    lion("lion_pytorch.Lion"),
    Taken::new("torchtune.datasets.alpaca_dataset", "alpaca").defaults(&[TheirDefault::hub("hf://tatsu-lab/alpaca")]),
    Taken::new("torchtune.datasets.alpaca_cleaned_dataset", "alpaca")
        .defaults(&[TheirDefault::hub("hf://yahma/alpaca-cleaned")]),
    Taken::new("torchtune.datasets.samsum_dataset", "instruct").defaults(&[
        TheirDefault::hub("hf://Samsung/samsum"),
        TheirDefault::new("column_map", "{input: dialogue, output: summary}"),
    ]),
    Taken::new("torchtune.datasets.grammar_dataset", "instruct").defaults(&[TheirDefault::hub("hf://liweili/c4_200m")]),
    Taken::new("torchtune.datasets.slimorca_dataset", "chat").defaults(&[
        TheirDefault::hub("hf://Open-Orca/SlimOrca-Dedup"),
        TheirDefault::new("conversation_column", "conversations"),
        TheirDefault::new("conversation_style", "sharegpt"),
    ]),
    // A folder of the dataset holds each subset, which is named there, and `split_across_pack` is on for texts.
    Taken::new("torchtune.datasets.text_completion_dataset", "text").defaults(&[SPLIT]),
    Taken::new("torchtune.datasets.wikitext_dataset", "text").defaults(&[
        TheirDefault::hub("hf://EleutherAI/wikitext_document_level"),
        TheirDefault::new("column", "page"),
        SPLIT,
    ]),
    Taken::new("torchtune.datasets.cnn_dailymail_articles_dataset", "text").defaults(&[
        TheirDefault::hub("hf://ccdv/cnn_dailymail"),
        TheirDefault { key: "subset", value: "3.0.0", unless: &["name", "data_files"] },
        TheirDefault::new("column", "article"),
        SPLIT,
    ]),
    Taken::new("torchtune.datasets.hh_rlhf_helpful_dataset", "preference")
        .defaults(&[TheirDefault::hub("hf://RLHFlow/HH-RLHF-Helpful-standard")]),
    Taken::new("torchtune.datasets.stack_exchange_paired_dataset", "preference_instruct").defaults(&[
        TheirDefault::hub("hf://lvwerra/stack-exchange-paired/data/rl"),
        TheirDefault::new("column_map", "{prompt: question, chosen: response_j, rejected: response_k}"),
    ]),
    Taken::new("torchtune.training.metric_logging.TensorBoardLogger", "tensorboard")
        .keys(&[ignored("organize_logs", "the files are in log_dir itself")]),
    Taken::new("torchtune.training.metric_logging.WandBLogger", "wandb").rest(OFFLINE).defaults(WANDB),
    Taken::new("torchtune.training.metric_logging.CometLogger", "comet").rest(NO_CLIENT),
    Taken::new("torchtune.training.metric_logging.MLFlowLogger", "mlflow").keys(MLFLOW),
    // Whole logits at a time, which here are never in memory.
    Taken::new("torchtune.modules.loss.ForwardKLLoss", "forward_kl"),
    Taken::new("torchtune.modules.loss.ReverseKLLoss", "reverse_kl"),
    Taken::new("torchtune.modules.loss.SymmetricKLLoss", "symmetric_kl"),
    // The same numbers, computed by other modules.
    Taken::new(
        "torchtune.training.quantization.Int8DynActInt4WeightQATQuantizerModuleSwap",
        "int8_dyn_act_int4_weight",
    ),
    Taken::new("torchtune.training.quantization.Int4WeightOnlyQATQuantizerModuleSwap", "int4_weight_only"),
    // What is quantized, after training for it or without.
    quantizer("torchtune.training.quantization.Int8DynActInt4WeightQuantizer", AS_Q4_0, Q4_0),
    quantizer("torchtune.training.quantization.Int8DynActInt4WeightQATQuantizer", AS_Q4_0_NOW, Q4_0),
    quantizer("torchtune.training.quantization.Int8DynActInt4WeightQATQuantizerModuleSwap", AS_Q4_0_NOW, Q4_0),
    quantizer("torchtune.training.quantization.Int4WeightOnlyQuantizer", AS_Q4_K_M, Q4_K_M),
    quantizer("torchtune.training.quantization.Int4WeightOnlyQATQuantizer", AS_Q4_K_M_NOW, Q4_K_M),
    quantizer("torchtune.training.quantization.Int4WeightOnlyQATQuantizerModuleSwap", AS_Q4_K_M_NOW, Q4_K_M),
    // As they were called before version 0.4.
    Taken::new("torchtune.utils.metric_logging.DiskLogger", "jsonl"),
    Taken::new("torchtune.utils.metric_logging.TensorBoardLogger", "tensorboard"),
    Taken::new("torchtune.utils.metric_logging.StdoutLogger", "stdout"),
    Taken::new("torchtune.utils.metric_logging.WandBLogger", "wandb").rest(OFFLINE).defaults(WANDB),
];

const fn refused(prefix: &'static str, what: &'static str, instead: &'static str) -> Refused {
    Refused { prefix, what, instead }
}

const PREFERENCES: &str = "start the recipe `dpo`, or train on the preferred answers alone, as `chat` or `instruct`";

const STATE_OFF_CARD: &str = "optimizers whose state is moved between a card and the processor";
const STATE_TO_DISK: &str =
    "set optimizer=adamw; on the processor, optimizer.offload_dir=FOLDER keeps its state in a file";

const OTHER_QUANTIZERS: &str = "quantizers of torchao other than torchtune's Int8DynActInt4Weight and Int4WeightOnly";
const OUR_QUANTIZER: &str = "set quantizer=gguf, and quantizer.format to a kind of GGUF file";

pub(super) const REFUSED: &[Refused] = &[
    refused(
        "torchtune.datasets.preference_dataset",
        "pairs of answers, which the recipe `dpo` learns from,",
        PREFERENCES,
    ),
    refused(
        "torchtune.datasets.hh_rlhf_helpful_dataset",
        "pairs of answers, which the recipe `dpo` learns from,",
        PREFERENCES,
    ),
    refused(
        "torchtune.datasets.stack_exchange_paired_dataset",
        "pairs of answers, which the recipe `dpo` learns from,",
        PREFERENCES,
    ),
    refused("torchtune.datasets.multimodal.", "images", "use a dataset of text"),
    refused("torchao.optim.CPUOffloadOptimizer", STATE_OFF_CARD, STATE_TO_DISK),
    refused("torchao.prototype.low_bit_optim.CPUOffloadOptimizer", STATE_OFF_CARD, STATE_TO_DISK),
    refused("torchao.quantization.", OTHER_QUANTIZERS, OUR_QUANTIZER),
    refused("torchtune.training.quantization.", OTHER_QUANTIZERS, OUR_QUANTIZER),
    refused("torchtune.utils.quantization.", OTHER_QUANTIZERS, OUR_QUANTIZER),
    refused("torchao.", "optimizers of torchao other than AdamW", "set optimizer=adamw"),
    refused("bitsandbytes.", "optimizers of bitsandbytes other than AdamW and Lion", "set optimizer=adamw"),
    refused(
        "torch.optim.Adagrad",
        "optimizers of torch other than AdamW, SGD, Adafactor and Muon",
        "set optimizer=adamw",
    ),
    refused(
        "torch.optim.RMSprop",
        "optimizers of torch other than AdamW, SGD, Adafactor and Muon",
        "set optimizer=adamw",
    ),
];
