"""How the commands of the documentation are found and read."""

import pytest
from check_docs import check, commands_of

PAGE = """
    dr2pipe restore PHOTOS OUTPUT --set \\
        dr2.tau=3    # comment

```sh
make test WORKERS=8
python scripts/restore.py CONFIG
```
text with dr2pipe words, and `dr2pipe doctor` in a line
    photo.jpg,1,2
"""


def test_commands_are_found():
    assert commands_of(PAGE) == [
        "dr2pipe restore PHOTOS OUTPUT --set dr2.tau=3",
        "make test WORKERS=8",
        "python scripts/restore.py CONFIG",
    ]


@pytest.mark.parametrize(
    "command",
    [
        "make test WORKERS=8",
        "dr2pipe setup gfpgan14",
        "dr2pipe restore A B --preset celebahq256_gfpgan14",
        "accelerate launch scripts/train.py configs/train/ddpm_portrait128.yaml data.path=FACES",
        "pip install 'dr2pipe[web]'",
    ],
)
def test_what_is_only_read(command, tmp_path):
    assert check(command, tmp_path) == "read"


@pytest.mark.parametrize(
    "command",
    [
        "make tests",
        "dr2pipe restor PHOTOS OUTPUT",
        "dr2pipe restore PHOTOS OUTPUT --presets default",
        "dr2pipe restore PHOTOS OUTPUT --preset best",
        "accelerate launch scripts/train.py configs/train/none.yaml",
        "python scripts/none.py",
        "dr2pipe explain NOTHING",
    ],
)
def test_what_fails(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Exception, SystemExit)):
        check(command, tmp_path)
