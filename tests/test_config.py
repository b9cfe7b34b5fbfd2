import dataclasses
import re

import pytest

from mcn_jax.config import (
    BinarizeConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    check_field,
    default_config,
    flatten,
    from_config_dict,
)
from mcn_jax.errors import InputError
from mcn_jax.layers.pooling import POOLINGS
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.heads import HEADS
from mcn_jax.training.checks import validate
from mcn_jax.training.phases import quantized_in, refreshes_before, saves_between


def test_the_default_config_is_the_dataclass_and_is_locked():
    config = default_config()
    assert from_config_dict(config) == Config()
    with pytest.raises(AttributeError, match="theta"):
        config.loss.thetaa = 1.0


def test_integers_become_floats_and_lists_tuples():
    config = default_config()
    config.loss.theta = 1
    values = config.to_dict()
    values["model"]["widths"] = [1, 2]
    frozen = from_config_dict(values)
    assert isinstance(frozen.loss.theta, float)
    assert frozen.model.widths == (1, 2)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("loss", "thet"), 1.0, "unknown field config.loss.thet; did you mean theta?"),
        (("lozz",), 1.0, "unknown field config.lozz"),
        (("loss", "theta"), "1", "config.loss.theta='1' must be of type float"),
        (("seed",), True, "config.seed=True must be of type int"),
        (("model", "widths"), (1, 2.5), "config.model.widths=(1, 2.5) must be a tuple of integers"),
    ],
)
def test_unknown_fields_and_wrong_types_are_named(path, value, message):
    values = default_config().to_dict()
    place = values
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(InputError, match=re.escape(message)):
        from_config_dict(values)


def test_a_missing_field_or_group_takes_its_default():
    """Runs of older versions do not have the fields that were added later."""
    changed = Config(
        seed=3, model=ModelConfig(depth=28), optimizer=OptimizerConfig(learning_rate=0.3)
    )
    for name, default in flatten(Config()).items():
        values = dataclasses.asdict(changed)
        group, _, field = name.rpartition(".")
        del (values[group] if group else values)[field]
        assert flatten(from_config_dict(values)) == flatten(changed) | {name: default}
    values = dataclasses.asdict(changed)
    del values["optimizer"]
    expected = dataclasses.replace(changed, optimizer=OptimizerConfig())
    assert from_config_dict(values) == expected
    assert from_config_dict({}) == Config()


def test_what_is_not_a_group_of_fields_is_named():
    with pytest.raises(InputError, match=r"config\.loss=1\.0 must be a group of fields"):
        from_config_dict({"loss": 1.0})
    with pytest.raises(InputError, match=r"config=7 must be a group of fields"):
        from_config_dict(7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(loss=LossConfig(theta=-1.0)), "config.loss.theta=-1.0 must not be negative"),
        (Config(loss=LossConfig(theta=float("nan"))), "config.loss.theta=nan must be finite"),
        (
            Config(optimizer=OptimizerConfig(learning_rate=float("inf"))),
            "config.optimizer.learning_rate=inf must be finite",
        ),
        (
            Config(data=DataConfig(name="mnits")),
            "config.data.name='mnits' must be one of digits, mnist, cifar10, cifar100,"
            " svhn_cropped, imagenet100, image_folder, or NAME, NAME/CONFIG or NAME:VERSION of a"
            " data set that TFDS has prepared in",
        ),
        (Config(data=DataConfig(name="cifr10")), "; did you mean cifar10?"),
        (
            Config(data=DataConfig(pipeline="stream")),
            "config.data.pipeline='stream' must be one of auto, resident, streamed",
        ),
        (Config(data=DataConfig(cutout=-1)), "config.data.cutout=-1 must not be negative"),
        (Config(data=DataConfig(color_jitter=1.5)), "config.data.color_jitter=1.5 must lie in"),
        (Config(data=DataConfig(center_crop=0.0)), "config.data.center_crop=0.0 must lie in"),
        (
            Config(data=DataConfig(background=256)),
            "config.data.background=256 must be a gray level",
        ),
        (Config(data=DataConfig(background=-2)), "config.data.background=-2 must be a gray level"),
        (Config(data=DataConfig(test_fraction=1.0)), "config.data.test_fraction=1.0 must lie in"),
        (
            Config(data=DataConfig(name="image_folder")),
            "config.data.image_size=0 must be set for image_folder",
        ),
        (
            Config(data=DataConfig(min_crop_area=0.08)),
            "config.data.min_crop_area=0.08 is for images that differ in size, unlike those of",
        ),
        (
            Config(data=DataConfig(min_crop_area=0.08, pipeline="resident")),
            "config.data.pipeline='resident' cannot crop images at random",
        ),
        (
            Config(data=DataConfig(mixup=0.2), loss=LossConfig(center_loss_weight=0.1)),
            "config.data.mixup=0.2 mixes images of two classes",
        ),
        (
            Config(data=DataConfig(image_size=24)),
            "config.data.image_size=24 is smaller than the images of 32x32",
        ),
        (
            Config(data=DataConfig(center_crop=0.5)),
            "config.data.center_crop=0.5 is for images that differ in size, unlike those of digits",
        ),
        (
            Config(data=DataConfig(root="/x")),
            "config.data.root='/x' is not used by digits; leave it out",
        ),
        (
            Config(data=DataConfig(cutout=33)),
            "config.data.cutout=33 is larger than an image of 32x32 pixels",
        ),
        (
            Config(data=DataConfig(crop_padding=400)),
            "config.data.crop_padding=400 is larger than an image of 32x32",
        ),
        (
            Config(data=DataConfig(mixup=0.2), batch_size=33),
            "config.batch_size=33 is not divisible by 2 times the 1 devices",
        ),
        (
            Config(model=ModelConfig(conv="mconv")),
            f"config.model.conv='mconv' must be one of {', '.join(LAYERS)}; did you mean mcconv?",
        ),
        (
            Config(model=ModelConfig(pooling="stride")),
            f"config.model.pooling='stride' must be one of {', '.join(POOLINGS)}; did you mean",
        ),
        (
            Config(model=ModelConfig(head="dens")),
            f"config.model.head='dens' must be one of {', '.join(HEADS)}; did you mean dense?",
        ),
        (Config(model=ModelConfig(widths=())), "config.model.widths=() must name at least one"),
        (
            Config(model=ModelConfig(widths=(20, 0))),
            "config.model.widths=(20, 0) must each be at least 1 feature map",
        ),
        (
            Config(model=ModelConfig(planes=10**12)),
            "with config.model.planes=1000000000000 and config.model.dense_features=1024 are too",
        ),
        (
            Config(model=ModelConfig(widths=(1,) * 6)),
            "config.model.widths=(1, 1, 1, 1, 1, 1) has too many layers for images of 32",
        ),
        (Config(model=ModelConfig(dropout_rate=1.0)), "config.model.dropout_rate=1.0 must lie in"),
        (Config(dtype="float16"), "config.dtype='float16' must be one of float32"),
        (Config(batch_size=0), "config.batch_size=0 must be at least 1"),
        (
            Config(binarize=BinarizeConfig(num_centers=1)),
            "config.binarize.num_centers=1 must lie in 2..256",
        ),
        (
            Config(optimizer=OptimizerConfig(schedule_epochs=(2, 1))),
            "config.optimizer.schedule_epochs=(2, 1) must increase",
        ),
        (
            Config(optimizer=OptimizerConfig(schedule_epochs=(-1, 1))),
            "config.optimizer.schedule_epochs=(-1, 1) must increase, from 0 or more",
        ),
        (
            Config(optimizer=OptimizerConfig(schedule_final=0.0)),
            "config.optimizer.schedule_final=0.0 must lie in (0, 1]",
        ),
        (
            Config(optimizer=OptimizerConfig(schedule_final=1.5)),
            "config.optimizer.schedule_final=1.5 must lie in (0, 1]",
        ),
        (
            Config(model=ModelConfig(plane_signs="quaternions")),
            "config.model.plane_signs='quaternions' must be one of hadamard, quaternion, circulant",
        ),
        (
            Config(model=ModelConfig(plane_signs="quaternion", planes=2)),
            "config.model.plane_signs='quaternion' is for maps of 4 planes, not 2",
        ),
        (
            Config(model=ModelConfig(plane_signs="hadamard", conv="conv")),
            "config.model.plane_signs='hadamard' is read only by mcconv, and the network",
        ),
        (
            Config(model=ModelConfig(m_init="disjont")),
            "config.model.m_init='disjont' must be one of noise, disjoint, orientations; did you",
        ),
        (
            Config(model=ModelConfig(m_init="disjoint", planes=10)),
            "config.model.m_init='disjoint' gives each plane its own taps, but 10 planes share 3x3"
            " taps in conv_1",
        ),
        (
            Config(model=ModelConfig(m_init="disjoint", conv="conv")),
            "config.model.m_init='disjoint' is read only by mcconv, and the network",
        ),
        (
            Config(optimizer=OptimizerConfig(m_momentum=1.0)),
            "config.optimizer.m_momentum=1.0 must lie in [0, 1), except that -1 takes",
        ),
        (
            Config(optimizer=OptimizerConfig(m_momentum=0.5, name="adam")),
            "config.optimizer.m_momentum=0.5 needs config.optimizer.name=sgd, because adam has no",
        ),
        (
            Config(optimizer=OptimizerConfig(m_decay=-0.1)),
            "config.optimizer.m_decay=-0.1 must not be negative",
        ),
        (
            Config(optimizer=OptimizerConfig(m_decay_target="zero")),
            "config.optimizer.m_decay_target='zero' must be one of one, none",
        ),
        *(
            (
                Config(model=ModelConfig(conv="conv"), optimizer=OptimizerConfig(**{field: value})),
                f"config.optimizer.{field}={value} is read only by mcconv, and the network",
            )
            for field, value in (("m_momentum", 0.5), ("m_decay", 0.1), ("center_latents", True))
        ),
        *(
            (
                Config(model=ModelConfig(conv=conv), binarize=BinarizeConfig(**{field: value})),
                f"config.binarize.{field}={value!r} is read only by {layers}, and the network",
            )
            for conv, field, value, layers in (
                ("mcdonnell", "estimator", "ede", "mcconv, irnet and recu"),
                ("filter_map_kmeans", "estimator", "reste", "mcconv, irnet and recu"),
                ("bwn", "num_centers", 4, "mcconv and filter_map_kmeans"),
                ("irnet", "centers", "symmetric", "mcconv and filter_map_kmeans"),
                ("bnn", "k_gradient", True, "xnor"),
            )
        ),
        (
            Config(loss=LossConfig(theta_schedule="cosine")),
            "config.loss.theta_schedule='cosine' must be one of constant, linear",
        ),
        (
            Config(model=ModelConfig(conv="conv"), loss=LossConfig(theta_schedule="linear")),
            "config.loss.theta_schedule='linear' is read only by mcconv, and the network",
        ),
        (
            Config(binarize=BinarizeConfig(centers="median")),
            "config.binarize.centers='median' must be one of kmeans, symmetric",
        ),
        (
            Config(binarize=BinarizeConfig(centers="symmetric", num_centers=3)),
            'config.binarize.num_centers=3 must be 2 with config.binarize.centers="symmetric"',
        ),
        (
            Config(model=ModelConfig(conv="bwn"), binarize=BinarizeConfig(centers="symmetric")),
            "config.binarize.centers='symmetric' is read only by mcconv and filter_map_kmeans, and",
        ),
        (
            Config(optimizer=OptimizerConfig(average_epochs=191), batch_norm_steps=10),
            "config.optimizer.average_epochs=191 must be at most 190, the number of epochs",
        ),
        (
            Config(optimizer=OptimizerConfig(average_epochs=2)),
            "config.optimizer.average_epochs=2 needs config.batch_norm_steps, such as 100",
        ),
        (
            Config(batch_norm_steps=400, data=DataConfig(name="digits")),
            "config.batch_norm_steps=400 exceeds the 11 batches of the training images",
        ),
        (
            Config(loss=LossConfig(distillation=0.5)),
            "config.loss.distillation=0.5 is only for runs with a teacher; set config.loss.teacher",
        ),
        (
            Config(loss=LossConfig(temperature=0.0)),
            "config.loss.temperature=0.0 must be greater than 0",
        ),
        (
            Config(loss=LossConfig(teacher="runs/x", data="squared_hinge")),
            "config.loss.data='squared_hinge' must be 'softmax' with config.loss.teacher",
        ),
        (
            Config(num_epochs=10),
            "config.binarize.start_epoch=10 leaves none of the 10 epochs for binary filters",
        ),
        (
            Config(num_epochs=5),
            "config.binarize.start_epoch=10 leaves none of the 5 epochs for binary filters",
        ),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(config, message):
    with pytest.raises(InputError, match=re.escape(message)):
        validate(config)


def test_a_run_that_began_with_a_field_that_no_layer_reads_may_resume():
    config = Config(model=ModelConfig(conv="mcdonnell"), binarize=BinarizeConfig(estimator="ede"))
    validate(config, is_new=False)
    with pytest.raises(InputError, match="estimator='ede' is read only by mcconv, irnet and"):
        validate(config)


def test_a_batch_that_the_devices_do_not_divide():
    with pytest.raises(InputError, match=r"batch_size=100 is not divisible by the 8 .*96 and 104"):
        validate(Config(batch_size=100), num_devices=8)
    validate(Config(batch_size=104), num_devices=8)


def test_ordinary_convolutions_and_u_mcns_need_no_start_epoch():
    validate(Config(num_epochs=5, model=ModelConfig(conv="conv")))
    validate(Config(num_epochs=5, binarize=BinarizeConfig(enabled=False)))


def test_override_names_are_checked():
    check_field("optimizer.schedule_epochs")
    with pytest.raises(InputError, match=r"config.los.theta; did you mean loss.theta\?"):
        check_field("los.theta")


def test_when_filters_are_binary_and_centers_computed():
    config = Config(binarize=BinarizeConfig(start_epoch=2, refresh_epochs=3))
    assert [quantized_in(config, e) for e in range(4)] == [False, False, True, True]
    assert [e for e in range(10) if refreshes_before(config, e)] == [2, 5, 8]
    once = dataclasses.replace(config, binarize=BinarizeConfig(start_epoch=2))
    assert [e for e in range(10) if refreshes_before(once, e)] == [2]
    for never in (
        dataclasses.replace(config, binarize=BinarizeConfig(enabled=False, start_epoch=2)),
        dataclasses.replace(config, model=ModelConfig(conv="conv")),
    ):
        assert not any(quantized_in(never, e) or refreshes_before(never, e) for e in range(10))


def test_when_a_checkpoint_inside_an_epoch_is_due():
    config = Config(checkpoint_every_steps=10)
    pairs = [(0, 9), (9, 10), (10, 11), (8, 12), (19, 41)]
    assert [saves_between(config, *pair) for pair in pairs] == [False, True, False, True, True]
    assert not any(saves_between(Config(), *pair) for pair in pairs)


def test_flatten_names_every_field():
    flat = flatten(Config())
    assert flat["optimizer.m_learning_rate"] == 0.01
    assert flat["seed"] == 0
    assert {"loss.theta", "data.archive_dir", "model.widths", "binarize.start_epoch"} <= set(flat)
    assert not any(isinstance(value, dict) for value in flat.values())
