"""Runs exported WebAssembly with wasmtime, and reads exported web pages."""

import html.parser
import json

import numpy as np
import wasmtime


def instance(module):
    """Returns (store, exports) of a WebAssembly module, which gets no imports."""
    store = wasmtime.Store()
    return store, wasmtime.Instance(store, wasmtime.Module(store.engine, module), []).exports(store)


def logits_from_wasm(module, images, classes):
    """Returns the logits [N, classes] that a module computes of images."""
    store, exports = instance(module)
    memory, place = exports["memory"], exports["web_logits"](store)
    logits = []
    for image in images:
        memory.write(store, image.tobytes(), exports["web_image"](store))
        exports["web_predict"](store)
        logits.append(memory.read(store, place, place + 4 * classes))
    return np.frombuffer(b"".join(logits), np.float32).reshape(len(images), classes)


class Elements(html.parser.HTMLParser):
    """The elements of a page in order, as a parser of HTML sees them.

    Attributes:
        found: a list of [tag, {attribute: value}, text directly after the tag].
    """

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        self.found.append([f"/{tag}", {}, ""])

    def handle_data(self, data):
        if self.found:
            self.found[-1][2] += data

    def texts(self, tag):
        """Returns the texts of all elements with a tag."""
        return [text for name, _, text in self.found if name == tag]


def model_data(page):
    """Returns the JSON of the network in a page."""
    data, _ = Elements(page).texts("script")
    return json.loads(data)
