import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr2pipe.core.config import load_config, parse_overrides
from dr2pipe.core.errors import ConfigError
from dr2pipe.runs.restore import RestoreConfig


@given(st.integers(0, 10**9), st.sampled_from(["", "-", "+"]))
def test_leading_zeros_are_refused(number, sign):
    with pytest.raises(ConfigError, match="'seed'"):
        parse_overrides([f"seed={sign}0{number}"])
    assert parse_overrides([f"seed={sign}{number}"])["seed"] == int(f"{sign}{number}")


@given(st.integers(0, 999), st.integers(0, 59))
def test_numbers_with_colons_are_refused(one, other):
    with pytest.raises(ConfigError, match="is refused"):
        parse_overrides([f"seed={one}:{other:02d}"])


@pytest.mark.parametrize(
    "value", ["0", "0.5", "-0.25", "1e-3", "10", "0x10", "'010'", "a:1", "1.50"]
)
def test_other_values_are_taken(value):
    assert "a" in parse_overrides([f"a={value}"])


def test_a_file_names_the_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("dr2:\n  tau: 010\n")
    with pytest.raises(ConfigError, match=r"'dr2.tau' in .*c.yaml: 010 is refused"):
        load_config(RestoreConfig, path, ["input=a", "output=b"])
    path.write_text("input: '010'\noutput: b\n")
    assert load_config(RestoreConfig, path).input == "010"
    assert load_config(RestoreConfig, path, ["output=007"]).output == "007"
