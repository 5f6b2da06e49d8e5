"""Which tests there are: entry points of packages that are really installed, broken ones, names twice."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from tiny_stress import ToyTest

from steer2edit.errors import DataError, PluginError
from steer2edit.stress import StressOptions, StressTest, choose_tests, find_tests, registry, subject_for_costs

MODULE = """
from tiny_stress import ToyTest

def tests():
    return [ToyTest("mine", group="causal"), ToyTest("another-one")]

def broken():
    raise KeyError("no such thing")

def wrong():
    return [3]

not_a_function = 7
"""


@pytest.fixture(autouse=True)
def _three_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [ToyTest("heads", group="causal"), ToyTest("persona"), ToyTest("gcg", group="adaptive")]
    monkeypatch.setattr(registry, "built_in_tests", lambda: own)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *functions: str, package: str = "toy-plugin") -> None:
    """A package of that name, as pip leaves it."""
    module = f"module_of_{package.replace('-', '_')}"
    (folder / f"{module}.py").write_text(MODULE)
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{function} = {module}:{function}" for function in functions]
    (info / "entry_points.txt").write_text("[steer2edit.stress]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(folder))


def test_by_group_in_the_order_of_the_scorecard() -> None:
    assert list(find_tests()) == ["persona", "gcg", "heads"]
    assert all(isinstance(test, StressTest) for test in find_tests().values())


def test_a_package_adds_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "tests")
    assert list(find_tests()) == ["persona", "another-one", "gcg", "heads", "mine"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", r"package toy-plugin \(broken = module_of_toy_plugin:broken\) cannot be loaded: KeyError"),
        ("wrong", r"package toy-plugin .* include a int, which is no stress test"),
        ("not_a_function", r"package toy-plugin .* cannot be loaded: TypeError"),
        ("absent", r"package toy-plugin .* cannot be loaded: AttributeError"),
    ],
)
def test_a_broken_package_is_named(
    function: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, function)
    with pytest.raises(PluginError, match=message):
        find_tests()


def test_a_package_that_is_not_importable() -> None:
    with pytest.raises(PluginError, match=r"package \? \(x = no_such_module:tests\) cannot be loaded: ModuleNotFound"):
        registry.plugged_in(EntryPoint("x", "no_such_module:tests", registry.ENTRY_POINTS))


def test_a_name_twice_names_both_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("toy-plugin", "toy-rival"):
        (tmp_path / package).mkdir()
        install(tmp_path / package, monkeypatch, "tests", package=package)
    with pytest.raises(PluginError, match=r"two stress tests 'mine', of the packages toy-plugin and toy-rival"):
        find_tests()


def test_a_name_of_ours_is_taken() -> None:
    with pytest.raises(PluginError, match=r"two stress tests 'persona', of the packages steer2edit and other"):
        registry.by_name([(ToyTest("persona"), "steer2edit"), (ToyTest("persona"), "other")])


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (ToyTest("Persona"), "lower-case words"),
        (ToyTest("../up"), "lower-case words"),
        (ToyTest("plain"), "or is one of plain, static-together"),
        (ToyTest("ok", suites=frozenset()), "one or both of the suites quick, full"),
    ],
)
def test_malformed_tests(test: ToyTest, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        registry.by_name([(test, "toy")])


def test_choice() -> None:
    tests = [ToyTest("a"), ToyTest("b", suites=frozenset({"full"})), ToyTest("c")]
    assert [test.name for test in choose_tests(tests, "quick")] == ["a", "c"]
    assert [test.name for test in choose_tests(tests, "full")] == ["a", "b", "c"]
    assert [test.name for test in choose_tests(tests, "quick", ["c", "b"])] == ["b", "c"]
    with pytest.raises(DataError, match=r"there is no stress test 'aa'. Did you mean 'a'\? Known: a, b, c"):
        choose_tests(tests, "quick", ["aa"])


def test_costs_without_a_model() -> None:
    """96 harmful held-out requests under three arms."""
    assert ToyTest("a").cost(subject_for_costs(StressOptions()), "quick").replies == 3 * 96
    assert ToyTest("a").cost(subject_for_costs(StressOptions(limit=5)), "quick").replies == 15
