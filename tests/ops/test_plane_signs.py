import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paper
from mcn_jax.ops import native, plane_signs
from mcn_jax.ops.fastest import Shape
from mcn_jax.ops.mcconv import FORMS, mcconv, takes_native
from mcn_jax.ops.modulate import reconstructed_filters
from mcn_jax.ops.plane_signs import gradient_of_plane, of_plane

CENTERS = np.array([-0.4, 0.7])
PATTERNS = [("hadamard", 2), ("hadamard", 4), ("hadamard", 8), ("quaternion", 4)]
PATTERNS += [("circulant", planes) for planes in (2, 4, 8)]

# What output plane k takes of a filter with planes a, b, c, d: the filter's plane and sign for each
# input plane, written out by hand.
HADAMARD = {
    2: ["+a +b", "+a -b"],
    4: ["+a +b +c +d", "+a -b +c -d", "+a +b -c -d", "+a -b -c +d"],
}
CIRCULANT = {
    2: ["+a +b", "+b +a"],
    4: ["+a +b +c +d", "+d +a +b +c", "+c +d +a +b", "+b +c +d +a"],
}
BY_HAND = {"hadamard": HADAMARD, "circulant": CIRCULANT}


def arrays(planes, in_maps=2, out_maps=3, taps=3, seed=0):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(2, 6, 5, in_maps * planes))
    latent = generator.normal(size=(taps, taps, in_maps * planes, out_maps))
    m = np.abs(generator.normal(size=(taps, taps, planes)))
    return features, latent, m


def expanded(filters, planes, pattern):
    """Returns one filter per output plane, [K][W, W, G*K, H], with loops over the definitions."""
    found = []
    for k in range(planes):
        taken = np.zeros_like(filters)
        for channel in range(filters.shape[2]):
            g, j = divmod(channel, planes)  # plane j of the filter
            if pattern == "hadamard":
                i, sign = j, (-1) ** bin(k & j).count("1")
            elif pattern == "circulant":
                i, sign = (j + k) % planes, 1
            else:
                [(i, sign)] = [
                    (i, SIGN_AND_BASIS[j][i][0]) for i in range(4) if SIGN_AND_BASIS[j][i][1] == k
                ]
            taken[:, :, g * planes + i] = sign * filters[:, :, channel]
        found.append(taken)
    return found


# The product of the basis elements 1, i, j, k of the quaternions: sign and element.
SIGN_AND_BASIS = [
    [(1, 0), (1, 1), (1, 2), (1, 3)],
    [(1, 1), (-1, 0), (1, 3), (-1, 2)],  # i * i = -1, i * j = k, i * k = -j
    [(1, 2), (-1, 3), (-1, 0), (1, 1)],  # j * i = -k, j * j = -1, j * k = i
    [(1, 3), (1, 2), (-1, 1), (-1, 0)],  # k * i = j, k * j = -i, k * k = -1
]


@pytest.mark.parametrize("pattern", BY_HAND)
@pytest.mark.parametrize("planes", [2, 4])
def test_a_pattern_by_hand(pattern, planes):
    values = dict(zip("abcd", (1.0, 10.0, 100.0, 1000.0), strict=True))
    filters = jnp.asarray(list(values.values())[:planes]).reshape(1, 1, planes, 1)
    for k, row in enumerate(BY_HAND[pattern][planes]):
        expected = [values[term[1]] * (1 if term[0] == "+" else -1) for term in row.split()]
        found = of_plane(filters, k, planes, pattern)
        np.testing.assert_array_equal(np.ravel(found), expected)


def test_a_filter_of_one_tap_multiplies_quaternions():
    """(1 + 2i + 3j + 4k) * (5 + 6i + 7j + 8k) = -60 + 12i + 30j + 24k."""
    filters = jnp.arange(1.0, 5.0).reshape(1, 1, 4, 1)
    features = jnp.arange(5.0, 9.0).reshape(1, 1, 1, 4)
    product = mcconv(features, filters, None, jnp.ones((1, 1, 4)), plane_signs="quaternion")
    np.testing.assert_allclose(np.ravel(product), [-60, 12, 30, 24], rtol=1e-6)


def test_hadamard_planes_of_equal_filters_are_orthogonal():
    q = reconstructed_filters(jnp.ones((3, 3, 8, 1)), jnp.ones((3, 3, 8)), "hadamard")
    rows = np.asarray(q).reshape(-1, 8)
    np.testing.assert_array_equal(rows.T @ rows, 9 * 8 * np.eye(8))


@pytest.mark.parametrize(("pattern", "planes"), PATTERNS)
def test_the_gradient_of_a_plane_undoes_it(pattern, planes):
    filters = jnp.asarray(arrays(planes)[1])
    for k in range(planes):
        back = gradient_of_plane(of_plane(filters, k, planes, pattern), k, planes, pattern)
        np.testing.assert_array_equal(back, filters)


@pytest.mark.parametrize("m_gradient", ["binary", "latent"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("pattern", "planes"), PATTERNS)
def test_output_and_gradients_are_those_of_the_expanded_filters(
    pattern, planes, stride, m_gradient
):
    features, latent, m = arrays(planes)
    with jax.enable_x64(True):

        @jax.jit
        def computed(*arrays):
            output, vjp = jax.vjp(
                lambda f, c, m: mcconv(
                    f, c, jnp.asarray(CENTERS), m,
                    strides=(stride, stride), m_gradient=m_gradient, plane_signs=pattern,
                ),
                *arrays,
            )  # fmt: skip
            cotangent = jnp.cos(jnp.arange(output.size)).reshape(output.shape)
            return output, cotangent, vjp(cotangent)

        output, cotangent, gradients = computed(*map(jnp.asarray, (features, latent, m)))
    filters = paper.binary(latent, CENTERS)
    of_planes = expanded(filters, planes, pattern)
    q = np.zeros((3, 3, filters.shape[2], filters.shape[3] * planes))
    for k in range(planes):
        q[..., k::planes] = of_planes[k] * m[:, :, None, None, k]
    np.testing.assert_allclose(output, paper.correlate(features, q, stride), rtol=1e-10)
    d_features, dq = paper.correlate_gradients(features, q, np.asarray(cotangent), stride)
    np.testing.assert_allclose(gradients[0], d_features, rtol=1e-9, atol=1e-10)
    # The derivatives of q = of_planes * m, where a filter's weight meets each plane once.
    d_latent, d_m = np.zeros_like(latent), np.zeros_like(m)
    in_sum = expanded(latent if m_gradient == "latent" else filters, planes, pattern)
    places = expanded(np.arange(1.0, latent.size + 1).reshape(latent.shape), planes, pattern)
    for k in range(planes):
        d_m[..., k] = np.sum(dq[..., k::planes] * in_sum[k], axis=(2, 3))
        weighed = dq[..., k::planes] * m[:, :, None, None, k] * np.sign(places[k])
        np.add.at(d_latent.ravel(), np.abs(places[k]).astype(int).ravel() - 1, weighed.ravel())
    np.testing.assert_allclose(gradients[1], d_latent, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(gradients[2], d_m, rtol=1e-9, atol=1e-10)


def test_gradients_of_quaternions_are_those_of_finite_differences():
    features, latent, m = arrays(4)
    with jax.enable_x64(True):

        @jax.jit
        def loss(features, latent, m):
            return jnp.sum(jnp.sin(mcconv(features, latent, None, m, plane_signs="quaternion")))

        point = tuple(map(jnp.asarray, (features, latent, m)))
        gradients = jax.grad(loss, argnums=(0, 1, 2))(*point)
        generator = np.random.default_rng(3)
        for place in range(3):
            for index in generator.integers(0, point[place].shape, (5, point[place].ndim)):
                values = []
                for step in (1e-6, -1e-6):
                    moved = list(point)
                    moved[place] = moved[place].at[tuple(index)].add(step)
                    values.append(float(loss(*moved)))
                expected = (values[0] - values[1]) / 2e-6
                np.testing.assert_allclose(
                    gradients[place][tuple(index)], expected, rtol=1e-5, atol=1e-7
                )


@pytest.mark.parametrize(
    ("pattern", "form"),
    [
        ("hadamard", "pallas"),
        *((pattern, f) for pattern in ("quaternion", "circulant")
          for f in FORMS if f not in ("auto", "direct")),
    ],
)  # fmt: skip
def test_other_forms_refuse_a_pattern(pattern, form, monkeypatch):
    monkeypatch.setattr("mcn_jax.ops.native.why_unavailable", lambda: None)
    features, latent, m = map(jnp.asarray, arrays(4))
    others = ", factored, native" if pattern == "hadamard" else ""
    message = (
        f"form='{form}' cannot compute plane_signs='{pattern}'; use one of auto, direct{others}$"
    )
    with pytest.raises(ValueError, match=message):
        mcconv(features, latent, None, m, form=form, plane_signs=pattern)


@pytest.mark.parametrize("planes", [2, 4, 8])
def test_a_pattern_of_signs_is_a_sum_over_slices(planes):
    features, latent, m = map(jnp.asarray, arrays(planes))
    sliced_m = plane_signs.sliced_m(m, "hadamard")
    assert sliced_m.shape == (planes, 3, 3, planes)
    total = sum(mcconv_of_slice(features, latent, sliced_m, i, planes) for i in range(planes))
    whole = mcconv(features, latent, None, m, plane_signs="hadamard")
    np.testing.assert_allclose(total, whole, rtol=1e-4, atol=1e-4)


def mcconv_of_slice(features, latent, sliced_m, i, planes):
    """Convolves plane i of all maps, with the other planes zero and without a pattern."""
    alone = jnp.zeros_like(features).at[..., i::planes].set(features[..., i::planes])
    return mcconv(alone, latent, None, sliced_m[i])


# Batch, height, width, in_maps, out_maps, planes, taps, stride, padding. The native form has the
# planes in lanes below 24 maps of four or eight planes, and slices in the others. From 260 to 300
# maps, the parts of the work are maps, and the native form saves its products.
SHAPES_OF_SLICES = [
    (3, 8, 9, 2, 3, 4, 3, 1, "SAME"),
    (2, 9, 8, 5, 12, 4, 3, 2, "SAME"),
    (2, 7, 7, 3, 16, 2, 5, 1, "VALID"),
    (2, 6, 5, 1, 4, 8, 3, 2, "CENTERED"),
    (1, 3, 3, 2, 2, 4, 1, 2, "SAME"),
    (2, 5, 5, 20, 33, 4, 3, 1, "SAME"),
    (1, 32, 32, 5, 6, 8, 3, 1, "SAME"),
    (2, 3, 2, 4, 1, 8, 5, 3, "SAME"),
    (2, 5, 5, 24, 33, 4, 3, 1, "SAME"),
    (1, 6, 6, 25, 12, 8, 3, 2, "SAME"),
    (1, 4, 4, 260, 300, 2, 3, 1, "SAME"),
]


@pytest.mark.parametrize("m_gradient", ["binary", "latent"])
@pytest.mark.parametrize(
    ("form", "shape"),
    [
        *(("native", shape) for shape in SHAPES_OF_SLICES),
        # This form is a sum of MCconvs without a pattern, so four shapes are enough.
        *(("factored", shape) for shape in SHAPES_OF_SLICES[:4]),
    ],
)
def test_forms_that_share_products_equal_the_direct_one(shape, form, m_gradient):
    if form == "native" and (reason := native.why_unavailable()):
        pytest.skip(reason)
    batch, height, width, in_maps, out_maps, planes, taps, stride, padding = shape
    generator = np.random.default_rng(1)
    features = generator.normal(size=(batch, height, width, in_maps * planes))
    latent = generator.normal(size=(taps, taps, in_maps * planes, out_maps))
    m = generator.uniform(0.5, 1.5, size=(taps, taps, planes))
    arguments = [jnp.asarray(array, jnp.float32) for array in (features, latent, m)]
    centers = jnp.asarray(CENTERS, jnp.float32)

    def computed(form):
        def convolve(features, latent, m):
            return mcconv(
                features, latent, centers, m, strides=(stride, stride), padding=padding,
                m_gradient=m_gradient, form=form, plane_signs="hadamard",
            )  # fmt: skip

        output, vjp = jax.vjp(convolve, *arguments)
        return output, *vjp(jnp.cos(jnp.arange(output.size)).reshape(output.shape))

    for found, expected in zip(
        jax.jit(computed, static_argnums=0)(form),
        jax.jit(computed, static_argnums=0)("direct"),
        strict=True,
    ):
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("form", ["factored", "native"])
@pytest.mark.parametrize("transform", [jax.vmap, jax.pmap])
@pytest.mark.parametrize("in_maps", [3, 24])
def test_a_form_that_shares_products_can_be_transformed(in_maps, transform, form):
    if form == "native" and (reason := native.why_unavailable()):
        pytest.skip(reason)
    features, latent, m = (jnp.asarray(array, jnp.float32) for array in arrays(4, in_maps=in_maps))

    def gradients(form, image):
        def loss(image, latent, m):
            output = mcconv(image, latent, None, m, form=form, plane_signs="hadamard")
            return jnp.sum(jnp.sin(output / 16))

        return jax.grad(jax.checkpoint(loss), argnums=(0, 1, 2))(image[None], latent, m)

    for found, expected in zip(
        transform(functools.partial(gradients, form))(features),
        transform(functools.partial(gradients, "direct"))(features),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("in_maps", "planes", "code", "slices"),
    [
        (31, 2, "mcconv", 1),  # an ordinary convolution
        (32, 2, "mcconv", 2),
        (1, 4, "hadamard", 1),
        (23, 4, "hadamard", 1),
        (24, 4, "mcconv", 4),
        (23, 8, "hadamard", 1),
        (24, 8, "mcconv", 8),
    ],
)
def test_auto_takes_the_native_code_that_was_fastest(in_maps, planes, code, slices):
    if reason := native.why_unavailable():
        pytest.skip(reason)
    shape = Shape(in_maps, 3, planes, 8, 1)
    assert takes_native(shape, "hadamard") == (code == "hadamard" or slices > 1)
    assert not takes_native(shape, "circulant")
    text = lowered("cpu", jnp.float32, in_maps, planes)
    found = re.findall(r"@mcn_(\w+)_forward.*tensor<(\d+)x3x3x\d+xf32>", text)
    assert found == [(code, str(slices))]


@pytest.mark.parametrize(
    ("platform", "dtype", "has_kernel"),
    [
        ("cuda", jnp.float32, True),
        ("cpu", jnp.bfloat16, True),
        ("cuda", jnp.float32, False),
        ("cpu", jnp.float32, False),
    ],
)
def test_elsewhere_auto_is_the_direct_form(platform, dtype, has_kernel, monkeypatch):
    if not has_kernel:
        monkeypatch.setattr("mcn_jax.ops.native.why_unavailable", lambda: "it is off")
    elif reason := native.why_unavailable():
        pytest.skip(reason)
    text = lowered(platform, dtype, 32, 4)
    assert "stablehlo.convolution" in text
    assert "dot_general" not in text
    assert "mcn_" not in text


def lowered(platform, dtype, in_maps, planes):
    """Returns the program of a layer with the Hadamard pattern on a platform."""
    features, latent, m = map(jnp.asarray, arrays(planes, in_maps=in_maps))
    function = jax.jit(functools.partial(mcconv, plane_signs="hadamard"))
    traced = function.trace(features.astype(dtype), latent, None, m)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("pattern", "planes", "message"),
    [
        ("quaternion", 2, "plane_signs='quaternion' is for maps of 4 planes, not 2"),
        ("hadamard", 3, "plane_signs='hadamard' is for maps of 2, 4, 8 planes, not 3"),
        ("circulant", 1, "plane_signs='circulant' is for maps of 2, 4, 8 planes, not 1"),
        (
            "octonion",
            8,
            "plane_signs='octonion' must be empty or one of hadamard, quaternion, circulant",
        ),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(pattern, planes, message):
    features, latent, m = map(jnp.asarray, arrays(planes))
    with pytest.raises(ValueError, match=message):
        mcconv(features, latent, None, m, plane_signs=pattern)
