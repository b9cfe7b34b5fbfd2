"""Draws docs/method.png: the network of configs/digits.py, forward and backward.

Layers, shapes and losses are read from the code. Run this again after changing them:

    python docs/draw_method.py
"""

import pathlib

import jax
import matplotlib.figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mcn_jax.config import from_config_dict, load_config_file
from mcn_jax.data.facts import DATASETS
from mcn_jax.models import make_model

HERE = pathlib.Path(__file__).parent
FORWARD = {"color": "black", "linewidth": 1.3, "arrowstyle": "-|>", "mutation_scale": 12}
BACKWARD = FORWARD | {"color": "#b03030", "linestyle": (0, (4, 2))}


def digits_network():
    """Returns (config, shapes of the parameters, image shape) of configs/digits.py."""
    config = load_config_file(HERE.parent / "configs" / "digits.py")
    config.model.head = "dense"  # as in the paper
    config = from_config_dict(config)
    facts = DATASETS[config.data.name]
    model = make_model(config, facts.classes, quantized=True)
    images = jax.ShapeDtypeStruct((1, *facts.image_shape), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return config, variables["params"], facts.image_shape


class Drawing:
    """Boxes and arrows on one axes."""

    def __init__(self, width, height):
        self.figure = matplotlib.figure.Figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.set_axis_off()

    def box(self, x, y, width, height, text, color):
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y), width, height,
                boxstyle="round,pad=0.02,rounding_size=0.08",
                facecolor=color, edgecolor="#444444",
            )
        )  # fmt: skip
        self.text(x + width / 2, y + height / 2, text)

    def text(self, x, y, text, size=8.5, color="black", align="center"):
        self.axes.text(x, y, text, ha=align, va="center", fontsize=size, color=color)

    def arrow(self, start, end, style, label="", at=(0, 0)):
        self.axes.add_patch(FancyArrowPatch(start, end, **style))
        if label:
            x, y = (start[0] + end[0]) / 2 + at[0], (start[1] + end[1]) / 2 + at[1]
            self.text(x, y, label, size=7.5, color=style["color"])


def draw():
    config, params, image_shape = digits_network()
    names = sorted(name for name in params if name.startswith("conv_"))
    planes = config.model.planes
    drawing = Drawing(13.2, 7.0)

    height, width, channels = image_shape
    drawing.box(0.2, 5.3, 1.25, 0.9, f"image\n{height}×{width}×{channels}", "#eeeeee")
    maps = params[names[0]]["latent_filters"].shape[2] // planes
    drawing.box(1.95, 5.3, 1.4, 0.9, f"copied input\n{maps} map × {planes} planes", "#eeeeee")
    drawing.arrow((1.45, 5.75), (1.95, 5.75), FORWARD)
    x, layer_width, gap = 3.85, 1.4, 0.4
    for index, name in enumerate(names):
        out_maps = params[name]["latent_filters"].shape[3]
        text = f"MCconv {index + 1}\n{out_maps} maps × {planes}\nBN, ReLU, pool"
        drawing.box(x, 5.3, layer_width, 0.9, text, "#cfe3f5")
        drawing.arrow((x - gap - 0.1 * (index == 0), 5.85), (x, 5.85), FORWARD)
        if index:
            drawing.arrow((x, 5.6), (x - gap, 5.6), BACKWARD)
        x += layer_width + gap
    hidden, classes = params["dense_1"]["kernel"].shape[1], params["dense_2"]["kernel"].shape[1]
    drawing.arrow((x - gap, 5.85), (x, 5.85), FORWARD)
    drawing.arrow((x, 5.6), (x - gap, 5.6), BACKWARD)
    text = f"dense {hidden}\ndropout\ndense {classes}"
    drawing.box(x, 5.3, 0.95, 0.9, text, "#eeeeee")
    drawing.arrow((x + 0.45, 5.3), (x + 0.45, 4.35), FORWARD)
    drawing.arrow((x + 0.75, 4.35), (x + 0.75, 5.3), BACKWARD)
    drawing.box(
        10.2, 2.65, 2.8, 1.7,
        "loss layer\nsoftmax loss  $L_S$\n"
        r"+ ($\theta$/2) filter loss  $\Sigma\,(C-\hat C\circ M_k)^2$" "\n"
        r"+ ($\lambda$/2) center loss  $|f-\bar f_{class}|^2$",
        "#fbe3c6",
    )  # fmt: skip

    last_x = x - gap - layer_width / 2
    drawing.arrow((last_x, 5.28), (10.55, 4.37), FORWARD)
    drawing.text(last_x - 0.35, 4.72, "features $f$", 7.5)

    second = params[names[1]]
    taps, _, in_channels, out_maps = second["latent_filters"].shape
    drawing.axes.add_patch(
        FancyBboxPatch(
            (0.25, 0.35), 9.45, 4.1,
            boxstyle="round,pad=0.02,rounding_size=0.1",
            facecolor="#f6fafd", edgecolor="#7aa5cc",
        )
    )  # fmt: skip
    second_x = 3.85 + layer_width + gap + layer_width / 2
    drawing.axes.plot([second_x, 5.0], [5.28, 4.47], color="#7aa5cc", linewidth=1, linestyle=":")
    drawing.text(0.45, 4.22, "inside MCconv 2: its modulation module", 9, "#33608a", "left")
    filters = f"{taps}×{taps}×{in_channels}×{out_maps}"
    y = 2.75
    drawing.box(0.55, y, 1.75, 0.9, f"latent filters $C$\n{filters}\nfloat, learned", "#d9ead3")
    drawing.box(
        3.55, y, 1.85, 0.9, rf"binary filters $\hat C$" f"\n{filters}\none bit each", "#fff2cc"
    )
    q = f"{taps}×{taps}×{in_channels}×{out_maps * planes}"
    drawing.box(6.55, y, 1.35, 0.9, f"$Q$\n{q}", "#e6dcf2")
    drawing.box(8.35, y, 1.15, 0.9, "convolve\nfeatures", "#cfe3f5")
    m = f"M-filter $M\\geq0$\n{taps}×{taps}×{planes}, learned\none for the layer"
    drawing.box(3.6, 0.6, 1.75, 0.9, m, "#d9ead3")
    drawing.text(2.92, 3.93, "nearest of two\nk-means centers\n(Eq. 6)", 7.5)
    drawing.arrow((2.3, y + 0.62), (3.55, y + 0.62), FORWARD)
    drawing.arrow((5.4, y + 0.62), (6.55, y + 0.62), FORWARD)
    drawing.text(5.97, 3.86, r"$\hat C\circ M_k$" "\n(Eqs. 3–5)", 7.5)
    drawing.arrow((7.9, y + 0.62), (8.35, y + 0.62), FORWARD)
    drawing.arrow((5.35, 1.25), (6.95, y), FORWARD)
    drawing.text(8.92, 3.86, "Eqs. 7–9", 7.5)
    drawing.arrow((8.35, y + 0.25), (7.9, y + 0.25), BACKWARD)
    drawing.arrow((6.55, y + 0.25), (5.4, y + 0.25), BACKWARD)
    drawing.arrow((3.55, y + 0.25), (2.3, y + 0.25), BACKWARD)
    drawing.text(5.97, 2.78, r"$\partial L/\partial Q_k\circ M_k$", 7.5, BACKWARD["color"])
    drawing.text(2.92, 2.6, "straight through\n(Eq. 12)", 7.5, BACKWARD["color"])
    drawing.arrow((7.35, y), (5.35, 0.85), BACKWARD)
    drawing.text(
        7.3, 1.45, r"$\Sigma\,\partial L/\partial Q_k\circ\hat C$" "\n(Eq. 16)", 7.5,
        BACKWARD["color"],
    )  # fmt: skip
    drawing.text(
        1.43, 1.75,
        "filter loss adds to both\n(Eqs. 13, 17); the third term\nof Eq. 10 adds to $C$",
        7.5, BACKWARD["color"],
    )  # fmt: skip
    drawing.text(4.47, 0.47, r"$M\leftarrow|M-\eta_2\,\partial L/\partial M|$  (Eq. 15)", 7.5)

    drawing.axes.add_patch(FancyArrowPatch((10.3, 1.6), (10.9, 1.6), **FORWARD))
    drawing.text(11.0, 1.6, "forward", 8.5, align="left")
    drawing.axes.add_patch(FancyArrowPatch((10.3, 1.2), (10.9, 1.2), **BACKWARD))
    drawing.text(11.0, 1.2, "backward", 8.5, BACKWARD["color"], "left")
    drawing.text(
        0.2, 6.65, "A modulated convolutional network, as configs/digits.py builds it", 11,
        align="left",
    )  # fmt: skip
    return drawing.figure


if __name__ == "__main__":
    draw().savefig(HERE / "method.png", dpi=110)
