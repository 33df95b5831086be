"""Where a run's artifacts lie before they are sent: below ``<output_dir>/artifacts``."""

import shutil
from pathlib import Path, PurePosixPath


def artifact_file_path(output_dir: Path, name: str) -> Path:
    """Give the local path of artifact ``name``, e.g. ``"plots/lr.png"``; its folder is made.

    Raises:
        ValueError: ``name`` leads out of the run's artifacts.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.name:
        raise ValueError(f"an artifact's name must be a relative path without '..', got {name!r}")
    path = output_dir / "artifacts" / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def adopt(path: Path, output_dir: Path, artifact_path: str | None) -> Path:
    """Give a file or folder a place in the output directory: it may be sent much later, when the original is gone.

    Args:
        path: The file or folder.
        output_dir: The run's output directory.
        artifact_path: Folder below the run's artifacts.

    Returns:
        ``path`` itself if it lies in the output directory, else that of the copy.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: ``artifact_path`` leads out of the run's artifacts.
    """
    source = path.absolute()
    if not source.exists():
        raise FileNotFoundError(f"log_artifact: no such file: {source}")
    if source.is_relative_to(output_dir):
        return source
    target = artifact_file_path(output_dir, f"{artifact_path}/{source.name}" if artifact_path else source.name)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
    return target
