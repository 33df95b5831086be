from pathlib import Path

import pytest

from lr_lightning.tracking.files import cut_torn_line, write_atomically


@pytest.mark.parametrize("content", [b"", b"torn", b"x" * 200_000])
def test_a_file_without_any_whole_line_is_emptied(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    assert cut_torn_line(path) == 0
    assert path.read_bytes() == b""


def test_writing_atomically_keeps_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, "a", mode=0o600)
    write_atomically(path, "b", mode=0o600)
    assert path.read_text() == "b"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
