"""Builds the optional native kernel with the package; pyproject.toml has all the rest."""

import importlib.util
import pathlib

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

PLACE = pathlib.Path("mcn_jax/ops")


def load_builder():
    """Loads native_build.py alone, because the package itself needs jax."""
    path = pathlib.Path(__file__).with_name("mcn_jax") / "ops" / "native_build.py"
    spec = importlib.util.spec_from_file_location("native_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithNative(build_py):
    """Copies the modules and compiles the kernel next to them; in an editable install, in place."""

    def run(self):
        """Copies and compiles."""
        super().run()
        root = pathlib.Path(__file__).parent if self.editable_mode else pathlib.Path(self.build_lib)
        if reason := load_builder().install(root / PLACE):
            print(f"mcn_jax: the native kernel was not built ({reason}); training works without it")


class Wheel(bdist_wheel):
    """Tags the wheel by its content: the library is for one platform, but for every Python."""

    def run(self):
        """Builds, looks whether the library is there, and packs."""
        self.run_command("build")
        place = pathlib.Path(self.get_finalized_command("build").build_lib) / PLACE
        self.root_is_pure = not (place / load_builder().LIBRARY).exists()
        if not self.root_is_pure:
            self.distribution.has_ext_modules = lambda: True  # installed among platforms' files
        super().run()

    def get_tag(self):
        """Returns the tags of Python, ABI and platform."""
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


setup(cmdclass={"build_py": BuildWithNative, "bdist_wheel": Wheel})
