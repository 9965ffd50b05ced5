from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING

from dr2pipe.core.config import load_config, peek, stable_hash, stable_seed, to_dict
from dr2pipe.core.errors import ConfigError


@dataclass
class Inner:
    tau: int = 22
    name: str | None = None


@dataclass
class Outer:
    input: str = MISSING
    inner: Inner = field(default_factory=Inner)
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    shares: dict[str, float] = field(default_factory=dict)


def test_file_then_overrides(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("input: a\ninner: {tau: 3}\n")
    config = load_config(Outer, file, ["inner.tau=5", "inner.name=x", "sizes=[4]"])
    assert isinstance(config, Outer)
    assert isinstance(config.inner, Inner)
    assert to_dict(config) == {
        "input": "a",
        "inner": {"tau": 5, "name": "x"},
        "sizes": [4],
        "shares": {},
    }
    assert peek(file, ["input=b"], "input") == "b"


@pytest.mark.parametrize(
    "text", ["2024_01", "007", "1e3", "no", "[x]", "a: b", "${home}", "a=b", "", " # 😀", "'q'"]
)
def test_text_is_taken_as_it_stands(text):
    assert load_config(Outer, None, [f"input={text}"]).input == text
    assert load_config(Outer, None, ["input=a", f"inner.name={text}"]).inner.name == text
    assert load_config(Outer, None, ["input=a", "inner.name=null"]).inner.name is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["input=a", "inner.tua=1"], "inner.tua.*did you mean 'tau'.*name, tau"),
        (["input=a", "outer=1"], "unknown key 'outer'.*inner, input, shares, sizes"),
        (["input=a", "inner.tau=many"], "inner.tau.*many"),
        ([], "'input' must be given"),
        (["input"], "not of the form key=value"),
        (["=3"], "not of the form key=value"),
        (["input=a", "sizes=[1"], "cannot read the override"),
        (["input=a", "shares={mild:1.5}"], "write mild: 1.5, with a space after the colon"),
    ],
)
def test_errors_name_the_key(overrides, says):
    with pytest.raises(ConfigError, match=says):
        load_config(Outer, None, overrides)


@pytest.mark.parametrize(
    ("text", "says"), [("a: [", "as YAML"), ("- 1", "top level"), ("input: {a: 1}", "input")]
)
def test_bad_files(tmp_path, text, says):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_config(Outer, file)
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(Outer, tmp_path / "none.yaml")


def test_hash_and_seed_are_stable_and_tell_apart():
    assert stable_hash({"b": 1, "a": 2}) == stable_hash({"a": 2, "b": 1})
    assert stable_hash({"a": 1}) != stable_hash({"a": 2})
    assert stable_seed(0, "a", "b") != stable_seed(0, "ab")
    assert 0 <= stable_seed("\udcff.png") < 2**63
