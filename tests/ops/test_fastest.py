"""Tests the choice of form="auto"."""

import json

import jax
import jax.numpy as jnp
import pytest

from mcn_jax.ops import fastest, native
from mcn_jax.ops.fastest import Shape, fastest_form
from mcn_jax.ops.mcconv import FORMS, mcconv

ROWS = [
    {"platform": "cpu", "dtype": "float32", **shape._asdict(), "form": form}
    for shape, form in (
        (Shape(1, 8, 4, 32, 1), "direct"),
        (Shape(8, 8, 4, 32, 1), "factored"),
        (Shape(8, 8, 1, 32, 1), "direct"),
    )
]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(fastest, "_measured", lambda: fastest.parse(ROWS))


@pytest.mark.parametrize(
    ("platform", "dtype", "shape", "form"),
    [
        ("cpu", "float32", Shape(8, 8, 4, 32, 1), "factored"),
        ("cpu", "float32", Shape(64, 64, 4, 8, 2), "factored"),
        ("cpu", "float32", Shape(1, 64, 4, 32, 1), "direct"),
        ("cpu", "float32", Shape(16, 16, 1, 16, 1), "direct"),
        ("cpu", "float32", Shape(8, 8, 8, 32, 1), "factored"),
        ("cpu", "bfloat16", Shape(8, 8, 4, 32, 1), "direct"),
        ("tpu", "float32", Shape(8, 8, 4, 32, 1), "direct"),
    ],
)
def test_the_nearest_shape_decides(table, platform, dtype, shape, form):
    assert fastest_form(platform, dtype, shape) == form


def test_the_table_in_the_package_names_forms_and_a_gain_that_fits():
    rows = json.loads(fastest.TABLE.read_text())
    assert {row["platform"] for row in rows} == set(fastest.measured_platforms())
    for row in rows:
        assert row["form"] == ("factored" if row["factored_over_direct"] < 1 else "direct")
        assert row["form"] in FORMS
    shapes = [tuple(row.values())[:7] for row in rows]
    assert len(shapes) == len(set(shapes))


@pytest.mark.parametrize("in_maps", [1, 8])
def test_auto_compiles_the_form_of_its_platform(table, in_maps, monkeypatch):
    monkeypatch.setenv(native.SWITCH, "0")
    features = jnp.ones((2, 32, 32, 4 * in_maps))
    filters, m = jnp.ones((3, 3, 4 * in_maps, 8)), jnp.ones((3, 3, 4))

    def gradient(form):
        def loss(features, filters, m):
            return jnp.sum(mcconv(features, filters, None, m, form=form) ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))

    def has_convolution(form, **options):
        lowered = gradient(form).trace(features, filters, m).lower(**options)
        return "stablehlo.convolution" in lowered.as_text()

    assert has_convolution("direct")
    assert not has_convolution("factored")
    assert has_convolution("auto") == (in_maps == 1)
    assert has_convolution("auto", lowering_platforms=("cuda",))
