"""A plugin of pytest: Hypothesis neither simplifies a failure, which takes long, nor keeps it."""

from hypothesis import Phase, settings

settings.register_profile("unshrunk", phases=(Phase.explicit, Phase.generate), database=None)
settings.load_profile("unshrunk")
