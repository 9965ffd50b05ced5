import measure_colour
import pytest


@pytest.mark.slow
def test_pictures_look_the_same_in_every_colour_space(capsys):
    assert measure_colour.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 6 * 2 * 5 + 1
    assert lines[-1].startswith("largest of 60 files: 0.")
