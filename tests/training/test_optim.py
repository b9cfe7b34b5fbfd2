import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mcn_jax
from mcn_jax.config import OptimizerConfig
from mcn_jax.layers.batch_norm import BATCH_NORM
from mcn_jax.layers.conv import CONV
from mcn_jax.layers.dense import DENSE
from mcn_jax.layers.family import Group
from mcn_jax.layers.mcconv import MCCONV
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.plan import plan_of_module
from mcn_jax.training import optim
from small_runs import planned

CONFIG = OptimizerConfig(weight_decay=0.01, schedule="constant")


def tree(seed=0):
    generator = np.random.default_rng(seed)
    return {
        "conv_1": {
            "latent_filters": generator.normal(size=(3, 3, 4, 2)),
            "m_filters": np.abs(generator.normal(size=(3, 3, 4))) * 0.02,
        },
        "batch_norm_1": {"scale": generator.normal(size=8), "bias": generator.normal(size=8)},
        "dense_1": {"kernel": generator.normal(size=(8, 2)), "bias": generator.normal(size=2)},
    }


def plan_of_tree():
    families = {"conv_1": MCCONV, "batch_norm_1": BATCH_NORM, "dense_1": DENSE}
    return tuple(planned(name, families[name], **leaves) for name, leaves in tree().items())


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
def test_open_ended_schedules_are_those_that_do_not_depend_on_the_number_of_epochs(schedule):
    config = OptimizerConfig(schedule=schedule, schedule_epochs=(1, 3), warmup_epochs=2)
    rates = [
        [float(optim.learning_rate(config, 5, num_epochs)(step)) for step in range(20)]
        for num_epochs in (2, 4)
    ]
    assert (rates[0] == rates[1]) == (schedule in optim.OPEN_ENDED)


def test_groups_as_a_literal_tree():
    assert optim.parameter_groups(plan_of_tree()) == {
        "conv_1": {"latent_filters": "latent_filters", "m_filters": "m_filters"},
        "batch_norm_1": {"scale": "biases_and_batch_norm", "bias": "biases_and_batch_norm"},
        "dense_1": {"kernel": "kernels", "bias": "biases_and_batch_norm"},
    }


def test_the_line_that_describes_the_groups():
    assert optim.describe_groups(plan_of_tree()) == (
        "parameters: biases_and_batch_norm 18 in 3, kernels 16 in 1, latent_filters 72 in 1,"
        " m_filters 36 in 1"
    )


class Gate(nn.Module):
    """A module that does not belong to any layer family."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("alpha", nn.initializers.ones, (1, 1, 1, 1))


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Gate(name="gate")(x)


def test_a_parameter_without_a_group_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="parameter gate/alpha belongs to no layer family"):
        plan_of_module(Network(), (4, 4, 1))
    known = dataclasses.replace(CONV, module=Gate)
    monkeypatch.setitem(LAYERS, "gate", known)
    with pytest.raises(ValueError, match=r"gate/alpha belongs to no group .* has conv/kernel"):
        plan_of_module(Network(), (4, 4, 1))


def test_a_rate_and_a_projection_are_those_of_the_group():
    """The group is from a family that is unknown to the optimizer."""
    group = Group(name="own", rate="m_learning_rate", projection=jnp.abs)
    family = dataclasses.replace(CONV, groups={"conv/kernel": group})
    plan = (planned("layer", family, **{"conv/kernel": np.ones(3)}),)
    assert optim.parameter_groups(plan) == {"layer": {"conv": {"kernel": "own"}}}
    config = dataclasses.replace(CONFIG, momentum=0.0)
    optimizer = optim.make_optimizer(config, steps_per_epoch=10, num_epochs=1, plan=plan)
    params = {"layer": {"conv": {"kernel": jnp.array([0.01, 0.5, 0.0])}}}
    gradients = {"layer": {"conv": {"kernel": jnp.array([3.0, 3.0, -2.0])}}}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)["layer"]["conv"]["kernel"]
    # 0.01 times the gradient plus 0.01 times the parameter.
    np.testing.assert_allclose(moved, [0.020001, 0.46995, 0.02], rtol=1e-5)


def test_two_groups_of_one_name_must_be_alike():
    other = dataclasses.replace(CONV, groups={"conv/kernel": Group(name="kernels", decay=None)})
    plan = (planned("layer", other, **{"conv/kernel": np.ones(3)}),)
    with pytest.raises(ValueError, match=r"group 'kernels' of layer is .*; give it another name"):
        optim.make_optimizer(CONFIG, steps_per_epoch=10, num_epochs=1, plan=plan)


@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_three_steps_of_sgd_by_hand(schedule):
    """v <- mu v + g; p <- p - rate (g + mu v), with g the gradient plus L2; M takes |.|.

    The step schedule divides both rates by five before the third step.
    """
    config = dataclasses.replace(CONFIG, schedule=schedule, schedule_epochs=(1,))
    params = expected = tree()
    velocity = jax.tree.map(np.zeros_like, params)
    with jax.enable_x64(True):
        optimizer = optim.make_optimizer(config, 2, 2, plan_of_tree())
        params = jax.tree.map(jnp.asarray, params)
        state = optimizer.init(params)
        for step in range(3):
            gradients = tree(seed=step + 1)
            scale = 0.2 if schedule == "step" and step == 2 else 1.0
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradients), state, params)
            params = optax.apply_updates(params, updates)

            def by_hand(path, p, v, g, scale=scale):
                name = path[-1].key
                g = g + 0.01 * p if name in ("latent_filters", "kernel") else g
                v = 0.9 * v + g
                p = p - scale * (0.01 if name == "m_filters" else 0.1) * (g + 0.9 * v)
                return (np.abs(p) if name == "m_filters" else p), v

            pairs = jax.tree_util.tree_map_with_path(by_hand, expected, velocity, gradients)
            expected, velocity = jax.tree.transpose(
                jax.tree.structure(expected), jax.tree.structure((0, 0)), pairs
            )
    params = jax.tree.map(np.asarray, params)
    assert np.min(params["conv_1"]["m_filters"]) >= 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), params, expected)


def test_m_is_reflected_at_zero():
    """Eq. 15: M <- |M - eta2 * g|."""
    config = dataclasses.replace(CONFIG, momentum=0.0)
    plan = (planned("conv", MCCONV, m_filters=np.ones(3)),)
    optimizer = optim.make_optimizer(config, steps_per_epoch=10, num_epochs=1, plan=plan)
    params = {"conv": {"m_filters": jnp.array([0.01, 0.5, 0.0])}}
    gradients = {"conv": {"m_filters": jnp.array([3.0, 3.0, -2.0])}}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)["conv"]["m_filters"]
    np.testing.assert_allclose(moved, [0.02, 0.47, 0.02], rtol=1e-5)


def moved(config, name, values, steps):
    """Returns a parameter of an MCconv after a step with each of the gradients."""
    plan = (planned("conv", MCCONV, **{name: values}),)
    optimizer = optim.make_optimizer(config, steps_per_epoch=10, num_epochs=1, plan=plan)
    with jax.enable_x64(True):
        params = {"conv": {name: jnp.asarray(values)}}
        state = optimizer.init(params)
        for gradient in steps:
            gradients = {"conv": {name: jnp.asarray(gradient)}}
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
    return np.asarray(params["conv"][name])


def test_m_may_have_its_own_momentum():
    config = dataclasses.replace(CONFIG, momentum=0.9, m_momentum=0.5, nesterov=False)
    m = moved(config, "m_filters", np.array([1.0]), [[1.0], [2.0]])
    # v is 1, then 0.5 + 2; the rate of M is 0.01.
    np.testing.assert_allclose(m, [1 - 0.01 * (1 + 2.5)], rtol=1e-12)
    latent = moved(
        dataclasses.replace(config, weight_decay=0.0),
        "latent_filters", np.full((1, 1, 1, 1), 1.0), [[[[[1.0]]]], [[[[2.0]]]]],
    )  # fmt: skip
    np.testing.assert_allclose(latent, [[[[1 - 0.1 * (1 + 2.9)]]]], rtol=1e-12)


@pytest.mark.parametrize(
    ("target", "expected"),
    [("one", [0.5 + 0.01 * 0.1, 3 - 0.01 * 0.4]), ("none", [0.5 - 0.01 * 0.1, 3 - 0.01 * 0.6])],
)
def test_m_may_decay_to_one_or_to_zero(target, expected):
    config = dataclasses.replace(CONFIG, momentum=0.0, m_decay=0.2, m_decay_target=target)
    m = moved(config, "m_filters", np.array([0.5, 3.0]), [[0.0, 0.0]])
    np.testing.assert_allclose(m, expected, rtol=1e-12)


def test_a_decay_of_zero_leaves_the_state_of_the_optimizer_as_it_was():
    """Checkpoints from before this option must fit."""
    plan = (planned("conv", MCCONV, m_filters=np.ones(3)),)
    params = {"conv": {"m_filters": jnp.ones(3)}}
    with_decay, without = (
        jax.tree.structure(optim.make_optimizer(config, 10, 1, plan).init(params))
        for config in (dataclasses.replace(CONFIG, m_decay=0.1), CONFIG)
    )
    assert without == jax.tree.structure(
        optim.make_optimizer(dataclasses.replace(CONFIG, m_momentum=0.1), 10, 1, plan).init(params)
    )
    assert with_decay != without


def test_latent_filters_may_be_centered_after_each_update():
    generator = np.random.default_rng(0)
    latent, gradient = generator.normal(1, 1, (2, 3, 3, 4, 5))
    config = dataclasses.replace(CONFIG, momentum=0.0, weight_decay=0.0, center_latents=True)
    found = moved(config, "latent_filters", latent, [gradient])
    plain = latent - 0.1 * gradient
    for h in range(5):
        expected = plain[..., h] - plain[..., h].mean()
        np.testing.assert_allclose(found[..., h], expected, rtol=1e-11, atol=1e-12)
    off = moved(
        dataclasses.replace(config, center_latents=False), "latent_filters", latent, [gradient]
    )
    np.testing.assert_allclose(off, plain, rtol=1e-12)


def test_projected_parameters_are_never_negative_in_floating_point():
    projection = optim.absolute_projection()
    generator = np.random.default_rng(0)
    params = jnp.asarray(np.abs(generator.normal(size=200_000)), jnp.float32)
    # Updates within a few units in the last place of -p, where rounding could cross zero.
    updates = -params * (1 + jnp.asarray(generator.integers(-4, 5, params.size) * 2.0**-24))
    projected, _ = projection.update(updates, projection.init(params), params)
    moved = optax.apply_updates(params, projected)
    assert jnp.min(moved) >= 0
    np.testing.assert_allclose(moved, jnp.abs(params + updates), atol=3e-7)


def test_adadelta_moves_m_and_keeps_it_non_negative():
    config = dataclasses.replace(CONFIG, name="adadelta", learning_rate=1.0, m_learning_rate=50.0)
    optimizer = optim.make_optimizer(config, 10, 1, plan_of_tree())
    params = jax.tree.map(jnp.asarray, tree())
    state, before = optimizer.init(params), params
    for seed in range(20):
        gradients = jax.tree.map(jnp.asarray, tree(seed + 1))
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert jnp.min(params["conv_1"]["m_filters"]) >= 0
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), params, before)
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("step", {0: 1, 19: 1, 20: 0.2, 29: 0.2, 30: 0.04, 99: 0.04}),
        ("cosine", {0: 1, 25: 0.5 + 0.25 * 2**0.5, 50: 0.5, 100: 0}),
        ("constant", {0: 1, 99: 1}),
        # 10^-1/10 = 0.7943282 in each epoch; a tenth is left after the tenth.
        ("exponential", {0: 1, 9: 1, 10: 0.7943282, 19: 0.7943282, 20: 0.6309573, 50: 10**-0.5,
                         99: 0.1258925, 100: 0.1, 150: 0.1}),
    ],
)  # fmt: skip
def test_schedules(schedule, expected):
    config = OptimizerConfig(
        schedule=schedule, schedule_epochs=(2, 3), schedule_factor=0.2, schedule_final=0.1
    )
    scale = optim.rate_scale(config, steps_per_epoch=10, num_epochs=10)
    for step, value in expected.items():
        np.testing.assert_allclose(scale(step), value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("first", "last"), [(0.003, 2e-6), (0.001, 3e-7)])
def test_the_exponential_rates_of_binaryconnect_and_bnn(first, last):
    """As in the authors' programs: rate *= (last / first)^(1 / epochs) after each epoch."""
    config = OptimizerConfig(
        learning_rate=first, schedule="exponential", schedule_final=last / first
    )
    rate = optim.learning_rate(config, steps_per_epoch=900, num_epochs=500)
    expected = first
    for epoch in range(501):
        if epoch % 100 == 0:
            steps = jnp.asarray([900 * epoch, 900 * epoch + 899])
            np.testing.assert_allclose(jax.jit(rate)(steps[0]), expected, rtol=2e-5)
            np.testing.assert_allclose(rate(int(steps[1])), expected, rtol=2e-5)
        expected *= (last / first) ** (1 / 500)


def test_a_change_of_rate_may_lie_beyond_any_run():
    config = OptimizerConfig(schedule="step", schedule_epochs=(2, 10**9), schedule_factor=0.2)
    scale = jax.jit(optim.rate_scale(config, steps_per_epoch=10, num_epochs=10))
    np.testing.assert_allclose([scale(19), scale(20), scale(99)], [1, 0.2, 0.2], rtol=1e-6)


def test_warmup_rises_linearly():
    config = OptimizerConfig(schedule="constant", warmup_epochs=2, learning_rate=0.1)
    rate = optim.learning_rate(config, steps_per_epoch=5, num_epochs=10)
    np.testing.assert_allclose(
        [rate(s) for s in (0, 4, 9, 10, 49)], [0.01, 0.05, 0.1, 0.1, 0.1], rtol=1e-6
    )


def test_the_projection_has_its_public_names():
    assert mcn_jax.absolute_projection is optim.absolute_projection
    assert mcn_jax.optim is optim
    with pytest.raises(AttributeError, match="no attribute 'absolut_projection'"):
        _ = mcn_jax.absolut_projection
