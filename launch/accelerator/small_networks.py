"""The small networks of the tables, which train many at a time in float32.

Each system of a comparison gets the same number of trials. They train on 90 % of the training
images and are judged on the others. The final runs take the fields of the best trial.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from plans import U_MCN, WRN, WRN_HALF, Training

Fields = Mapping[str, Any]

# Measured at 4-4-8-16 maps with 16 runs at a time and NVIDIA's Multi-Process Service: the time of a
# step over the number of runs. Wider networks were not measured.
STEP_SECONDS, START_SECONDS = 0.0011, 44
SEEDS = range(3)
VALIDATION = {"data.train_split": "train[:90%]", "data.test_split": "train[90%:]"}
TRIAL_EPOCHS = 10
ONE_BIT = {"model.planes": 2, "binarize.start_epoch": 0}
LINEAR = {"model.head": "linear"}
RATES = [{"optimizer.learning_rate": 0.1}, {"optimizer.learning_rate": 0.03}]
RATES_AT_EQUAL_BITS = [*RATES, {"optimizer.learning_rate": 0.3}]
ADAM_RATES = [
    {"optimizer.name": "adam", "optimizer.learning_rate": rate} for rate in (0.003, 0.001, 0.01)
]

# Systems of 67,000 filter bits each at 4-4-8-16 maps, or of as many float32 weights.
EQUAL_BITS: Mapping[str, Fields] = {
    "mcn": {"binarize.start_epoch": 2},
    "mcn_hadamard": {"binarize.start_epoch": 2, "model.plane_signs": "hadamard"},
    "umcn": U_MCN,
    "wrn": WRN_HALF,
    **{
        kind: {"model.conv": kind, **ONE_BIT}
        for kind in ("binaryconnect", "bwn", "dorefa", "mcdonnell", "irnet")
    },
}
# The same with one-bit activations.
ONE_BIT_ACTIVATIONS = {kind: {"model.conv": kind, **ONE_BIT} for kind in ("bnn", "xnor")}

# ResNet-18s of 16-32-64-128 channels: {name: (config, fields, what is tried)}.
MAP_RATES = [{"optimizer.filter_map_rate_scale": scale} for scale in (4.0, 10.0)]
SUM_RATES = [{"optimizer.filter_map_rate_scale": scale} for scale in (1.0, 4.0)]
SUM = {"model.filter_map_gradient": "sum"}
MAP, PHC = "filter_map_resnet18_cpu", "phc_resnet18_n2_cpu"
RESNETS: Mapping[str, tuple[str, Fields, Sequence[Fields]]] = {
    "ordinary": (MAP, WRN, RATES),
    "filter_map_mean": (MAP, {}, MAP_RATES),
    "filter_map_sum": (MAP, SUM, SUM_RATES),
    "filter_map_one_bit": (
        MAP,
        SUM
        | {
            "model.conv": "filter_map_sign", "model.pointwise": "mcdonnell",
            "binarize.start_epoch": 0,
        },
        SUM_RATES,
    ),
    "ordinary_of_its_weights": (MAP, WRN | {"model.widths": (6, 6, 12, 23, 46)}, RATES),
    "phc_n2": (PHC, {}, RATES),
    "phc_n3": (PHC, {"model.phc_n": 3, "model.widths": (15, 15, 30, 63, 129)}, RATES),
    "phc_n4": (PHC, {"model.phc_n": 4}, RATES),
    "mcn": ("resnet18_mcn", {"model.widths": (4, 4, 8, 16, 32)}, RATES),
}  # fmt: skip
RESNET_TINY = {"model.widths": (12,) * 5, "model.blocks": (1, 1, 1, 1)}

BATCH_NORM_ANEW: Fields = {"batch_norm_steps": 100}

# Networks of 8-8-16-32 maps, for longer.
LONG_EPOCHS = 100
WIDER = {"model.widths": (8, 8, 16, 32), **BATCH_NORM_ANEW}
LONG: Mapping[str, Fields] = {
    "mcn": LINEAR,
    "mcn_hadamard": LINEAR | {"model.plane_signs": "hadamard"},
    "mcn_dense_head": {},
    "mcdonnell": EQUAL_BITS["mcdonnell"] | LINEAR,
    "irnet": EQUAL_BITS["irnet"] | LINEAR,
    "wrn": EQUAL_BITS["wrn"] | LINEAR,
}

# What could make the planes of an MCN differ, one change at a time; the best pattern with a second
# change; and marks beside them: float filters, and a plain one-bit layer.
PLANES: Mapping[str, Fields] = {
    "usual": {},
    "m_rate_0.1": {"optimizer.m_learning_rate": 0.1},
    "m_rate_1": {"optimizer.m_learning_rate": 1.0},
    "m_momentum_0": {"optimizer.m_momentum": 0.0},
    "m_decay_to_one": {"optimizer.m_decay": 5e-4},
    "m_decay_to_zero": {"optimizer.m_decay": 5e-4, "optimizer.m_decay_target": "none"},
    "m_noise_0.5": {"model.m_noise": 0.5},
    "m_disjoint": {"model.m_init": "disjoint"},
    "m_orientations": {"model.m_init": "orientations"},
    "hadamard": {"model.plane_signs": "hadamard"},
    "quaternion": {"model.plane_signs": "quaternion"},
    "circulant": {"model.plane_signs": "circulant"},
    "quaternion_m_disjoint": {"model.plane_signs": "quaternion", "model.m_init": "disjoint"},
    "quaternion_binary_from_the_start": {
        "model.plane_signs": "quaternion", "binarize.start_epoch": 0
    },
    "centered_latents": {"optimizer.center_latents": True},
    "theta_0.1_linear": {"loss.theta": 0.1, "loss.theta_schedule": "linear"},
    "theta_1_linear": {"loss.theta": 1.0, "loss.theta_schedule": "linear"},
    "binary_from_the_start": {"binarize.start_epoch": 0},
    "centers_each_epoch": {"binarize.refresh_epochs": 1},
    "symmetric_centers": {"binarize.centers": "symmetric"},
    "ede": {"binarize.estimator": "ede"},
    "reste": {"binarize.estimator": "reste"},
    "rate_0.3": {"optimizer.learning_rate": 0.3},
    "hadamard_rate_0.3": {"model.plane_signs": "hadamard", "optimizer.learning_rate": 0.3},
    "hadamard_rate_0.3_decay_1e-4": {
        "model.plane_signs": "hadamard", "optimizer.learning_rate": 0.3,
        "optimizer.weight_decay": 1e-4,
    },
    "hadamard_rate_0.3_batch_norm_anew": {
        "model.plane_signs": "hadamard", "optimizer.learning_rate": 0.3, **BATCH_NORM_ANEW
    },
    "mcdonnell_rate_0.3": EQUAL_BITS["mcdonnell"] | {"optimizer.learning_rate": 0.3},
    "hadamard_binary_after_half": {"model.plane_signs": "hadamard", "binarize.start_epoch": 6},
    "hadamard_ede": {"model.plane_signs": "hadamard", "binarize.estimator": "ede"},
    "hadamard_reste": {"model.plane_signs": "hadamard", "binarize.estimator": "reste"},
    "batch_norm_anew": BATCH_NORM_ANEW,
    "averaged": {"optimizer.average_epochs": 2, **BATCH_NORM_ANEW},
    # Nearly the same filter bits with other numbers of planes.
    "k_2": {"model.planes": 2, "model.widths": (6, 6, 11, 23)},
    "k_8": {"model.planes": 8, "model.widths": (3, 3, 6, 11)},
    "circulant_k_8": {
        "model.planes": 8, "model.widths": (3, 3, 6, 11), "model.plane_signs": "circulant"
    },
    "hadamard_k_8": {
        "model.planes": 8, "model.widths": (3, 3, 6, 11), "model.plane_signs": "hadamard"
    },
    "umcn": U_MCN,
    "quaternion_umcn": {"model.plane_signs": "quaternion", **U_MCN},
    "hadamard_rate_0.3_umcn": {
        "model.plane_signs": "hadamard", "optimizer.learning_rate": 0.3, **U_MCN
    },
    "distilled": {},
    "quaternion_distilled": {"model.plane_signs": "quaternion"},
    "hadamard_rate_0.3_distilled": {
        "model.plane_signs": "hadamard", "optimizer.learning_rate": 0.3
    },
    "hadamard_rate_0.3_distilled_batch_norm_anew": {
        "model.plane_signs": "hadamard", "optimizer.learning_rate": 0.3, **BATCH_NORM_ANEW
    },
    "mcdonnell": EQUAL_BITS["mcdonnell"],
    "mcdonnell_rate_0.3_distilled_batch_norm_anew": {
        **EQUAL_BITS["mcdonnell"], "optimizer.learning_rate": 0.3, **BATCH_NORM_ANEW
    },
}  # fmt: skip
PLANES_TEACHERS = {
    "distilled": "umcn",
    "quaternion_distilled": "quaternion_umcn",
    "hadamard_rate_0.3_distilled": "hadamard_rate_0.3_umcn",
    "hadamard_rate_0.3_distilled_batch_norm_anew": "hadamard_rate_0.3_umcn",
    "mcdonnell_rate_0.3_distilled_batch_norm_anew": "hadamard_rate_0.3_umcn",
}
PLANES_EPOCHS = 12
# A rehearsal has 10 steps per epoch and one binary epoch.
TINY_MOST = {"batch_norm_steps": 5, "optimizer.average_epochs": 1, "binarize.start_epoch": 2}

POOLINGS = ("strided", "max", "average", "spectral", "diffstride")
STARTS: Mapping[str, Fields] = {"222": {}, "323": {"model.strides": (1, 3, 2, 3)}}


def _run(
    name: str,
    config: str,
    fields: Fields,
    epochs: int,
    tiny: Fields,
    choices: Mapping[str, Fields],
    teacher: str = "",
) -> Training:
    common = {"dtype": "float32", "optimizer.schedule": "cosine"}
    lowered = {
        field: min(fields[field], most) for field, most in TINY_MOST.items() if field in fields
    }
    return Training(
        name=name, config=config, fields=common | dict(fields), step_seconds=STEP_SECONDS,
        start_seconds=START_SECONDS, tiny=lowered | dict(tiny), epochs=epochs, choices=choices,
        teacher=teacher,
    )  # fmt: skip


def _trials_and_finals(
    name: str,
    config: str,
    fields: Fields,
    tried: Sequence[Fields],
    *,
    seeds: Sequence[int] = SEEDS,
    tiny: Fields | None = None,
) -> tuple[list[Training], list[Training]]:
    """Returns the trials of a system, and its final runs of 30 epochs, one for each seed."""
    tiny = tiny or {}
    choices = {f"{name}_trial{number}": choice for number, choice in enumerate(tried)}
    trials = [
        _run(trial, config, {**fields, **VALIDATION, **choice}, TRIAL_EPOCHS, tiny, {})
        for trial, choice in choices.items()
    ]
    finals = [
        _run(f"{name}_seed{seed}", config, {**fields, "seed": seed}, 30, tiny, choices)
        for seed in seeds
    ]
    return trials, finals


def _in_order(systems: Sequence[tuple[list[Training], list[Training]]]) -> list[Training]:
    """Returns all trials, then all final runs of the first seed, of the second, and so on."""
    trials = [trial for one, _ in systems for trial in one]
    finals = zip(*(one for _, one in systems), strict=True)
    return trials + [run for seed in finals for run in seed]


def _equal_bits() -> list[Training]:
    return _in_order(
        [
            _trials_and_finals(
                f"bits_{name}", "cifar10_cpu", LINEAR | dict(fields), RATES_AT_EQUAL_BITS
            )
            for name, fields in EQUAL_BITS.items()
        ]
    )


def _one_bit_activations() -> list[Training]:
    return _in_order(
        [
            _trials_and_finals(
                f"bits_{name}_{optimizer}", "cifar10_cpu", LINEAR | dict(fields), rates, seeds=[0]
            )
            for name, fields in ONE_BIT_ACTIVATIONS.items()
            for optimizer, rates in (("sgd", RATES_AT_EQUAL_BITS), ("adam", ADAM_RATES))
        ]
    )


def _resnets() -> list[Training]:
    return _in_order(
        [
            _trials_and_finals(f"resnet_{name}", config, fields, tried, tiny=RESNET_TINY)
            for name, (config, fields, tried) in RESNETS.items()
        ]
    )


def _long() -> list[Training]:
    return [
        _run(f"long_{name}_seed{seed}", "cifar10_cpu", WIDER | dict(fields) | {"seed": seed},
             LONG_EPOCHS, {}, {})
        for seed in SEEDS for name, fields in LONG.items()
    ]  # fmt: skip


def _planes_name(option: str | None, seed: int) -> str:
    return f"planes_{option}_seed{seed}" if option else ""


def _planes() -> list[Training]:
    return [
        _run(_planes_name(name, seed), "cifar10_cpu",
             {"binarize.start_epoch": 2, **LINEAR, **VALIDATION, **fields, "seed": seed},
             PLANES_EPOCHS, {}, {},
             _planes_name(PLANES_TEACHERS.get(name), seed))
        for seed in SEEDS for name, fields in PLANES.items()
    ]  # fmt: skip


def _poolings() -> list[Training]:
    """MCNs with each pooling, and narrow ResNet-18s with three, from two starts."""
    mcn = [
        _run(f"pooling_mcn_{pooling}", "mcn_diffstride_cpu",
             {"model.pooling": pooling, "binarize.start_epoch": 2}, 12, {}, {})
        for pooling in POOLINGS
    ]  # fmt: skip
    resnets = [
        _run(f"pooling_{pooling}_{start}_seed{seed}", "diffstride_cpu",
             dict(fields) | {"model.pooling": pooling, "seed": seed}, 30, RESNET_TINY, {})
        for seed in SEEDS
        for pooling in ("strided", "spectral", "diffstride")
        for start, fields in STARTS.items()
    ]  # fmt: skip
    return mcn + resnets


SMALL_NETWORKS = (
    *_equal_bits(), *_one_bit_activations(), *_resnets(), *_planes(), *_poolings(),
    *_long(),
)  # fmt: skip
