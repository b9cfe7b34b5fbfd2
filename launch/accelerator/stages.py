"""The stages of the accelerator queue, in order, and the time that each takes on an H100."""

from collections.abc import Mapping
from typing import Any

from plans import BFLOAT16, U_MCN, WRN, WRN_HALF, Measurement, Stage, Training
from small_networks import SMALL_NETWORKS


def _run(
    name: str,
    config: str,
    fields: Mapping[str, Any],
    ms: float,
    start: float,
    *,
    is_large: bool = False,
    tiny: Mapping[str, Any] | None = None,
) -> Training:
    fields = BFLOAT16 | dict(fields)
    return Training(
        name=name, config=config, fields=fields, step_seconds=ms / 1000, start_seconds=start,
        is_large=is_large, tiny=tiny or {},
    )  # fmt: skip


def _resnet(
    name: str, config: str, fields: Mapping[str, Any], ms: float, widths: tuple[int, ...]
) -> Training:
    """Returns a run of a ResNet-18; `widths` are those of a rehearsal."""
    tiny = {"model.widths": widths, "model.blocks": (1, 1, 1, 1)}
    return _run(name, config, fields, ms, 60, is_large=True, tiny=tiny)


def _steps(name: str, dtype: str, widths: str, steps: int, *others: str) -> Measurement:
    arguments = ("steps", f"--dtype={dtype}", f"--widths={widths}", f"--steps={steps}", *others)
    tiny = ("--widths=1,1,1,2", "--depth=8", "--batch_size=4", "--steps=2", "--repeats=5")
    return Measurement(name=name, arguments=arguments, tiny=tiny)


STRIDES_323 = {"model.strides": (1, 3, 2, 3)}

SMALL = {"model.widths": (8, 8, 16, 32)}
NARROW, WIDE = "16,16,32,64", "64,64,128,256"
# Where a time has no comment, it was measured on an H100: see results/benchmarks/h100 and the runs
# cifar10_20_70_epochs_*. A start is 10 s for the process, its imports and its data, and the
# compilations.
STAGES = {
    "bench": Stage(
        summary="training steps, single layers, the same WRN in PyTorch, and the card's best rates",
        budget=240,
        # The most important first. Layers are measured until the time is over.
        measurements=(
            _steps("step_bfloat16", "bfloat16", NARROW, 30),
            Measurement(name="machine", arguments=("machine",), tiny=("--repeats=2",)),
            Measurement(
                name="pytorch",
                arguments=("pytorch", "--dtype=bfloat16", f"--widths={NARROW}"),
                tiny=("--widths=1,1,1,2", "--batch_size=4", "--steps=2", "--repeats=5"),
                needs="torch",
            ),
            _steps("step_bfloat16_wide", "bfloat16", WIDE, 10, "--networks=MCN;WRN;U-MCN"),
            Measurement(
                name="layers",
                arguments=(
                    "layers", "--dtypes=bfloat16,float32", "--forms=direct,factored,pallas",
                ),
                tiny=("--work=1e6", "--largest_batch=4", "--calls=1", "--repeats=2"),
                suffix="",
            ),
        ),
    ),
    "c10-20": Stage(
        summary="CIFAR-10, 20 layers, 16-16-32-64 maps: MCN, then U-MCN",
        budget=300,
        data="cifar10",
        trainings=(
            (_run("mcn", "cifar10_20_16_16_32_64", {}, 3.80, 44),),
            (_run("umcn", "cifar10_20_16_16_32_64", U_MCN, 3.38, 16),),
        ),
    ),
    # No step of this width has been measured; the times of 16-16-32-64 maps are upper bounds.
    "c10-small": Stage(
        summary="CIFAR-10, 20 layers, 8-8-16-32 maps: MCN and its partners, three seeds together",
        budget=540,
        data="cifar10",
        trainings=tuple(
            tuple(
                _run(f"{name}_seed{seed}", "cifar10_20_16_16_32_64",
                     SMALL | fields | {"seed": seed}, ms, start)
                for seed in range(3)
            )
            for name, fields, ms, start in (
                ("mcn", {}, 3.80, 44), ("umcn", U_MCN, 3.38, 16),
                ("wrn_of_its_weights", WRN_HALF, 3.16, 16), ("wrn_of_its_channels", WRN, 3.16, 16),
            )
        ),
    ),
    # Of 34 layers, nothing has been measured: the time of 20 layers times the number of blocks.
    "c10-34": Stage(
        summary="CIFAR-10, the paper's network: 34 layers, 64-64-128-256 maps",
        budget=540,
        data="cifar10",
        trainings=((_run("mcn", "cifar10", {}, 17.00 * 15 / 9, 70, is_large=True),),),
    ),
    "c100-34": Stage(
        summary="CIFAR-100, the paper's network: 34 layers, 64-64-128-256 maps",
        budget=540,
        data="cifar100",
        trainings=((_run("mcn", "cifar100", {}, 17.00 * 15 / 9, 70, is_large=True),),),
    ),
    # Between the measured widths, the time is interpolated by multiply-adds.
    "c10-20-wide": Stage(
        summary="CIFAR-10, 20 layers: the book's three wider networks",
        budget=540,
        data="cifar10",
        trainings=(
            (_run("mcn_16_32_64_128", "cifar10_20_16_32_64_128", {}, 6.8, 50),),
            (_run("mcn_32_64_128_256", "cifar10_20_32_64_128_256", {}, 15.0, 50, is_large=True),),
            (_run("mcn_64_64_128_256", "cifar10_20_64_64_128_256", {}, 17.0, 50, is_large=True),),
        ),
    ),
    "small": Stage(
        summary="small networks of the tables, most important first: systems at equal bits, narrow"
        " ResNet-18s, trials of planes, poolings, 8-8-16-32 maps; takes several calls",
        budget=540,
        data="cifar10",
        trainings=(SMALL_NETWORKS,),
        at_once=16,
    ),
    # Nothing has been measured: the time of the WRN of 64-64-128-256 maps times the multiply-adds
    # of the network over those of this WRN, 643 million.
    "c10-resnet18": Stage(
        summary="CIFAR-10, ResNet-18: ordinary, filter maps, and PHC",
        budget=540,
        data="cifar10",
        trainings=(tuple(
            _resnet(name, config, fields, ms, widths)
            for name, config, fields, ms, widths in (
                ("ordinary", "filter_map_resnet18", WRN, 14.7, (16,) * 5),
                ("filter_map_mean", "filter_map_resnet18", {}, 14.7, (16,) * 5),
                ("filter_map_sum", "filter_map_resnet18", {"model.filter_map_gradient": "sum"},
                 14.7, (16,) * 5),
                ("phc_n2", "phc_resnet18_n2", {}, 13.4, (12,) * 5),
                ("phc_n3", "phc_resnet18_n3", {}, 13.4, (12,) * 5),
                ("phc_n4", "phc_resnet18_n4", {}, 13.4, (12,) * 5),
            )
        ),),
    ),
    # Likewise; an epoch of 25,000 mixed images has half of the steps.
    "c10-diffstride": Stage(
        summary="CIFAR-10, ResNet-18: strided, spectral and learned strides, from (2,2,2) and"
        " (3,2,3)",
        budget=540,
        data="cifar10",
        trainings=(tuple(
            _resnet(f"{pooling}_{start}", "diffstride", fields | {"model.pooling": pooling}, ms,
                    (2,) * 5)
            for start, fields, times in (
                ("222", {}, (7.3, 9.7, 56.0)), ("323", STRIDES_323, (4.3, 5.2, 39.0)),
            )
            for pooling, ms in zip(("strided", "spectral", "diffstride"), times, strict=True)
        ),),
    ),
}  # fmt: skip
