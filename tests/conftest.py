"""The order of the tests, and how processes share them."""

import pytest

# Long files come first, so that no process waits long for the last one.
LONG = tuple(
    f"tests/{name}.py"
    for name in (
        "avatars/test_edits",
        "methods/test_optimization",
        "test_default",
        "test_invert",
        "test_optimize",
        "test_scale",
        "test_train_mapper",
        "test_wheel",
    )
)
# Files whose tests use the same running service; a second one takes 30 s of processor time.
SERVED = {f"tests/app/test_{name}.py" for name in ("guide", "page", "service")}


def pytest_configure(config):
    """Loads the fixtures, except in the process that only starts others: JAX is slow to import."""
    starts_others = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not starts_others:
        config.pluginmanager.import_plugin("tests.fixtures")


def pytest_collection_modifyitems(items):
    """Puts long files first; --no-loadscope-reorder keeps their order."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Lets one process run all tests of the files in SERVED."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "the service" if file in SERVED else file

    return Scheduling(config, log)
