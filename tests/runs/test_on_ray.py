"""``restore-many`` on a real Ray: scripts/research/scale_simulation.py at a small size."""

import json

import pytest
from conftest import ROOT, run_command

pytestmark = pytest.mark.slow
SCRIPT = str(ROOT / "scripts/research/scale_simulation.py")


def study(name, work, pictures, *more):
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    found = run_command(SCRIPT, name, work / "work", "--pictures", str(pictures), *more)
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout.splitlines()[-1])


def test_many_tiny_pictures(tmp_path):
    said = study("tiny", tmp_path, 500, "--block", "64")
    assert (said["records"], said["records_written_twice"]) == (500, 0)


def test_a_poison_picture_is_quarantined(tmp_path):
    assert study("poison", tmp_path, 20)["exit_code"] == 3


def test_a_node_and_the_driver_are_killed(tmp_path):
    said = study("nodes", tmp_path, 120, "--block", "4", "--seconds", "0.3")
    assert said["results"] == 120


def test_actors_come_when_the_cluster_grows(tmp_path):
    said = study("grow", tmp_path, 240, "--block", "4", "--seconds", "0.4")
    assert said["actors"] > 2
    assert (said["results"], said["records_written_twice"]) == (240, 0)


def test_a_store_that_refuses_and_stalls(tmp_path):
    pytest.importorskip("s3fs", reason="the extra [ray] is not installed")
    pytest.importorskip(
        "moto", reason="a server for tests: pip install 'moto[s3]' flask flask-cors"
    )
    said = study("store", tmp_path, 60)
    assert said["refused"] > 0
    assert (said["records"], said["records_written_twice"]) == (60, 0)


def test_both_engines_give_the_same_files(tmp_path):
    assert study("compare", tmp_path, 20)["files_equal"]


def test_both_engines_give_the_same_files_in_a_store(tmp_path):
    pytest.importorskip("s3fs", reason="the extra [ray] is not installed")
    pytest.importorskip(
        "moto", reason="a server for tests: pip install 'moto[s3]' flask flask-cors"
    )
    assert study("compare_store", tmp_path, 20)["files_equal"]
